"""The chunked head against logits computed whole, with gradients."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from edgelm.compress.distillation.loss import head_loss as module
from edgelm.compress.distillation.loss.head_loss import LiveTeacher, Target, head_loss
from edgelm.compress.distillation.loss.losses import DIVERGENCES, Sampled, TopK, cross_entropy
from edgelm.compress.distillation.loss.objective import Objective
from edgelm.compress.head import Head
from tests.compress.distillation.loss.test_losses import PLAIN

ROWS, HIDDEN, VOCAB = 13, 6, 17


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whole_logits(hidden: torch.Tensor, weight: torch.Tensor, head: Head) -> torch.Tensor:
    logits = torch.nn.functional.linear(hidden, weight, head.bias) / head.divisor
    return torch.tanh(logits / head.softcap) * head.softcap if head.softcap else logits


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 4 * VOCAB)  # thirteen rows make four chunks


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_equals_whole_logits(kind: str, share: float, softcap: float | None, biased: bool) -> None:
    bias = rand(VOCAB, 1, seed=5).flatten().requires_grad_() if biased else None
    teacher_bias = rand(VOCAB, 1, seed=6).flatten() if biased else None
    hidden, weight = rand(ROWS, HIDDEN), rand(VOCAB, HIDDEN, seed=1)
    teacher_hidden, teacher_weight = rand(ROWS, HIDDEN, seed=2), rand(VOCAB, HIDDEN, seed=3)
    labels = torch.randint(0, VOCAB, (ROWS,), generator=torch.Generator().manual_seed(4))
    head = Head(weight.clone().requires_grad_(), 1.5, softcap, bias)
    ours = hidden.clone().requires_grad_()
    teacher = Head(teacher_weight, 1.5, softcap, teacher_bias)
    target = LiveTeacher(teacher_hidden, teacher)
    objective = Objective(kind, 1.0, share)  # type: ignore[arg-type]
    loss, divergence, entropy = head_loss(ours, head, target, labels, objective)
    (3 * loss).backward()

    theirs, their_weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    their_bias = bias.detach().clone().requires_grad_() if bias is not None else None
    z = whole_logits(theirs, their_weight, replace(head, bias=their_bias))
    y = whole_logits(teacher_hidden, teacher_weight, teacher)
    plain = PLAIN[kind](z, y) / ROWS
    nll = torch.nn.functional.cross_entropy(z, labels)
    (3 * ((1 - share) * plain + share * nll)).backward()
    for got, expected in (
        (loss, (1 - share) * plain + share * nll),
        (divergence, plain if share < 1 else plain * 0),
        (entropy, nll if share > 0 else nll * 0),
    ):
        torch.testing.assert_close(got.detach(), expected.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-6)
    torch.testing.assert_close(head.weight.grad, their_weight.grad, rtol=0, atol=1e-6)
    if bias is not None and their_bias is not None:
        torch.testing.assert_close(bias.grad, their_bias.grad, rtol=0, atol=1e-6)


def test_student_that_is_its_teacher() -> None:
    hidden, weight = rand(ROWS, HIDDEN), rand(VOCAB, HIDDEN, seed=1)
    ours, table = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    target = LiveTeacher(hidden, Head(weight))
    loss, _, _ = head_loss(ours, Head(table), target, torch.zeros(ROWS, dtype=torch.long))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert ours.grad is not None
    assert table.grad is not None
    assert float(ours.grad.abs().max()) == 0.0
    assert float(table.grad.abs().max()) == 0.0


def test_a_frozen_head_costs_no_product_for_its_gradient() -> None:
    hidden, weight = rand(ROWS, HIDDEN), rand(VOCAB, HIDDEN, seed=1)
    target = LiveTeacher(rand(ROWS, HIDDEN, seed=2), Head(rand(VOCAB, HIDDEN, seed=3)))
    labels = torch.zeros(ROWS, dtype=torch.long)
    operations, gradients = [], []
    for trained in (True, False):
        ours, table = hidden.clone().requires_grad_(), weight.clone().requires_grad_(trained)
        with FlopCounterMode(display=False) as counter:
            head_loss(ours, Head(table), target, labels)[0].backward()
        operations.append(counter.get_total_flops())
        assert ours.grad is not None
        gradients.append(ours.grad)
        assert (table.grad is not None) == trained
    assert torch.equal(*gradients)
    assert operations[0] - operations[1] == 2 * ROWS * VOCAB * HIDDEN


@pytest.mark.parametrize(
    "target",
    [
        TopK(torch.arange(ROWS * 3).view(ROWS, 3) % VOCAB, torch.full((ROWS, 3), 0.3)),
        Sampled(torch.arange(ROWS * 3).view(ROWS, 3) % VOCAB, torch.full((ROWS, 3), 1 / 3)),
    ],
    ids=["top-k", "sampled"],
)
def test_cached_rows_in_chunks(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.zeros(ROWS, dtype=torch.long)
    results = []
    for elements in (4 * VOCAB, 1 << 20):
        monkeypatch.setattr(module, "_CHUNK_ELEMENTS", elements)
        hidden = rand(ROWS, HIDDEN).requires_grad_()
        loss, _, _ = head_loss(hidden, Head(rand(VOCAB, HIDDEN, seed=1)), target, labels)
        loss.backward()
        results.append((loss.detach(), hidden.grad))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-6)


def test_gradient_of_a_frozen_head_is_not_kept() -> None:
    hidden = rand(ROWS, HIDDEN).requires_grad_()
    labels = torch.zeros(ROWS, dtype=torch.long)
    loss, _, entropy = head_loss(
        hidden, Head(rand(VOCAB, HIDDEN, seed=1)), None, labels, Objective(cross_entropy=1.0)
    )
    loss.backward()
    expected, _ = cross_entropy(hidden.detach() @ rand(VOCAB, HIDDEN, seed=1).T, labels)
    assert float(entropy) == pytest.approx(float(expected) / ROWS, rel=1e-5)
