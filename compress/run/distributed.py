"""Which of several processes this one is, under `accelerate launch` or `torchrun`."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def is_first() -> bool:
    """Whether this process writes files and speaks; without a launcher it does."""
    return os.environ.get("RANK", "0") == "0"


def processes() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device() -> "torch.device":
    """The device of this process: its own GPU, or the CPU."""
    import torch

    if not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return torch.device(kind.type, int(os.environ.get("LOCAL_RANK", "0")))
