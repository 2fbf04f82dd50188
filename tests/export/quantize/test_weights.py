"""What is folded into a matrix can be taken out again."""

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from edgelm.export.quantize.methods import METHODS
from edgelm.export.quantize.prepare import prepare
from edgelm.export.quantize.weights import Weights
from edgelm.export.source.reference import Reference
from edgelm.export.source.text import Passage
from edgelm.export.work.cache import ArtifactCache
from edgelm.quantize.precision import W8A8, Int4, WeightPrecision
from tests.conftest import TinyFactory

TEXT = Passage(torch.from_numpy(np.random.default_rng(0).integers(3, 128, (2, 24))), "text", "0")
FAMILIES = ["llama", "llama-untied", "qwen3", "granite", "olmo2", "phi3", "gemma2", "gemma3"]
FAMILIES += ["stablelm", "starcoder2"]


@pytest.mark.parametrize("kind", [Int4, W8A8])
@pytest.mark.parametrize("family", FAMILIES)
def test_unfold_is_the_inverse_of_matrix(
    calm: TinyFactory, tmp_path: Path, family: str, kind: type[WeightPrecision]
) -> None:
    checkpoint = calm(family).checkpoint
    reference = Reference(checkpoint)
    weights, _ = prepare(
        reference, TEXT, METHODS["awq"], {kind}, kv="int8", cache=ArtifactCache(tmp_path)
    )
    folded = 0
    for group in weights.groups():
        matrix = weights.matrix(group)
        plain = torch.cat([checkpoint.tensor(name).float() for name in weights.tensor_names(group)])
        folded += not torch.equal(matrix, plain)
        for name, tensor in weights.unfold(group, matrix).items():
            torch.testing.assert_close(tensor, checkpoint.tensor(name).float())
    assert folded >= checkpoint.spec.num_hidden_layers


def test_norms_are_divided_with_their_biases(calm: TinyFactory, tmp_path: Path) -> None:
    checkpoint = calm("starcoder2").checkpoint
    cache, awq = ArtifactCache(tmp_path), METHODS["awq"]
    weights, _ = prepare(Reference(checkpoint), TEXT, awq, {Int4}, kv="fp32", cache=cache)
    plain, smoothing = Weights(checkpoint), weights.smoothing
    assert smoothing is not None
    assert len(smoothing.norms) == 2 * checkpoint.spec.num_hidden_layers
    for name in smoothing.norms.values():
        divisor, bias, before = smoothing.norm(name), weights.norm_bias(name), plain.norm_bias(name)
        assert divisor is not None
        assert bias is not None
        assert before is not None
        torch.testing.assert_close(weights.norm(name) * divisor, plain.norm(name))
        torch.testing.assert_close(bias * divisor, before)
        assert not torch.allclose(bias, before)
    assert Weights(calm("llama").checkpoint).norm_bias("norm") is None


def test_biases_go_by_the_spec(tiny: TinyFactory) -> None:
    checkpoint = tiny("llama-untied").checkpoint
    assert Weights(checkpoint).bias("layers.0.attention.o") is not None
    plain = msgspec.structs.replace(checkpoint.spec, qkv_bias=False, o_bias=False, mlp_bias=False)
    weights = Weights(dataclasses.replace(checkpoint, spec=plain))
    assert all(weights.bias(group) is None for group in weights.groups())
