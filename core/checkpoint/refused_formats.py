"""Detect adapters, and quantized checkpoints of formats that edgelm does not read.

They look like the folder of a model, and quantized codes would be read as weights. Every known mark
is checked, and the message names the format. `edgelm.checkpoint.quantized` reads the others.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import shown

FLOAT_TYPES = frozenset({"F64", "F32", "F16", "BF16"})
# Field of config.json -> format.
_FIELDS = {
    "quantization": "MLX",
    "quantize_config": "unknown",
}
# File -> format.
_FILES = {
    "quantization_config.json": "unknown",
    "quanto_qmap.json": "quanto",
    "qmodel.pt": "HQQ",
}
_ADAPTER_FILE = "adapter_config.json"
_WHOLE = ("model.safetensors", "model.safetensors.index.json")
# Names of tensors that only quantized models have -> format.
_NAMES = {
    r"\.(qweight|qzeros|g_idx)$": "GPTQ or AWQ",
    r"\.(weight_packed|weight_shape|weight_zero_point|weight_global_scale|weight_g_idx)$": (
        "compressed-tensors"
    ),
    r"\.weight_scale_inv$": "FP8 in blocks",
    r"\.(weight_scale(_2)?|input_scale|output_scale|act_scale|input_amax|weight_amax)$": (
        "FP8, INT8 or NVFP4"
    ),
    r"\.(SCB|weight_format)$": "bitsandbytes, 8 bits",
    r"\.(weight\.)?(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*)$": (
        "bitsandbytes, 4 bits"
    ),
    r"(_|\.)blocks$": "MXFP4",
    r"\.(scales|biases)$|_scales$": "MLX, GPTQ, AWQ or MXFP4",
    r":(qdata|scale|zero_point)$|_weight_(qdata|scale)$": "torchao",
    r"\.(q_weight|q_scale|q_scale_max|q_perm|q_invperm|q_groups|trellis|suh|svh)$": "EXL2 or EXL3",
    r"\.(W_q|W_nbits)$": "HQQ",
    r"\.(Qidxs|SU|SV|codes|codebooks)$": "QuIP# or AQLM",
    r"\.weight\._(data|scale|shift)$": "quanto",
}
_ADAPTER_NAMES = re.compile(
    r"(^|[._])lora_|^base_model\.model\.|\.base_layer\.|\.modules_to_save\.|prompt_embeddings"
)
_COMPILED = [(re.compile(pattern), method) for pattern, method in _NAMES.items()]


def check_folder(folder: Path) -> None:
    """Raise BadCheckpoint if a folder's files are those of an adapter or a quantized model."""
    if (folder / _ADAPTER_FILE).is_file():
        raise BadCheckpoint(_adapter(folder, f"it holds {_ADAPTER_FILE}"))
    weights = next((path.name for path in folder.glob("adapter_model.*")), None)
    if weights and not any((folder / name).is_file() for name in _WHOLE):
        raise BadCheckpoint(_adapter(folder, f"it holds {weights} and no model.safetensors"))
    for name, method in _FILES.items():
        if (folder / name).is_file():
            raise BadCheckpoint(_quantized(folder, f"{method}: it holds {name}"))


def check_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise BadCheckpoint if a configuration describes quantized weights."""
    for field, method in _FIELDS.items():
        value = config.get(field)
        if not value:
            continue
        named = value.get("quant_method", method) if isinstance(value, dict) else value
        method = named if isinstance(named, str) else method
        raise BadCheckpoint(_quantized(folder, shown(method).strip("'\"")))


def check_names(folder: Path, names: Iterable[str]) -> None:
    """Raise BadCheckpoint if tensor names are those of an adapter or a quantized model."""
    for name in names:
        if _ADAPTER_NAMES.search(name):
            raise BadCheckpoint(_adapter(folder, f"it holds the tensor {shown(name)}"))
        for pattern, method in _COMPILED:
            if pattern.search(name):
                raise BadCheckpoint(_quantized(folder, f"{method}: it holds {shown(name)}"))


def check_types(folder: Path, types: Mapping[str, str]) -> None:
    """Raise BadCheckpoint if a weight is not stored as a floating-point type."""
    for name, dtype in types.items():
        if dtype not in FLOAT_TYPES:
            raise BadCheckpoint(
                _quantized(folder, f"{shown(name)} is stored as {dtype}, expected F32, F16 or BF16")
            )


def _quantized(folder: Path, mark: str) -> str:
    return f"{folder} is already quantized ({mark}); start from the unquantized model"


def _adapter(folder: Path, mark: str) -> str:
    return (
        f"{folder} contains a LoRA or another adapter ({mark}); pass its model and "
        f"--adapter {folder.name}, or merge it into its model first "
        "(peft: model.merge_and_unload().save_pretrained(folder))"
    )
