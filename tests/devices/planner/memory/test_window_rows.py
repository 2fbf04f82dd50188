"""Layers that keep only their window, as the planner counts them for each engine."""

from typing import Any

import pytest

from edgelm.devices.planner.estimate import estimate
from edgelm.devices.planner.memory.snapshots import SNAPSHOTS
from edgelm.devices.planner.memory.window_rows import cache_bytes, window_rows
from edgelm.devices.profile import load_profile
from edgelm.planning import PlanRequest
from edgelm.spec.decoder import DecoderSpec

# In the shape of Gemma 3 1B: 22 of 26 layers have a window of 512.
GEMMA: dict[str, Any] = {
    "model_type": "gemma3_text",
    "num_hidden_layers": 26,
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "vocab_size": 262144,
    "max_position_embeddings": 32768,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}
SPEC = DecoderSpec.from_hf(GEMMA)
CONTEXT = 32768
ROW = 2 * 256  # keys and values of a token in int8


def planned(spec: DecoderSpec, target: str, **request: Any) -> int:
    return estimate(spec, load_profile(target), PlanRequest("int8", **request)).kv_bytes


def test_layers_keep_a_window_and_some_rows_beside_it() -> None:
    rows = window_rows(SPEC, CONTEXT)
    assert set(rows.values()) == {640}
    assert [index for index in range(26) if index not in rows] == [5, 11, 17, 23]


@pytest.mark.parametrize("context", [256, 640, 3199])
def test_none_where_the_window_and_its_snapshots_take_more_than_all_tokens(context: int) -> None:
    assert window_rows(SPEC, context) == {}
    assert window_rows(SPEC, 3200)


@pytest.mark.parametrize("context", [3200, 8192, CONTEXT])
def test_never_more_memory_than_all_tokens_take(context: int) -> None:
    cut = cache_bytes(SPEC, "int8", context, window_rows(SPEC, context))
    assert cut <= cache_bytes(SPEC, "int8", context, {}) == 26 * ROW * context


def test_a_cpu_keeps_windows_and_other_engines_all_tokens() -> None:
    whole = 26 * ROW * CONTEXT
    windows = ROW * (4 * CONTEXT + 22 * (1 + SNAPSHOTS) * 640)
    assert whole / windows > 4
    assert planned(SPEC, "cpu", context=CONTEXT) == windows
    assert planned(SPEC, "cpu", kv="int8", context=CONTEXT) == windows
    assert planned(SPEC, "cpu", kv="fp32", context=CONTEXT) == 4 * windows
    assert planned(SPEC, "jetson-orin-nano-super", context=CONTEXT) == 2 * whole
    assert planned(SPEC, "cpu", context=2048) == 26 * ROW * 2048


def test_layers_whose_keys_and_values_others_read_keep_all_tokens() -> None:
    spec = DecoderSpec.from_hf(
        GEMMA
        | {
            "model_type": "gemma4_text",
            "num_hidden_layers": 7,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2
            + ["full_attention"],
            "num_kv_shared_layers": 4,
            "global_head_dim": 512,
            "hidden_size_per_layer_input": 0,
            "sliding_window": 512,
        }
    )
    assert set(window_rows(spec, CONTEXT)) == {0}
