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


def test_biases_go_by_the_spec(tiny: TinyFactory) -> None:
    checkpoint = tiny("llama-untied").checkpoint
    assert Weights(checkpoint).bias("layers.0.attention.o") is not None
    plain = msgspec.structs.replace(checkpoint.spec, qkv_bias=False, o_bias=False, mlp_bias=False)
    weights = Weights(dataclasses.replace(checkpoint, spec=plain))
    assert all(weights.bias(group) is None for group in weights.groups())
