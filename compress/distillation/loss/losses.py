"""Distillation losses on rows of logits, each with its gradient in closed form.

Hinton et al. 2015 (arXiv 1503.02531): the student learns the teacher's distribution. Forward KL
at temperature 1 is Minitron's best (arXiv 2407.14679, table 15). Every function takes the
student's logits `z` [rows, vocab] in fp32, overwrites them, and returns the sum of the loss over
the rows, in nats, with its gradient with respect to the logits. Closed forms, because autograd
keeps five copies of [rows, vocab] where these need three.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from edgelm.compress.distillation.loss.objective import LossKind

LossAndGradient = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class TopK:
    """A teacher's most likely tokens: ids [rows, k] and probabilities [rows, k], fp32."""

    ids: torch.Tensor
    probabilities: torch.Tensor


@dataclass(frozen=True, slots=True)
class Sampled:
    """Tokens drawn from a teacher: ids [rows, n] and weights [rows, n] that sum to one per row.

    A token drawn twice may occur twice. The expected gradient equals the full one (Anshumann et
    al. 2025, arXiv 2503.16870), while that of the most likely tokens alone is biased.
    """

    ids: torch.Tensor
    weights: torch.Tensor


def forward_kl(z: torch.Tensor, y: torch.Tensor, temperature: float = 1.0) -> LossAndGradient:
    """T² KL(p ‖ q) of the teacher's logits `y`, overwritten too.

    T² keeps the gradient on the scale of the cross-entropy's (Hinton 2015, section 2).
    """
    log_q, log_p = _log_softmax_(z, temperature), _log_softmax_(y, temperature)
    p = log_p.exp()
    loss = torch.dot(p.view(-1), log_p.sub_(log_q).view(-1))
    gradient = log_q.exp_().sub_(p)
    return loss * temperature**2, gradient.mul_(temperature)


def reverse_kl(z: torch.Tensor, y: torch.Tensor, temperature: float = 1.0) -> LossAndGradient:
    """T² KL(q ‖ p): mode-seeking instead of mode-covering (MiniLLM, arXiv 2306.08543)."""
    log_q, log_p = _log_softmax_(z, temperature), _log_softmax_(y, temperature)
    ratio = log_p.neg_().add_(log_q)
    q = log_q.exp_()
    each = (q * ratio).sum(-1, keepdim=True)
    return each.sum() * temperature**2, ratio.sub_(each).mul_(q).mul_(temperature)


def jensen_shannon(
    z: torch.Tensor, y: torch.Tensor, temperature: float = 1.0, beta: float = 0.5
) -> LossAndGradient:
    """T² (β KL(p ‖ m) + (1 - β) KL(q ‖ m)) with m = β p + (1 - β) q (GKD, arXiv 2306.13649)."""
    log_q, log_p = _log_softmax_(z, temperature), _log_softmax_(y, temperature)
    p, q = log_p.exp(), log_q.exp()
    log_m = (beta * p + (1 - beta) * q).clamp_min_(torch.finfo(p.dtype).tiny).log_()
    of_q = log_q.sub_(log_m).mul_(1 - beta)
    each = (q * of_q).sum(-1, keepdim=True)
    loss = beta * torch.dot(p.view(-1), log_p.sub_(log_m).view(-1)) + each.sum()
    return loss * temperature**2, of_q.sub_(each).mul_(q).mul_(temperature)


def cross_entropy(z: torch.Tensor, labels: torch.Tensor) -> LossAndGradient:
    """Negative log-likelihood of int64 labels [rows]."""
    log_q = _log_softmax_(z, 1.0)
    loss = -log_q.gather(1, labels[:, None]).sum()
    gradient = log_q.exp_()
    gradient[torch.arange(len(labels), device=z.device), labels] -= 1
    return loss, gradient


def top_k_kl(z: torch.Tensor, teacher: TopK) -> LossAndGradient:
    """KL(p ‖ q) over the teacher's k most likely tokens and one more event: any other token.

    The tail keeps its mass. Renormalizing the k instead would teach the student that nothing
    else can follow.
    """
    log_q = _log_softmax_(z, 1.0)
    kept_q = log_q.gather(1, teacher.ids)
    tail_p = (1 - teacher.probabilities.sum(-1, keepdim=True)).clamp_min(0)
    tail_q = (1 - kept_q.exp().sum(-1, keepdim=True)).clamp_min(torch.finfo(z.dtype).eps)
    kept = torch.xlogy(teacher.probabilities, teacher.probabilities)
    loss = (kept - teacher.probabilities * kept_q).sum()
    loss = loss + (torch.xlogy(tail_p, tail_p) - tail_p * tail_q.log()).sum()
    gradient = log_q.exp_()
    inside = gradient.gather(1, teacher.ids) - teacher.probabilities
    gradient.mul_(1 - tail_p / tail_q)
    return loss, gradient.scatter_(1, teacher.ids, inside)


def sampled_cross_entropy(z: torch.Tensor, teacher: Sampled) -> LossAndGradient:
    """Cross-entropy to drawn tokens: KL(p ‖ q) up to the teacher's entropy, in expectation."""
    log_q = _log_softmax_(z, 1.0)
    loss = -(log_q.gather(1, teacher.ids) * teacher.weights).sum()
    gradient = log_q.exp_()
    return loss, gradient.scatter_add_(1, teacher.ids, -teacher.weights)


DIVERGENCES: dict[LossKind, Callable[[torch.Tensor, torch.Tensor, float], LossAndGradient]] = {
    "forward-kl": forward_kl,
    "reverse-kl": reverse_kl,
    "jsd": jensen_shannon,
}


def _log_softmax_(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    if temperature != 1.0:
        logits.div_(temperature)
    return logits.sub_(logits.logsumexp(-1, keepdim=True))
