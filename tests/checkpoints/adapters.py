"""Write LoRA adapters as PEFT saves them, without PEFT."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from edgelm.checkpoint.source import Checkpoint

CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "base_model_name_or_path": "somebody/tiny",
    "r": 4,
    "lora_alpha": 8,
}


def save_adapter(folder: Path, tensors: Mapping[str, torch.Tensor], **config: Any) -> Path:
    """A folder with tensors under PEFT's names, e.g. `model.norm.weight` with its prefix."""
    folder.mkdir(exist_ok=True)
    named = {f"base_model.model.{name}": one.contiguous() for name, one in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    return folder


def random_factors(
    checkpoint: Checkpoint, modules: Sequence[str], *, rank: int = 4, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Random factors for modules such as `model.layers.0.self_attn.q_proj`."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for module in modules:
        rows, columns = checkpoint.shapes[f"{module}.weight"]
        for part, shape in (("A", (rank, columns)), ("B", (rows, rank))):
            noise = 0.1 * torch.randn(shape, generator=generator)
            factors[f"{module}.lora_{part}.weight"] = noise
    return factors


def modules_of(checkpoint: Checkpoint) -> list[str]:
    """Every projection of the layers."""
    return [
        name.removesuffix(".weight")
        for name in checkpoint.shapes
        if name.endswith("_proj.weight") and ".layers." in name
    ]
