"""The rank and device of this process under `accelerate launch` or `torchrun`."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def is_main_process() -> bool:
    """Whether this process (rank 0) writes files and reports; true without a launcher."""
    return os.environ.get("RANK", "0") == "0"


def world_size() -> int:
    """The number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device() -> "torch.device":
    """The device of this process: its own GPU, or the CPU."""
    import torch

    if not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return torch.device(kind.type, int(os.environ.get("LOCAL_RANK", "0")))
