"""gpt-oss checkpoints with experts in MXFP4, as OpenAI publishes them."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def quantize_experts(folder: Path, *, seed: int = 0) -> None:
    """Replace a saved gpt-oss model's experts by random ones in MXFP4."""
    path = folder / "model.safetensors"
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(path)
    for name in [one for one in tensors if one.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = tensors.pop(name).shape
        shape = (experts, rows, columns // 32)
        blocks = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(120, 125, shape, generator=generator, dtype=torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"],
    }
    (folder / "config.json").write_text(json.dumps(config))
