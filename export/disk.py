"""Room on disk, checked before an export starts."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgelm.checkpoint import Checkpoint
from edgelm.command import format_bytes
from edgelm.devices.tensorrt.versions import RTX
from edgelm.errors import DoesNotFit
from edgelm.export.methods import METHODS
from edgelm.export.request import ExportRequest
from edgelm.export.weights import Weights
from edgelm.groups import EMBEDDING
from edgelm.planning import Plan

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def bundle_need(plan: Plan) -> int:
    """Bytes of a bundle while it is written."""
    tokenizer_and_tables = 40_000_000
    copies = 2.5 if plan.engine == RTX else 1.1  # beside the graph its engine, a little larger
    return int(copies * plan.weight_bytes) + tokenizer_and_tables


def work_need(checkpoint: Checkpoint, request: ExportRequest) -> int:
    """Bytes of what is found out on the way to a bundle."""
    need, precision = 0, request.plan.precision
    if METHODS[request.method].compensates and precision in ("auto", "int4"):
        weights = Weights(checkpoint)
        need += sum(4 * weights.columns(g) ** 2 for g in weights.groups() if g != EMBEDDING)
    if precision == "auto":
        # A byte a level: everything in groups of 32, and much of it at another precision.
        need += int(2.5 * checkpoint.spec.parameters)
    return need


def check_room(folder: Path, need: int, what: str) -> None:
    """Raise DoesNotFit where there is too little room for `what` in a folder still to come."""
    parent = folder.absolute()
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < need:
        raise DoesNotFit(
            f"{what} needs about {format_bytes(need)} of disk, {parent} has {format_bytes(free)} "
            "free; free some or choose another folder"
        )


@contextmanager
def full_disk_told(output: Path, need: int) -> Iterator[None]:
    """Raise DoesNotFit where the disk runs full in this block."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DoesNotFit(
            f"the disk is full: cannot write {error.filename or output} ({error.strerror}); free "
            f"about {format_bytes(need)} at {output.parent}; nothing was left behind"
        ) from None
