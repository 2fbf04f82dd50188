"""Odd folders compute what `from_pretrained` computes of them: the graph, and the reference."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import AutoModelForCausalLM

from edgelm.checkpoint.source import open_checkpoint
from edgelm.export.source.reference import Reference
from tests.checkpoints.weight_folders import Tensors, edit_config, store, store_shards, tensors_of
from tests.conftest import TinyFactory
from tests.export.graphs import CONTEXT, build_session

LENGTH = 48  # longer than every window and original context below
TOKENS = np.random.default_rng(0).integers(3, 128, LENGTH)
TOLERANCE = 1e-4  # of the largest logit
S, F = "sliding_attention", "full_attention"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
LINEAR = {"rope_type": "linear", "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LONG = {"rope_type": "longrope", "short_factor": [1.5] * 16, "long_factor": [2.0] * 16}
GRANITE = {
    "attention_multiplier": 0.5,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.3,
    "logits_scaling": 4.0,
}
GEMMA = {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 7}
Logits = npt.NDArray[np.float32]

# What is set in config.json of a tiny model: fields that its class does not read, and fields that
# several places or spellings compete for.
CONFIGS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"sliding_window": 8, "layer_types": [S, F, S, F]}),
    ("llama", GRANITE | GEMMA | {"hidden_activation": "gelu"}),
    ("llama", {"no_rope_layers": [1, 0, 1, 0], "partial_rotary_factor": 0.5}),
    ("llama", {"rope_scaling": LINEAR, "rope_theta": 700.0}),
    ("llama", {"rope_parameters": {"type": "linear", "factor": 2.0}, "rope_theta": 700.0}),
    ("llama", {"rope_parameters": LLAMA3, "original_max_position_embeddings": 32}),
    ("llama", {"rope_parameters": LLAMA3}),
    ("llama", {"rope_parameters": YARN, "original_max_position_embeddings": 64}),
    ("llama", {"rope_parameters": YARN | {"factor": None}}),
    ("llama", {"rope_parameters": YARN | {"truncate": False, "beta_fast": 16, "beta_slow": 2}}),
    ("mistral", {"attention_bias": True, "mlp_bias": True}),
    ("mistral", {"layer_types": [S, F, F, S]}),
    ("mistral", {"layer_types": None}),
    ("mistral", {"max_window_layers": 2, "use_sliding_window": False}),
    ("qwen2", {"layer_types": [S, F, S, F], "sliding_window": 8, "use_sliding_window": True}),
    ("qwen2", {"layer_types": None, "sliding_window": 8, "use_sliding_window": True}),
    ("qwen2", {"attention_bias": False, "mlp_bias": True}),
    ("qwen3", {"layer_types": None, "sliding_window": 8, "use_sliding_window": True} | GRANITE),
    ("smollm3", {"layer_types": [S, F, S, F], "sliding_window": 8}),
    ("smollm3", {"layer_types": None, "sliding_window": 8, "use_sliding_window": True}),
    ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 2, "rope_parameters": None}),
    ("granite", {"sliding_window": 8, "query_pre_attn_scalar": 4, "logits_scaling": 2}),
    ("olmo2", {"sliding_window": 8, "mlp_bias": True, "attention_multiplier": 3.0}),
    ("phi3", {"attention_bias": True, "mlp_bias": True, "layer_types": [F] * 4}),
    ("phi3-partial", {"rope_scaling": LONG, "original_max_position_embeddings": 64}),
    ("gemma2", {"sliding_window_pattern": 3, "layer_types": None, "hidden_act": "silu"}),
    ("gemma2", {"layer_types": [F, F, S, F], "attn_logit_softcapping": None}),
    ("gemma3", {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 5.0}),
    ("gemma3", {"sliding_window_pattern": 3, "layer_types": None}),
    ("gemma3", {"_sliding_window_pattern": 3, "layer_types": None}),
    ("gemma3", {"rope_scaling": LINEAR, "rope_parameters": None, "rope_theta": 5000.0}),
    ("gemma3", {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_parameters": None}),
    ("gemma3", {"rope_parameters": {F: YARN | {"rope_theta": 300.0}, S: LINEAR}}),
]


def logits_of_transformers(folder: Path) -> Logits:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
    ).eval()
    with torch.inference_mode():
        logits: Logits = model(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    return logits


def assert_same_logits(folder: Path, graphs: Path) -> None:
    expected = logits_of_transformers(folder)
    checkpoint = open_checkpoint(folder)
    reference = Reference(checkpoint, context=CONTEXT)
    hidden = reference.hidden_states(torch.from_numpy(TOKENS)[None])[0]
    tolerance = TOLERANCE * float(np.abs(expected).max())
    logits = reference.logits(hidden, reference.head()).numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance)
    graphs.mkdir()
    with build_session(checkpoint, graphs) as session:
        ours = session.advance(TOKENS, logits=LENGTH)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "over"), CONFIGS, ids=[f"{name}-{'-'.join(over)[:60]}" for name, over in CONFIGS]
)
def test_configurations(tiny: TinyFactory, tmp_path: Path, name: str, over: dict[str, Any]) -> None:
    folder = shutil.copytree(tiny(name).folder, tmp_path / "model")
    edit_config(folder, **over)
    assert_same_logits(folder, tmp_path / "graph")


def own_head(folder: Path, tensors: Tensors) -> None:
    store(folder, tensors | {HEAD: tensors[EMBEDDING].flip(0)})


def own_head_in_a_shard(folder: Path, tensors: Tensors) -> None:
    store_shards(folder, tensors, {HEAD: tensors[EMBEDDING].flip(0)})


def equal_head(folder: Path, tensors: Tensors) -> None:
    store(folder, tensors | {HEAD: tensors[EMBEDDING]})


def only_the_head(folder: Path, tensors: Tensors) -> None:
    tensors[HEAD] = tensors.pop(EMBEDDING)
    store(folder, tensors)


def base_model(folder: Path, tensors: Tensors) -> None:
    store(folder, {name.removeprefix("model."): values for name, values in tensors.items()})


def base_model_beside_its_own_head(folder: Path, tensors: Tensors) -> None:
    tensors[HEAD] = tensors[EMBEDDING].flip(0)
    base_model(folder, tensors)


def index_left_behind(folder: Path, tensors: Tensors) -> None:
    store_shards(folder, {name: torch.zeros_like(values) for name, values in tensors.items()})
    store(folder, tensors)


def backup_beside(folder: Path, tensors: Tensors) -> None:
    store(folder, {name: torch.zeros_like(values) for name, values in tensors.items()}, "z_old")


def buffers_beside(folder: Path, tensors: Tensors) -> None:
    store(folder, tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})


def types_mixed(folder: Path, tensors: Tensors) -> None:
    types = (torch.float16, torch.bfloat16, torch.float32)
    names = enumerate(tensors)
    store(folder, {name: tensors[name].to(types[index % 3]) for index, name in names})


@pytest.mark.parametrize(
    "change",
    [
        *(own_head, own_head_in_a_shard, equal_head, only_the_head, base_model),
        *(base_model_beside_its_own_head, index_left_behind, backup_beside, buffers_beside),
        types_mixed,
    ],
)
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_weights(
    tiny: TinyFactory, tmp_path: Path, name: str, change: Callable[[Path, Tensors], None]
) -> None:
    folder = shutil.copytree(tiny(name).folder, tmp_path / "model")
    change(folder, tensors_of(folder))
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    assert_same_logits(folder, tmp_path / "graph")
