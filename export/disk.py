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


def disk_need(checkpoint: Checkpoint, plan: Plan, request: ExportRequest) -> int:
    """Bytes of a bundle, and of what is needed on the way to it."""
    tokenizer_and_tables = 40_000_000
    copies = 2.5 if plan.engine == RTX else 1.1  # beside the graph its engine, a little larger
    need = int(copies * plan.weight_bytes) + tokenizer_and_tables
    precision = request.plan.precision
    if METHODS[request.method].compensates and precision in ("auto", "int4"):
        weights = Weights(checkpoint)
        need += sum(4 * weights.columns(g) ** 2 for g in weights.groups() if g != EMBEDDING)
    if precision == "auto":
        need += int(1.5 * checkpoint.spec.parameters)  # a byte a level; some at two precisions
    return need


@contextmanager
def enough_disk(output: Path, need: int) -> Iterator[None]:
    """Raise DoesNotFit where there is too little room for `output`, or where it runs out."""
    parent = output.absolute().parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < need:
        raise DoesNotFit(
            f"the bundle needs about {format_bytes(need)} of disk, {parent} has "
            f"{format_bytes(free)} free; free some or choose another output folder"
        )
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DoesNotFit(
            f"the disk is full: cannot write {error.filename or output} ({error.strerror}); free "
            f"about {format_bytes(need)} at {output.parent}; nothing was left behind"
        ) from None
