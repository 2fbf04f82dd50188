"""Every method is what its row of the table says."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from edgelm.export.precision.sensitivity import measure_sensitivity
from edgelm.export.quantize.hqq import hqq
from edgelm.export.quantize.methods import METHODS, quantize_by
from edgelm.export.quantize.prepare import prepare
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.source.reference import Reference
from edgelm.export.source.text import Passage
from edgelm.export.work.cache import ArtifactCache
from edgelm.quantize.gptq import gptq
from edgelm.quantize.precision import Fp8, Int4, Int8, Nvfp4
from edgelm.quantize.rtn import quantize
from tests.conftest import TinyFactory

TOKENS = torch.from_numpy(np.random.default_rng(0).integers(3, 128, (2, 24)))
TEXT = Passage(TOKENS, "text", "0")


@pytest.fixture(scope="module")
def inputs() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(200, 64, generator=generator) @ torch.randn(64, 64, generator=generator)


def test_methods_by_precision(inputs: torch.Tensor) -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    hessian = inputs.T @ inputs / len(inputs)
    mean_square = hessian.diagonal()

    def levels(name: str, precision: Int4 | Int8) -> torch.Tensor:
        return quantize_by(METHODS[name], weight, precision, mean_square, lambda: hessian).levels

    for precision in (Int4(32), Int8(32)):
        nearest = quantize(weight, precision, mean_square).levels
        assert torch.equal(levels("rtn", precision), nearest)
        assert torch.equal(levels("awq", precision), nearest)
        assert torch.equal(levels("gptq", precision), gptq(weight, precision, hessian).levels)
        assert torch.equal(levels("hqq", precision), hqq(weight, precision).levels)
    assert torch.equal(levels("auto", Int4(32)), gptq(weight, Int4(32), hessian).levels)
    assert torch.equal(levels("auto", Int8(32)), quantize(weight, Int8(32), mean_square).levels)


def test_without_a_hessian_levels_are_nearest() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    quantized = quantize_by(METHODS["auto"], weight, Int4(32), None, None)
    assert torch.equal(quantized.levels, quantize(weight, Int4(32)).levels)


def test_better_methods_cost_less(calm: TinyFactory, tmp_path: Path) -> None:
    reference = Reference(calm("llama").checkpoint)

    def cost(name: str) -> float:
        method, cache = METHODS[name], ArtifactCache(tmp_path / name)
        cache.folder.mkdir()
        weights, stats = prepare(reference, TEXT, method, {Int4}, kv="fp32", cache=cache)
        quantizer = Quantizer(weights, method, stats=stats)
        measured = measure_sensitivity(reference, quantizer, TOKENS, Int4(32))
        return sum(kl for group, kl in measured.items() if group != "lm_head")

    assert cost("auto") < 0.7 * cost("rtn")
    assert cost("gptq") < 0.7 * cost("hqq")


@pytest.mark.parametrize("kind", [Fp8, Nvfp4])
def test_float_formats_are_quantized_by_the_method(
    calm: TinyFactory, tmp_path: Path, kind: type[Fp8 | Nvfp4]
) -> None:
    reference = Reference(calm("llama").checkpoint)
    down = "layers.1.mlp.down"

    def quantizer_of(name: str) -> Quantizer:
        method, cache = METHODS[name], ArtifactCache(tmp_path / name)
        cache.folder.mkdir(exist_ok=True)
        weights, stats = prepare(reference, TEXT, method, {kind}, kv="fp32", cache=cache)
        assert (stats.hessians is not None) == (method.rounding == "gptq")
        assert (weights.smoothing is not None) == (method.scaling == "awq")
        return Quantizer(weights, method, stats=stats, cache=cache)

    def rounded(quantizer: Quantizer, matrix: Callable[[], torch.Tensor]) -> torch.Tensor:
        if kind is Nvfp4:
            return quantizer.nvfp4(down, matrix).dequantize()
        values, scales = quantizer.fp8(down, matrix)
        return values.float() * scales[:, None]

    gptq_quantizer = quantizer_of("gptq")
    plain = gptq_quantizer.weights
    assert gptq_quantizer.stats is not None
    hessian, source = gptq_quantizer.stats.hessian(down), plain.matrix(down)

    def error(name: str) -> float:
        """In the outputs, whatever was folded into the weights."""
        quantizer = quantizer_of(name)
        found = rounded(quantizer, lambda: quantizer.weights.matrix(down))
        again = rounded(quantizer, lambda: pytest.fail("read again"))
        assert torch.equal(found, again), "cached"
        [back] = quantizer.weights.unfold(down, found).values()
        [whole] = plain.unfold(down, source).values()
        return float((((back - whole) @ hessian) * (back - whole)).sum())

    nearest = error("rtn")
    assert error("auto") < 0.7 * nearest
    assert error("gptq") < 0.7 * nearest
