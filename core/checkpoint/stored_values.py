"""Read one tensor's values, and see that they are numbers and still the same file's.

torch is imported on the first read.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from edgelm.checkpoint.safetensors_header import StoredTensor
from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import shown
from edgelm.reasons import reason

if TYPE_CHECKING:
    import torch

_MAX_FLOAT32 = 3.4028234663852886e38


Stamp = tuple[int, int, int, int]


def stamp(path: Path) -> Stamp | None:
    """What changes when a file is replaced or written to; None if it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def check_unchanged(path: Path, before: Stamp | None) -> None:
    """Raise BadCheckpoint if a file is not the one it was: results would mix two models."""
    if stamp(path) != before:
        raise BadCheckpoint(
            f"{path} was changed or replaced after it was opened; start again when it is complete"
        )


def read_tensor(stored: StoredTensor) -> "torch.Tensor":
    """A tensor of a safetensors file in its stored type, mapped from the file.

    Raises:
        BadCheckpoint: the file is gone or another one by now.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(stored.path, framework="pt") as opened:
            return opened.get_tensor(stored.name)  # type: ignore[no-any-return]
    except (SafetensorError, OSError) as error:
        raise BadCheckpoint(
            f"{stored.path}: {shown(stored.name)} cannot be read ({reason(error)}); was the file "
            "changed after it was opened?"
        ) from None


def check_finite(tensor: "torch.Tensor", what: str) -> None:
    """Raise BadCheckpoint if a tensor holds NaN, infinity or numbers that fp32 cannot hold.

    One NaN in a weight makes every result NaN, which some comparisons pass for a good one.
    """
    if not tensor.numel():
        return
    # The smallest and the largest value are NaN if any is; this needs no memory of its own.
    least, most = (float(bound) for bound in tensor.aminmax())
    if least >= -_MAX_FLOAT32 and most <= _MAX_FLOAT32:
        return
    bad = sum(int((~part.float().isfinite()).sum()) for part in tensor.flatten().split(2**20))
    raise BadCheckpoint(
        f"{what} holds {bad:,} values of {tensor.numel():,} that are NaN, infinite or too large "
        "for fp32; the model was damaged in training or conversion, download or convert it again"
    )
