"""Free space on disk, checked before an export starts."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgelm.checkpoint.source import Checkpoint
from edgelm.cli import format_bytes
from edgelm.devices.tensorrt_versions import RTX
from edgelm.errors import DoesNotFit
from edgelm.export.quantize.methods import METHODS
from edgelm.export.quantize.weights import Weights
from edgelm.export.request import ExportRequest
from edgelm.planning import SOURCE, Plan
from edgelm.quantize.precision import PRECISIONS, Int4
from edgelm.spec.groups import TABLES

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def bundle_need(plan: Plan) -> int:
    """Bytes of a bundle while it is written."""
    tokenizer_and_tables = 40_000_000
    # Beside the graph there is its engine, which is a little larger, or the graph that `auto`
    # tries after one that passed.
    copies = 2.5 if plan.engine == RTX else 2.1 if plan.precision == "auto" else 1.1
    return int(copies * plan.weight_bytes) + plan.draft_bytes + tokenizer_and_tables


def work_need(checkpoint: Checkpoint, request: ExportRequest, *, durable: bool) -> int:
    """Bytes of the intermediate results of an export; `durable` if all of them are stored."""
    need, precision = 0, request.plan.precision
    kind = Int4 if precision in ("auto", SOURCE) else type(PRECISIONS[precision])
    if METHODS[request.method].needs_hessian({kind}):
        weights = Weights(checkpoint)
        groups = [g for g in weights.groups() if g not in TABLES and not weights.experts(g)]
        need += sum(4 * weights.columns(g) ** 2 for g in groups)
    if precision == "auto":
        # A byte a level: everything in groups of 32, and much of it at another precision.
        need += int(2.5 * checkpoint.spec.parameters)
    elif durable and precision in (SOURCE, "int4", "int8", "w8a8", "fp8", "nvfp4"):
        need += checkpoint.spec.parameters
    return need


def check_free_space(folder: Path, need: int, what: str) -> None:
    """Raise DoesNotFit where an existing folder has too little space for `what`."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise DoesNotFit(
            f"{what} needs about {format_bytes(need)} of disk, {folder} has {format_bytes(free)} "
            "free; free some or choose another folder"
        )


def check_work_space(work: Path, need: int, bundle: Path, bundle_bytes: int) -> None:
    """Raise DoesNotFit where the cache does not fit, with the bundle if it is on the same disk.

    Args:
        work: a folder of the cache.
        need: bytes still to be written there; below zero counts as none.
        bundle: where the bundle is written.
        bundle_bytes: its size.
    """
    need, what = max(0, need), "the work folder"
    if work.stat().st_dev == bundle.stat().st_dev:
        need, what = need + bundle_bytes, "the bundle with the work folder"
    check_free_space(work, need, what)


def nearest_existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


@contextmanager
def disk_full_as_error(output: Path, need: int, *, work: Path | None = None) -> Iterator[None]:
    """Raise DoesNotFit where the disk runs full in this block."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        left = f"{work} keeps the intermediate results" if work else "nothing was left behind"
        # Of two files, as of a copy, the second is the one that is written.
        path = Path(error.filename2 or error.filename or output)
        in_work = work is not None and path.is_relative_to(work.absolute())
        some = "some" if in_work else f"about {format_bytes(need)}"
        raise DoesNotFit(
            f"the disk is full: cannot write {path} ({error.strerror}); free {some} there; {left}"
        ) from None
