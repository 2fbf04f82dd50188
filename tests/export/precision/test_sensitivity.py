"""The one streamed pass measures what separate runs would."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from edgelm.export.precision.sensitivity import measure_sensitivity
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.quantize.weights import Weights
from edgelm.export.source.reference import Reference
from edgelm.quantize.precision import Int4, Int8
from edgelm.quantize.rtn import quantize
from tests.checkpoints.models import REPRESENTATIVE
from tests.conftest import Tiny, TinyFactory
from tests.slow import slow_but

TOKENS = torch.from_numpy(np.random.default_rng(0).integers(3, 128, (2, 24)))
FAMILIES = ["llama", "llama-untied", "mistral", "smollm3", "granite", "olmo2", "phi3"]
FAMILIES += ["gemma2", "gemma3", "gemma3n", "gemma4", "gemma4-dense"]


def logits_of(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(TOKENS).logits.flatten(0, 1).double()
    return logits


def kl(source: torch.Tensor, other: torch.Tensor) -> float:
    p, q = source.log_softmax(-1), other.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def separate_run(source: Tiny, group: str, precision: Int4 | Int8) -> float:
    """KL of Hugging Face's model with that group's weights replaced."""
    model = AutoModelForCausalLM.from_pretrained(source.folder, attn_implementation="eager").eval()
    before = logits_of(model)
    names = Weights(source.checkpoint).tensor_names(group)
    stored = [source.checkpoint.tensor(name).float() for name in names]
    matrix = torch.cat(stored)
    rounded = quantize(matrix, precision).dequantize(matrix.shape[1])
    for name, part in zip(names, rounded.split([len(t) for t in stored]), strict=True):
        model.get_parameter(name).data.copy_(part)
    return kl(before, logits_of(model))


@pytest.mark.parametrize("name", slow_but(FAMILIES, REPRESENTATIVE))
def test_equals_a_run_of_its_own(tiny: TinyFactory, calm: TinyFactory, name: str) -> None:
    # Granite's own multipliers calm it enough to leave little to measure.
    source = tiny(name) if name == "granite" else calm(name)
    weights = Weights(source.checkpoint)
    precision = Int4(32)
    measured = measure_sensitivity(
        Reference(source.checkpoint), Quantizer(weights), TOKENS, precision
    )
    assert set(measured) == set(weights.groups())
    last = source.checkpoint.spec.num_hidden_layers - 1
    for group in (
        "layers.0.attention.qkv",
        "layers.1.attention.o",
        "layers.0.mlp.gate_up",
        f"layers.{last}.mlp.down",
    ):
        expected = separate_run(source, group, precision)
        assert expected > 1e-5
        assert measured[group] == pytest.approx(expected, rel=2e-2, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "group"),
    slow_but(
        [
            *(("gemma4", "per_layer_embedding"), ("gemma4", "per_layer_model")),
            *(("gemma4", f"layers.{one}.attention.qkv") for one in (2, 3)),
            *(("gemma4", "layers.2.per_layer.gate"), ("gemma4", "layers.6.per_layer.projection")),
            *(("gemma3n", "altup.entry"), ("gemma3n", "altup.exit.1")),
            *(("gemma3n", f"layers.{one}.attention.qkv") for one in (2, 3)),
            *(("gemma3n", "layers.1.laurel.right"), ("gemma3n", "layers.6.per_layer.gate")),
        ],
        [
            *(("gemma4", "per_layer_embedding"), ("gemma4", "layers.2.attention.qkv")),
            *(("gemma4", "layers.6.per_layer.projection"), ("gemma3n", "altup.exit.1")),
            ("gemma3n", "layers.3.attention.qkv"),
        ],
    ),
)
def test_inputs_of_every_layer_shared_keys_and_streams(
    calm: TinyFactory, name: str, group: str
) -> None:
    source = calm(name)
    measured = measure_sensitivity(
        Reference(source.checkpoint), Quantizer(Weights(source.checkpoint)), TOKENS, Int4(32)
    )
    expected = separate_run(source, group, Int4(32))
    assert expected > 1e-5
    assert measured[group] == pytest.approx(expected, rel=2e-2, abs=1e-6)


def test_two_ends_of_an_untied_model(calm: TinyFactory) -> None:
    source = calm("llama-untied")
    weights = Weights(source.checkpoint)
    measured = measure_sensitivity(
        Reference(source.checkpoint), Quantizer(weights), TOKENS, Int4(32)
    )
    for group in ("embedding", "lm_head"):
        expected = separate_run(source, group, Int4(32))
        assert measured[group] == pytest.approx(expected, rel=2e-2)


def test_a_tied_table_counts_at_both_ends(calm: TinyFactory) -> None:
    source = calm("llama")
    weights = Weights(source.checkpoint)
    measured = measure_sensitivity(
        Reference(source.checkpoint), Quantizer(weights), TOKENS, Int4(32)
    )
    assert "embedding" not in measured
    # The sum of the two costs, each alone, is about that of both at once.
    assert measured["lm_head"] == pytest.approx(separate_run(source, "lm_head", Int4(32)), rel=0.25)


def test_more_bits_cost_less(calm: TinyFactory) -> None:
    source = calm("qwen3")
    weights, reference = Weights(source.checkpoint), Reference(source.checkpoint)
    four = measure_sensitivity(reference, Quantizer(weights), TOKENS, Int4(32))
    eight = measure_sensitivity(reference, Quantizer(weights), TOKENS, Int8(32))
    assert all(eight[group] < four[group] / 20 for group in four)


def test_reference_is_left_as_it_was(calm: TinyFactory) -> None:
    source = calm("qwen3")
    reference = Reference(source.checkpoint)
    before = reference.hidden_states(TOKENS)
    measure_sensitivity(reference, Quantizer(Weights(source.checkpoint)), TOKENS, Int4(32))
    torch.testing.assert_close(reference.hidden_states(TOKENS), before, rtol=0, atol=0)
    assert reference.overrides == {}
    assert not any(layer._forward_pre_hooks for layer in reference.layers)


def test_progress_counts_the_layers(calm: TinyFactory) -> None:
    source = calm("llama")
    seen: list[tuple[int, int]] = []
    measure_sensitivity(
        Reference(source.checkpoint),
        Quantizer(Weights(source.checkpoint)),
        TOKENS[:, :4],
        Int4(32),
        lambda done, total: seen.append((done, total)),
    )
    assert seen[:4] == [(1, 4), (2, 4), (3, 4), (4, 4)]
