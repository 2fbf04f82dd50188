"""Specs that earlier versions wrote into bundles are read as what they meant."""

from typing import Any

import msgspec
import pytest

from edgelm.spec.decoder import DecoderSpec
from tests.conftest import TinyFactory

# What came after the first release, with defaults.
NEW = ("gated_mlp", "qk_norm_after_rope", "attention_sinks", "fused_gate_up", "attention_gate")
NEW_OF_LAYERS = ("query_growth", "mixer")


def as_written_before(spec: DecoderSpec) -> Any:
    values = msgspec.to_builtins(spec)
    for name in NEW:
        del values[name]
    for layer in values["layers"]:
        for name in NEW_OF_LAYERS:
            del layer[name]
        if layer["rope"]:
            del layer["rope"]["interleaved"]
    return values


@pytest.mark.parametrize("name", ["llama-untied", "phi3", "smollm3", "gemma3", "granite"])
def test_they_are_the_same_decoder(tiny: TinyFactory, name: str) -> None:
    spec = tiny(name).checkpoint.spec
    older = msgspec.convert(as_written_before(spec), DecoderSpec)
    assert older.parameters == spec.parameters
    assert older.linear_shapes == spec.linear_shapes
    assert older.layers == spec.layers
    assert not older.is_hybrid
    assert not older.states
    assert older.fuses_gate_up == (name == "phi3")


@pytest.mark.parametrize("name", ["lfm2", "qwen3.5", "granite-swa", "ministral3"])
def test_new_ones_survive_a_bundle(tiny: TinyFactory, name: str) -> None:
    spec = tiny(name).checkpoint.spec
    read = msgspec.json.decode(msgspec.json.encode(spec), type=DecoderSpec)
    assert read == spec
