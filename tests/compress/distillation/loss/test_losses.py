"""Closed-form losses and gradients against autograd, and by hand."""

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import cross_entropy as torch_cross_entropy
from torch.nn.functional import kl_div, log_softmax

from edgelm.compress.distillation.loss.losses import (
    DIVERGENCES,
    Sampled,
    TopK,
    cross_entropy,
    forward_kl,
    sampled_cross_entropy,
    top_k_kl,
)

Plain = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def random_logits(seed: int, rows: int = 5, vocab: int = 11) -> torch.Tensor:
    return 2 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def plain_forward(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return kl_div(log_softmax(z, -1), log_softmax(y, -1), reduction="sum", log_target=True)


def plain_reverse(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return kl_div(log_softmax(y, -1), log_softmax(z, -1), reduction="sum", log_target=True)


def plain_jsd(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    p, q = y.softmax(-1), z.softmax(-1)
    mixture = ((p + q) / 2).log()
    return 0.5 * (p * (p.log() - mixture)).sum() + 0.5 * (q * (q.log() - mixture)).sum()


PLAIN: dict[str, Plain] = {
    "forward-kl": plain_forward,
    "reverse-kl": plain_reverse,
    "jsd": plain_jsd,
}


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_divergences_equal_autograd(kind: str, temperature: float) -> None:
    z, y = random_logits(0).requires_grad_(), random_logits(1)
    expected = PLAIN[kind](z / temperature, y / temperature) * temperature**2
    expected.backward()
    loss, gradient = DIVERGENCES[kind](z.detach().clone(), y.clone(), temperature)  # type: ignore[index]
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=1e-6)
    assert z.grad is not None
    torch.testing.assert_close(gradient, z.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_nothing_to_learn_from_oneself(kind: str) -> None:
    z = random_logits(0)
    loss, gradient = DIVERGENCES[kind](z.clone(), z.clone(), 1.0)  # type: ignore[index]
    assert abs(float(loss)) < 1e-6
    assert float(gradient.abs().max()) < 1e-7


def test_forward_kl_by_hand() -> None:
    teacher, student = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.25, 0.5]])
    loss, gradient = forward_kl(student.log(), teacher.log())
    # 0.5 ln 2 + 0 - 0.25 ln 2
    assert float(loss) == pytest.approx(0.25 * 0.693147, rel=1e-5)
    torch.testing.assert_close(gradient, student - teacher)


def test_gradient_against_finite_differences() -> None:
    z, y = random_logits(0, 1, 4).double(), random_logits(1, 1, 4).double()
    _, gradient = forward_kl(z.clone(), y.clone())
    for index in range(4):
        step = torch.zeros_like(z)
        step[0, index] = 1e-5
        above, _ = forward_kl(z + step, y.clone())
        below, _ = forward_kl(z - step, y.clone())
        assert float(gradient[0, index]) == pytest.approx(float(above - below) / 2e-5, abs=1e-8)


def test_cross_entropy() -> None:
    z, labels = random_logits(0).requires_grad_(), torch.tensor([0, 3, 10, 5, 5])
    expected = torch_cross_entropy(z, labels, reduction="sum")
    expected.backward()
    loss, gradient = cross_entropy(z.detach().clone(), labels)
    torch.testing.assert_close(loss, expected.detach())
    assert z.grad is not None
    torch.testing.assert_close(gradient, z.grad)


def test_top_k_of_the_whole_vocabulary_is_the_full_divergence() -> None:
    z, y = random_logits(0), random_logits(1)
    top = y.softmax(-1).topk(y.shape[1])
    loss, gradient = top_k_kl(z.clone(), TopK(top.indices, top.values))
    full, full_gradient = forward_kl(z.clone(), y.clone())
    torch.testing.assert_close(loss, full, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, full_gradient, rtol=1e-4, atol=1e-5)


def test_top_k_keeps_the_mass_of_the_tail() -> None:
    z, y = random_logits(0).requires_grad_(), random_logits(1)
    top = y.softmax(-1).topk(3)
    q = z.softmax(-1)
    kept_q = q.gather(1, top.indices)
    tail_p, tail_q = 1 - top.values.sum(-1), 1 - kept_q.sum(-1)
    expected = (top.values * (top.values.log() - kept_q.log())).sum()
    expected = expected + (tail_p * (tail_p.log() - tail_q.log())).sum()
    expected.backward()
    loss, gradient = top_k_kl(z.detach().clone(), TopK(top.indices, top.values))
    torch.testing.assert_close(loss, expected.detach())
    assert z.grad is not None
    torch.testing.assert_close(gradient, z.grad, rtol=1e-4, atol=1e-6)


def test_drawn_tokens_give_the_full_gradient_on_average() -> None:
    z, y = random_logits(0, 1), random_logits(1, 1)
    drawn = torch.multinomial(
        y.softmax(-1), 200_000, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    weights = torch.full(drawn.shape, 1 / drawn.shape[1])
    _, gradient = sampled_cross_entropy(z.clone(), Sampled(drawn, weights))
    _, full = forward_kl(z.clone(), y.clone())
    torch.testing.assert_close(gradient, full, rtol=0, atol=5e-3)
