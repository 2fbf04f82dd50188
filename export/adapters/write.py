"""Write a bundle's adapters."""

from pathlib import Path

from safetensors.torch import save_file

from edgelm.bundle.records.adapters import FOLDER, AdapterRecord, adapter_file
from edgelm.export.adapters.factors import group_factors
from edgelm.export.adapters.switchable import SwitchableAdapter
from edgelm.export.quantize.weights import Weights
from edgelm.files.hashing import file_sha256


def write_adapter(folder: Path, adapter: SwitchableAdapter, weights: Weights) -> AdapterRecord:
    """Write an adapter's file into a bundle.

    Args:
        folder: the bundle.
        adapter: what is written.
        weights: those that the bundle's graph was written of, with what is folded into them.

    Raises:
        BadCheckpoint: a factor has NaN or infinite values.
    """
    tensors, rank = {}, 0
    for group in adapter.groups:
        factors = group_factors(adapter.lora, weights, group)
        tensors[f"{group}.down"], tensors[f"{group}.up"] = factors
        rank = max(rank, factors.down.shape[1])
    file = adapter_file(adapter.name)
    (folder / FOLDER).mkdir(exist_ok=True)
    save_file(tensors, folder / file)
    return AdapterRecord(
        adapter.name,
        file,
        rank,
        source_sha256=file_sha256(adapter.lora.path),
        base=_public(adapter.lora.settings.base),
    )


def _public(base: str) -> str:
    """A model's name without the folders of whoever trained the adapter."""
    is_path = base.startswith(("/", ".", "~")) or "\\" in base
    return base.replace("\\", "/").rstrip("/").rpartition("/")[2] if is_path else base
