"""What layers without attention remember is part of the planned memory and time."""

from typing import Any

from edgelm.bundle import StateTensor
from edgelm.devices.planner.cost_model.work import work_of
from edgelm.devices.planner.memory.memory_need import sequence_state_bytes
from edgelm.runtime.engines.recurrent_state import HostState, SnapshotHistory
from edgelm.spec.decoder import DecoderSpec

# In the shape of Granite 4 H 350M: 28 layers of 48 heads with states of 128 by 32.
GRANITE: dict[str, Any] = {
    "model_type": "granitemoehybrid",
    "num_hidden_layers": 32,
    "hidden_size": 768,
    "shared_intermediate_size": 2048,
    "intermediate_size": 2048,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "num_local_experts": 0,
    "vocab_size": 100352,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "mamba_n_heads": 48,
    "mamba_d_state": 128,
    "layer_types": (["mamba"] * 7 + ["attention"]) * 4,
}
SPEC = DecoderSpec.from_hf(GRANITE)
ONE = 28 * 4 * (48 * 128 * 32 + 3 * (48 * 32 + 2 * 128))


def test_a_session_holds_its_state_and_snapshots() -> None:
    assert SPEC.state_bytes(4) == ONE
    assert sequence_state_bytes(SPEC, "onnxruntime") == 5 * ONE
    assert sequence_state_bytes(SPEC, "tensorrt") == 6 * ONE  # what is read and what is written


def test_a_session_keeps_no_more_snapshots_than_planned() -> None:
    tensor = StateTensor(0, "matrix", "float32", (48, 128, 1000), "past", "present")
    state = HostState((tensor,))
    history = SnapshotHistory(state)
    for length in range(16, 16 * 12, 16):
        history.advanced(length, decoded=False)
    held = sum(array.nbytes for arrays in history._taken.values() for array in arrays)
    assert held == 4 * 4 * 48 * 128 * 1000


def test_a_token_reads_and_writes_the_state() -> None:
    work = work_of(SPEC, linear_bits=4, head_bits=8)
    cache = 4 * 2 * 4 * 64 * 2  # layers, keys and values, heads, channels, bytes
    assert work.cache_bytes(0) == 2 * ONE
    assert work.cache_bytes(100) == 2 * ONE + 100 * cache
    assert work.layers == 32
