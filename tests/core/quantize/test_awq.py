"""Evening out input channels changes nothing but what rounding does."""

import pytest
import torch

from edgelm.export.quantize.methods import METHODS, quantize_by
from edgelm.export.quantize.weights import Weights
from edgelm.quantize.awq import Smoothing, factors
from edgelm.quantize.precision import Int4
from tests.checkpoints.models import tiny_model
from tests.conftest import TinyFactory

TOKENS = torch.randint(3, 128, (2, 16), generator=torch.Generator().manual_seed(0))
FAMILIES = ["llama", "llama-untied", "qwen3", "granite", "phi3", "olmo2", "gemma2", "gemma3"]
FAMILIES += ["gemma3n", "stablelm", "starcoder2", "cohere", "gpt-neox"]


def energies(weights: Weights) -> dict[str, torch.Tensor]:
    """Mean squares over six orders of magnitude, for every group."""
    generator = torch.Generator().manual_seed(1)
    shapes = weights.checkpoint.shapes
    columns = {group: shapes[weights.tensor_names(group)[0]][1] for group in weights.groups()}
    return {g: torch.randn(n, generator=generator).mul(3).exp() for g, n in columns.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_folded_factors_cancel(tiny: TinyFactory, name: str) -> None:
    checkpoint = tiny(name).checkpoint
    weights, spec = Weights(checkpoint), checkpoint.spec
    smoothing = Smoothing.from_mean_squares(spec, energies(weights))
    assert smoothing.factors
    model = tiny_model(name).double()
    with torch.no_grad():
        before = model(TOKENS).logits
        for group in weights.groups():
            names = weights.tensor_names(group)
            parameters = [model.get_parameter(name) for name in names]
            rows = smoothing.rows(group)
            if rows is not None:
                for parameter, part in zip(
                    parameters, rows.split([len(p) for p in parameters]), strict=True
                ):
                    parameter /= part[:, None]
                biases = [name.removesuffix("weight") + "bias" for name in names]
                if checkpoint.has(biases[0]):
                    for bias, part in zip(biases, rows.chunk(len(biases)), strict=True):
                        model.get_parameter(bias).div_(part)
            columns = smoothing.columns(group)
            if columns is not None:
                for parameter in parameters:
                    parameter *= columns
        for norm, parameter in model.base_model.named_parameters():
            divisor = smoothing.norm(norm.rpartition(".")[0])
            if divisor is not None:
                one = 1.0 if spec.norm_plus_one else 0.0  # no such family has biases of norms
                parameter.copy_((parameter + one) / divisor - one)
        after = model(TOKENS).logits
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4 * float(before.abs().max()))


def test_norms_before_are_those_of_the_family(tiny: TinyFactory) -> None:
    def norms(name: str) -> set[str]:
        weights = Weights(tiny(name).checkpoint)
        smoothing = Smoothing.from_mean_squares(weights.checkpoint.spec, energies(weights))
        return {norm for norm in smoothing.norms.values() if norm.startswith("layers.1.")}

    pre = {"layers.1.input_layernorm", "layers.1.post_attention_layernorm"}
    assert norms("llama") == pre
    assert norms("gemma2") == {"layers.1.input_layernorm", "layers.1.pre_feedforward_layernorm"}
    assert norms("olmo2") == set()
    assert norms("starcoder2") == pre
    assert norms("stablelm-parallel") == set()  # attention and the MLP have one norm
    assert norms("gemma3n") == {"layers.1.pre_feedforward_layernorm"}  # attention and Laurel
    assert norms("cohere") == norms("phi") == set()
    assert norms("gpt-neox") == pre  # parallel, with two norms


def test_factors_by_hand() -> None:
    # Root mean squares 1, 4 and 16: to the power 0.25, around their geometric mean.
    expected = torch.tensor([0.5, 1.0, 2.0]).sqrt()
    torch.testing.assert_close(factors(torch.tensor([1.0, 16.0, 256.0])), expected)


@pytest.mark.parametrize("energy", [torch.zeros(8), torch.eye(8)[0] * 1e9], ids=["dead", "one"])
def test_dead_channels_keep_bounded_factors(energy: torch.Tensor) -> None:
    result = factors(energy)
    assert torch.isfinite(result).all()
    assert float(result.max() / result.min()) < 10
    assert float(result.log().mean()) == pytest.approx(0, abs=1e-6)


def test_a_strong_channel_is_rounded_more_finely() -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(64, 64, generator=generator)
    energy = torch.ones(64)
    energy[5] = 1e4

    def error(name: str) -> float:
        method = METHODS[name]
        columns = factors(energy) if method.scaling == "awq" else torch.ones(64)
        left = energy / columns.square()
        rounded = quantize_by(method, weight * columns, Int4(32), left, None).dequantize(64)
        return float(((rounded / columns - weight).square() * energy).sum())

    assert error("awq") < 0.5 * error("rtn") < error("hqq")
