"""The rank and device of this process under `accelerate launch` or `torchrun`."""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_LONGEST_WAIT = timedelta(hours=24)


def is_main_process() -> bool:
    """Whether this process (rank 0) writes files and reports; true without a launcher."""
    return os.environ.get("RANK", "0") == "0"


def world_size() -> int:
    """The number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_index() -> int:
    """The number of this process (its rank), from 0."""
    return int(os.environ.get("RANK", "0"))


def join_group() -> Any:
    """The group of all processes, with each one's device, as accelerate keeps it.

    One process may work for hours while others wait, e.g. on the hashes of a large checkpoint; of
    a process that fails, the launcher ends the others long before.
    """
    import torch
    from accelerate import PartialState

    group = {"timeout": _LONGEST_WAIT} if world_size() > 1 else {}
    return PartialState(cpu=not torch.accelerator.is_available(), **group)


def wait_for_all() -> None:
    """Wait until every process has come here."""
    if world_size() > 1:
        join_group().wait_for_everyone()


def sum_over_processes(values: Sequence[float]) -> list[float]:
    """Sums of values over all processes, each of which has to call this."""
    if world_size() == 1:
        return list(values)
    import torch

    state = join_group()
    sums = torch.tensor(values, dtype=torch.float64, device=state.device)
    torch.distributed.all_reduce(sums)
    return [float(one) for one in sums]


def gather_from_processes(value: Any) -> list[Any]:
    """A value of every process, in their order; each of them has to call this."""
    if world_size() == 1:
        return [value]
    import torch

    join_group()
    found = [None] * world_size()
    torch.distributed.all_gather_object(found, value)
    return found


def device() -> "torch.device":
    """The device of this process: its own GPU, or the CPU."""
    import torch

    if not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return torch.device(kind.type, int(os.environ.get("LOCAL_RANK", "0")))
