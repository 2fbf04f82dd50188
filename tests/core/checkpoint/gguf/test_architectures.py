"""Every architecture as llama.cpp's converter writes it, beside the model that was converted.

What the converter writes was compared with llama.cpp itself: it computes the same logits of these
files as transformers does of the checkpoints (docs/decisions/quantized-sources.md).
"""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from edgelm.checkpoint.gguf.architectures import ARCHITECTURES
from edgelm.checkpoint.source import Checkpoint, open_checkpoint
from edgelm.compress.model import load_model
from edgelm.errors import BadCheckpoint
from edgelm.spec.decoder import DecoderSpec
from tests.checkpoints.gguf_files import write_gguf
from tests.checkpoints.models import tiny_model

YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0}
YARN |= {"original_max_position_embeddings": 32}
PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}
# Fields that files cannot hold have the value that llama.cpp computes with.
OPTIONS: dict[str, dict[str, Any]] = {
    "gemma": {},
    "smollm3": {},
    "granite": {},
    "arcee": {},
    "ministral3": {
        "rope_parameters": YARN
        | {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.25}
    },
    "olmo2": {},
    "olmo3": {"rope_parameters": {"full_attention": YARN, "sliding_attention": PLAIN}},
    "exaone4": {},
    "seed-oss": {},
    "hunyuan": {},
    "ernie4.5": {},
    "glm4": {},
    "lfm2": {},
}


def written(name: str, folder: Path, kind: str = "F32", **options: Any) -> tuple[Any, Checkpoint]:
    """A tiny model, and its file."""
    over = {key: options.pop(key) for key in ("metadata", "integers") if key in options}
    model = tiny_model(name, **OPTIONS.get(name, {}) | options)
    return model, open_checkpoint(write_gguf(model, folder / "model.gguf", kind, **over))


def rounded(value: Any) -> Any:
    """With numbers as fp32 has them."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return float(np.float32(value)) if isinstance(value, float) else value


@pytest.mark.parametrize("name", OPTIONS)
def test_the_file_is_the_model(tmp_path: Path, name: str) -> None:
    model, checkpoint = written(name, tmp_path)
    expected = DecoderSpec.from_hf(model.config.to_dict())
    assert rounded(msgspec.to_builtins(checkpoint.spec)) == rounded(msgspec.to_builtins(expected))
    model.save_pretrained(tmp_path / "folder")
    folder = open_checkpoint(tmp_path / "folder")
    assert checkpoint.shapes == folder.shapes
    for tensor in folder.shapes:
        torch.testing.assert_close(
            checkpoint.tensor(tensor), folder.tensor(tensor).float(), rtol=0, atol=1e-6
        )


def assert_same_logits(model: Any, checkpoint: Checkpoint) -> None:
    """Of transformers' model and of what is read of its file."""
    tokens = torch.arange(5, 45)[None] * 7 % 120
    read = load_model(checkpoint)
    for each in (model, read):
        each.set_attn_implementation("eager")
        each.eval()
    with torch.inference_mode():
        expected, found = model(tokens).logits, read(tokens).logits
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", OPTIONS)
def test_logits_are_those_of_the_model(tmp_path: Path, name: str) -> None:
    assert_same_logits(*written(name, tmp_path))


@pytest.mark.parametrize("name", ["lfm2", "granite", "glm4"])
def test_quantized_matrices_keep_their_levels(tmp_path: Path, name: str) -> None:
    options = {"block_multiple_of": 32} if name == "lfm2" else {}
    _, checkpoint = written(name, tmp_path, "Q8_0", **options)
    matrices = [tensor for tensor, shape in checkpoint.shapes.items() if len(shape) == 2]
    assert checkpoint.packed.keys() == set(matrices)
    for tensor, packed in checkpoint.packed.items():
        assert torch.equal(packed.read().dequantize(), checkpoint.tensor(tensor))


def test_transformers_reads_only_some_architectures() -> None:
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    read = {name for name, row in ARCHITECTURES.items() if row.by_transformers}
    assert read == set(ARCHITECTURES) & set(GGUF_SUPPORTED_ARCHITECTURES) - {"lfm2"}


def test_mistral_small_is_a_llama(tmp_path: Path) -> None:
    model = tiny_model("ministral3", **OPTIONS["ministral3"])
    model.config.rope_parameters |= {"llama_4_scaling_beta": 0.0}
    path = write_gguf(model, tmp_path / "model.gguf", without=("attention.temperature_scale",))
    assert open_checkpoint(path).config["model_type"] == "llama"


def test_exaone_without_windows_rotates_every_layer(tmp_path: Path) -> None:
    model = tiny_model("exaone4", layer_types=["full_attention"] * 4)
    model.config.sliding_window = None
    for layer in model.model.layers:
        layer.self_attn.sliding_window = None
    windows = ("sliding_window", "sliding_window_pattern")
    checkpoint = open_checkpoint(write_gguf(model, tmp_path / "model.gguf", without=windows))
    assert all(layer.rope is not None for layer in checkpoint.spec.layers)
    assert not any(layer.window for layer in checkpoint.spec.layers)
    assert_same_logits(model, checkpoint)


@pytest.mark.parametrize("counts", [[0, 2], [0] * 5, [0, 2, 0, 1, 2], [0, 2, 0, -2, 2]])
def test_lfm2_needs_a_number_of_heads_for_each_layer(tmp_path: Path, counts: list[int]) -> None:
    model = tiny_model("lfm2")
    path = write_gguf(
        model, tmp_path / "model.gguf", arrays={"lfm2.attention.head_count_kv": counts}
    )
    with pytest.raises(BadCheckpoint, match=r"head_count_kv is an array of \d items, expected one"):
        open_checkpoint(path)


def test_two_factors_for_one_attention(tmp_path: Path) -> None:
    factor = {"mistral3.rope.scaling.attn_factor": 1.5}
    with pytest.raises(BadCheckpoint, match=r"attn_factor and by yarn_log_multiplier"):
        written("ministral3", tmp_path, metadata=factor)
