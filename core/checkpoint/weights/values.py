"""Read a tensor's values, and check that they are finite and the file is unchanged.

torch is imported on the first read.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from edgelm.checkpoint.weights.safetensors_header import StoredTensor
from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import shown
from edgelm.reasons import reason

if TYPE_CHECKING:
    import torch

_MAX_FLOAT32 = 3.4028234663852886e38


Stamp = tuple[int, int, int, int]


def stamp(path: Path) -> Stamp | None:
    """Values that change when a file is replaced or written to; None if it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def check_unchanged(path: Path, before: Stamp | None) -> None:
    """Raise BadCheckpoint if a file has changed: results would mix two models."""
    if stamp(path) != before:
        raise BadCheckpoint(
            f"{path} was changed or replaced after it was opened; retry when it is complete"
        )


def read_tensor(stored: StoredTensor) -> "torch.Tensor":
    """A tensor of a safetensors file in its stored type, mapped from the file.

    Raises:
        BadCheckpoint: the file was removed or replaced.
    """
    from safetensors import SafetensorError, safe_open

    if stored.parts:
        import torch

        return torch.cat([read_tensor(part) for part in stored.parts]).view(stored.shape)
    try:
        with safe_open(stored.path, framework="pt") as opened:
            return opened.get_tensor(stored.name)  # type: ignore[no-any-return]
    except (SafetensorError, OSError, RuntimeError) as error:  # torch's, for a file that is gone
        raise BadCheckpoint(
            f"{stored.path}: {shown(stored.name)} cannot be read ({reason(error)}); was the file "
            "changed after it was opened?"
        ) from None


def check_finite(tensor: "torch.Tensor", what: str) -> None:
    """Raise BadCheckpoint if a tensor has NaN, infinity or numbers beyond the range of fp32.

    One NaN in a weight makes all results NaN, and comparisons with NaN can pass unnoticed.
    """
    if not tensor.numel():
        return
    # Minimum and maximum are NaN if any value is; this needs no extra memory.
    lowest, highest = (float(bound) for bound in tensor.aminmax())
    if lowest >= -_MAX_FLOAT32 and highest <= _MAX_FLOAT32:
        return
    bad = sum(int((~part.float().isfinite()).sum()) for part in tensor.flatten().split(2**20))
    raise BadCheckpoint(
        f"{what} has {bad:,} values of {tensor.numel():,} that are NaN, infinite or too large "
        "for fp32; the model was damaged in training or conversion, download or convert it again"
    )
