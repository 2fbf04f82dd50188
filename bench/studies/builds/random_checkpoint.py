"""Checkpoints of random weights in a given shape, in shards, as published ones are stored."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PretrainedConfig

_PERIOD = 1_000_003  # a prime, so that no two rows are alike
_STEP = 7919  # from the start of one tensor to that of the next
_STD = 0.02  # of the weights of trained decoders
Shape = tuple[int, ...]


def save_random_checkpoint(config: PretrainedConfig, folder: Path) -> int:
    """Write random weights of this shape in bf16, a file per layer, and `config.json`.

    Vectors, such as norms, are ones. At most one layer or embedding is in memory.

    Args:
        config: of a class that transformers has a causal language model for.
        folder: made if it is not there; without a tokenizer.

    Returns:
        The number of parameters.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    shards: dict[str, dict[str, Shape]] = {}
    for name, shape in _stored_shapes(model.state_dict(), tied=config.tie_word_embeddings):
        shards.setdefault(_shard(name), {})[name] = shape
    config.architectures = [type(model).__name__]
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    torch.manual_seed(0)
    twice = (torch.randn(_PERIOD) * _STD).bfloat16().repeat(2)
    ones = torch.ones(1, dtype=torch.bfloat16)
    places, parameters = dict[str, str](), 0
    for file, shapes in shards.items():
        tensors = {}
        for number, (name, shape) in enumerate(shapes.items(), len(places)):
            start = number * _STEP % _PERIOD
            values = ones if len(shape) == 1 else twice[start : start + _PERIOD]
            tensors[name] = tiled(values, shape)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(tensors, file))
        parameters += sum(tensor.numel() for tensor in tensors.values())
    index = {"metadata": {"total_size": 2 * parameters}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return parameters


def tiled(values: torch.Tensor, shape: Shape) -> torch.Tensor:
    """A tensor of this shape that repeats `values`: billions of random numbers would take long."""
    flat = torch.empty(math.prod(shape), dtype=values.dtype)
    for start in range(0, len(flat), len(values)):
        flat[start : start + len(values)] = values[: len(flat) - start]
    return flat.view(shape)


def _shard(name: str) -> str:
    layer = re.search(r"\.layers\.(\d+)\.", name)
    kind = (
        f"layer-{int(layer[1]):02}"
        if layer
        else name.removeprefix("model.").removesuffix(".weight")
    )
    return f"model-{kind}.safetensors"


def _stored_shapes(state: dict[str, torch.Tensor], *, tied: bool) -> Iterator[tuple[str, Shape]]:
    """Names and shapes as in published files: a matrix per expert, a tied output left out."""
    for name, tensor in state.items():
        shape = tuple(tensor.shape)
        stem, _, last = name.rpartition(".")
        if tied and name == "lm_head.weight":
            continue
        if last not in ("gate_up_proj", "down_proj"):
            yield name, shape
            continue
        experts, rows, columns = shape
        parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}[last]
        for expert in range(experts):
            for part in parts:
                yield f"{stem}.{expert}.{part}.weight", (rows // len(parts), columns)
