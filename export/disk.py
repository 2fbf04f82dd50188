"""Room on disk, checked before an export starts."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgelm.checkpoint.source import Checkpoint
from edgelm.cli import format_bytes
from edgelm.devices.tensorrt_versions import RTX
from edgelm.errors import DoesNotFit
from edgelm.export.quantize.methods import METHODS, has_coarse
from edgelm.export.quantize.weights import Weights
from edgelm.export.request import ExportRequest
from edgelm.planning import Plan
from edgelm.quantize.precision import PRECISIONS
from edgelm.spec.groups import EMBEDDING

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def bundle_need(plan: Plan) -> int:
    """Bytes of a bundle while it is written."""
    tokenizer_and_tables = 40_000_000
    copies = 2.5 if plan.engine == RTX else 1.1  # beside the graph its engine, a little larger
    return int(copies * plan.weight_bytes) + tokenizer_and_tables


def work_need(checkpoint: Checkpoint, request: ExportRequest, *, lasting: bool) -> int:
    """Bytes of what is found out on the way to a bundle; `lasting` if all of it is kept."""
    need, precision, method = 0, request.plan.precision, METHODS[request.method]
    eight = method.everywhere and precision in ("int8", "w8a8")
    coarse = precision == "auto" or has_coarse({type(PRECISIONS[precision])})
    if method.compensates and (eight or coarse):
        weights = Weights(checkpoint)
        need += sum(4 * weights.columns(g) ** 2 for g in weights.groups() if g != EMBEDDING)
    if precision == "auto":
        # A byte a level: everything in groups of 32, and much of it at another precision.
        need += int(2.5 * checkpoint.spec.parameters)
    elif lasting and precision in ("int4", "int8", "w8a8", "fp8", "nvfp4"):
        need += checkpoint.spec.parameters
    return need


def check_room(folder: Path, need: int, what: str) -> None:
    """Raise DoesNotFit where there is too little room for `what` in an existing folder."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise DoesNotFit(
            f"{what} needs about {format_bytes(need)} of disk, {folder} has {format_bytes(free)} "
            "free; free some or choose another folder"
        )


def check_work_room(work: Path, need: int, bundle: Path, beside: int) -> None:
    """Raise DoesNotFit where findings do not fit, with the bundle if it is on the same disk.

    Args:
        work: a folder for findings.
        need: bytes of those still to come; below zero counts as none.
        bundle: where the bundle is written.
        beside: its bytes.
    """
    need, what = max(0, need), "the work folder"
    if work.stat().st_dev == bundle.stat().st_dev:
        need, what = need + beside, "the bundle with the work folder"
    check_room(work, need, what)


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


@contextmanager
def full_disk_told(output: Path, need: int, *, work: Path | None = None) -> Iterator[None]:
    """Raise DoesNotFit where the disk runs full in this block."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        left = f"{work} keeps what was found out" if work else "nothing was left behind"
        # Of two files, as of a copy, the second is the one that is written.
        path = Path(error.filename2 or error.filename or output)
        in_work = work is not None and path.is_relative_to(work.absolute())
        some = "some" if in_work else f"about {format_bytes(need)}"
        raise DoesNotFit(
            f"the disk is full: cannot write {path} ({error.strerror}); free {some} there; {left}"
        ) from None
