"""KL, agreement and perplexity, against a direct computation."""

import math

import msgspec
import pytest
import torch

from edgelm.bundle.records.gates import Figures
from edgelm.errors import BadCheckpoint, GateFailed
from edgelm.export.gate.divergence import Distance
from edgelm.export.progress import figures_text


@pytest.fixture(scope="module")
def logits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(30, 17, generator=generator) * 3
    other = source + torch.randn(30, 17, generator=generator)
    return source, other, torch.randint(17, (30,), generator=generator)


def figures_of(source: torch.Tensor, other: torch.Tensor, targets: torch.Tensor) -> Figures:
    distance = Distance()
    distance.add(source, other, targets)
    return distance.figures()


def test_equal_models_are_at_no_distance(
    logits: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    source, _, targets = logits
    figures = figures_of(source, source.clone(), targets)
    assert (figures.kl, figures.top1, figures.perplexity_ratio) == (0.0, 1.0, 1.0)
    assert figures.tokens == 30


def test_a_constant_added_to_all_logits_is_no_distance(
    logits: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    source, _, targets = logits
    figures = figures_of(source, source + 5, targets)
    assert figures.kl == pytest.approx(0, abs=1e-6)
    assert figures.top1 == 1.0


def test_direct_computation(logits: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    source, other, targets = logits
    figures = figures_of(source, other, targets)
    p, q = source.double().softmax(-1), other.double().softmax(-1)
    assert figures.kl == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-5)
    assert figures.top1 == float((p.argmax(-1) == q.argmax(-1)).double().mean())
    assert 0 < figures.top1 < 1
    losses = [-x[range(30), targets].log().mean() for x in (p, q)]
    assert figures.perplexity == pytest.approx(float(losses[1].exp()), rel=1e-5)
    assert figures.perplexity_ratio == pytest.approx(float((losses[1] - losses[0]).exp()), rel=1e-5)


def test_two_tokens_by_hand() -> None:
    source = torch.tensor([[0.5, 0.5]]).log()
    other = torch.tensor([[0.25, 0.75]]).log()
    figures = figures_of(source, other, torch.tensor([1]))
    assert figures.kl == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert figures.perplexity == pytest.approx(4 / 3)
    assert figures.perplexity_ratio == pytest.approx((4 / 3) / 2)


def test_direction_is_source_to_other() -> None:
    sure, unsure = torch.tensor([[0.99, 0.01]]).log(), torch.tensor([[0.5, 0.5]]).log()
    target = torch.tensor([0])
    forward = figures_of(sure, unsure, target).kl
    backward = figures_of(unsure, sure, target).kl
    assert forward == pytest.approx(0.99 * math.log(1.98) + 0.01 * math.log(0.02))
    assert backward == pytest.approx(0.5 * math.log(0.5 / 0.99) + 0.5 * math.log(50))


def test_parts_add_up_and_the_last_row_needs_no_successor(
    logits: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    source, other, targets = logits
    whole = figures_of(source, other, targets[:-1])
    parts = Distance()
    for at in range(0, 30, 7):
        end = min(at + 7, 30)
        parts.add(source[at:end], other[at:end], targets[at : min(end, 29)])
    assert parts.figures().kl == pytest.approx(whole.kl, rel=1e-5)
    assert parts.figures().perplexity == pytest.approx(whole.perplexity, rel=1e-5)
    assert parts.figures().top1 == whole.top1
    assert parts.figures().tokens == whole.tokens == 30


def test_standard_errors_are_those_of_the_mean_over_tokens(
    logits: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    source, other, targets = logits
    figures = figures_of(source, other, targets)
    p, q = source.double().softmax(-1), other.double().softmax(-1)
    divergence = (p * (p / q).log()).sum(-1)
    assert figures.kl_error == pytest.approx(float(divergence.std(correction=0)) / math.sqrt(30))
    assert figures.top1_error == pytest.approx(math.sqrt(figures.top1 * (1 - figures.top1) / 30))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers_are_errors(
    value: float, logits: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    source, other, targets = logits
    broken = other.clone()
    broken[7, 3] = value
    with pytest.raises(GateFailed, match="graph computes NaN or infinity"):
        figures_of(source, broken, targets)
    with pytest.raises(BadCheckpoint, match="source computes NaN or infinity"):
        figures_of(broken, other, targets)


@pytest.mark.parametrize("size", [100.0, 1e5])
def test_a_loss_beyond_the_range_of_floats_stays_finite(size: float) -> None:
    """JSON has no infinity; e to the 89 is beyond fp32, and to the 710 beyond fp64."""
    source = torch.zeros(6, 8)
    source[:, 1] = 5.0
    targets = torch.ones(6, dtype=torch.long)
    other = torch.zeros(6, 8)
    other[:, 2] = size
    found = figures_of(source, other, targets)
    assert found.perplexity_ratio > 1e40
    assert msgspec.json.decode(msgspec.json.encode(found), type=Figures) == found
    assert len(figures_text(found)) < 100
    back = figures_of(other, source, targets)
    assert 0 < back.perplexity_ratio < 1e-40


def test_the_error_of_the_perplexity_ratio_is_that_of_the_losses() -> None:
    generator = torch.Generator().manual_seed(5)
    source = torch.randn(200, 40, generator=generator)
    other = source + 0.1 * torch.randn(200, 40, generator=generator)
    targets = torch.randint(0, 40, (200,), generator=generator)
    distance = Distance()
    for part in (slice(0, 90), slice(90, 200)):
        distance.add(source[part], other[part], targets[part])
    found = distance.figures()
    pairs = [one.log_softmax(-1).gather(1, targets[:, None])[:, 0] for one in (source, other)]
    gaps = (pairs[0] - pairs[1]).double()
    expected = gaps.mean().exp() * gaps.std(correction=0) / len(gaps) ** 0.5
    assert found.perplexity_ratio_error == pytest.approx(float(expected), rel=1e-3)
