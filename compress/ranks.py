"""Which of several processes this one is, under `accelerate launch` or `torchrun`."""

import os

import torch


def is_first() -> bool:
    """Whether this process writes files and speaks; without a launcher it does."""
    return os.environ.get("RANK", "0") == "0"


def device() -> torch.device:
    """The device of this process: its own GPU, or the CPU."""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return torch.device(kind.type, int(os.environ.get("LOCAL_RANK", "0")))
