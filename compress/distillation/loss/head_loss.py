"""Head and loss in one step, a few rows at a time.

The logits of a whole batch are the largest tensor of a distillation step: 4,096 tokens times a
vocabulary of 128,256 take 2 GB in fp32, and teacher, student, log-softmax and gradient need four
to six of them. Here a chunk of rows goes through both heads, the loss, and back to the gradients of
hidden states and head before the next chunk. Matrix products take many rows at a time, for the
matrix units; elementwise work takes few, which fit a CPU's cache.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from edgelm.compress.arithmetic import total_type
from edgelm.compress.distillation.loss.losses import (
    DIVERGENCES,
    LossAndGradient,
    Sampled,
    TopK,
    cross_entropy,
    sampled_cross_entropy,
    top_k_kl,
)
from edgelm.compress.distillation.loss.objective import Objective
from edgelm.compress.head import Head

# Elements of one [rows, vocab] of products: 32 MiB in bf16 for a CPU's caches, 256 MiB on a GPU,
# where few rows would leave the units waiting for memory.
_CHUNK_ELEMENTS = 1 << 24
_GPU_CHUNK_ELEMENTS = 1 << 27
_DISTILL = Objective()
_PART_ELEMENTS = 1 << 20  # of one [rows, vocab] in fp32: 4 MiB


@dataclass(frozen=True, slots=True)
class LiveTeacher:
    """A teacher's final hidden states [rows, hidden] and its head."""

    hidden: torch.Tensor
    head: Head


Target = LiveTeacher | TopK | Sampled


def head_loss(
    hidden: torch.Tensor,
    head: Head,
    target: Target | None,
    labels: torch.Tensor,
    objective: Objective = _DISTILL,
    *,
    compute: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean loss over rows, differentiable in `hidden` and the head's weight and bias.

    Args:
        hidden: the student's final hidden states [rows, hidden].
        head: the student's.
        target: the teacher on the same rows; None if the objective is cross-entropy only.
        labels: next tokens, int64 [rows].
        objective: the mix.
        compute: type of the products; the loss itself is computed in fp32.

    Returns:
        The mixed loss, and without gradient its parts in nats per row: divergence, cross-entropy.
        A head whose weight needs no gradient costs no product for it.
    """
    loss, divergence, entropy = _HeadLoss.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, head, target, labels, objective, compute
    )
    return loss, divergence, entropy


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        head: Head,
        target: Target | None,
        labels: torch.Tensor,
        objective: Objective,
        compute: torch.dtype,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows, vocab = len(hidden), len(weight)
        head = head.to(compute)
        hidden_gradient = torch.empty_like(hidden)
        bias_gradient = None
        if bias is not None and ctx.needs_input_grad[2]:
            bias_gradient = torch.zeros_like(bias, dtype=torch.float32)
        weight_gradient = product = None
        if ctx.needs_input_grad[1]:  # a draft's head is its teacher's and stays as it is
            # Summed in fp32, whatever type the weight was gathered in.
            weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
            product = torch.empty_like(weight, dtype=compute)
        totals = torch.zeros(2, device=hidden.device, dtype=total_type(hidden.device))
        on_cpu = hidden.device.type == "cpu"
        elements = _CHUNK_ELEMENTS if on_cpu else _GPU_CHUNK_ELEMENTS
        few = max(1, _PART_ELEMENTS // vocab) if on_cpu else rows
        for chunk in _slices(0, rows, max(1, elements // vocab)):
            inputs = hidden[chunk].to(compute)
            products = head.products(inputs)
            theirs = _products(target, chunk)
            for part in _slices(0, len(inputs), few):
                here = slice(chunk.start + part.start, chunk.start + part.stop)
                teacher = _logits(target, theirs, part, here)
                gradient, sums = _part(products[part], head, teacher, labels[here], objective)
                totals += sums
                products[part] = gradient.div_(rows)
            hidden_gradient[chunk] = products @ head.weight
            if bias_gradient is not None:
                bias_gradient += products.sum(0, dtype=torch.float32)
            if weight_gradient is not None:
                # Reuse the memory: a new block of this size costs a page fault per page.
                weight_gradient += torch.mm(products.T, inputs, out=product)
        ctx.save_for_backward(hidden_gradient, weight_gradient, bias_gradient)
        divergence, entropy = (totals / rows).float()
        ctx.mark_non_differentiable(divergence, entropy)
        share = objective.cross_entropy
        return (1 - share) * divergence + share * entropy, divergence, entropy

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        gradients = [
            None if gradient is None else gradient.mul_(upstream) for gradient in ctx.saved_tensors
        ]
        return *gradients, *(None,) * 5


def _slices(start: int, stop: int, step: int) -> list[slice]:
    return [slice(here, min(stop, here + step)) for here in range(start, stop, step)]


def _part(
    products: torch.Tensor,
    head: Head,
    teacher: torch.Tensor | TopK | Sampled | None,
    labels: torch.Tensor,
    objective: Objective,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of the mixed loss with respect to the head's products, and the summed parts."""
    logits = head.finish(products)
    capped = logits.clone() if head.softcap else None
    share = objective.cross_entropy
    parts: list[tuple[float, Callable[[torch.Tensor], LossAndGradient]]] = [
        (1 - share, lambda z: _divergence(z, teacher, objective)),
        (share, lambda z: cross_entropy(z, labels)),
    ]
    sums = torch.zeros(2, dtype=total_type(products.device), device=products.device)
    total: torch.Tensor | None = None
    needed = [index for index, (part, _) in enumerate(parts) if part]
    for index in needed:
        part, function = parts[index]
        loss, gradient = function(logits if index == needed[-1] else logits.clone())
        sums[index] = loss
        gradient = gradient if part == 1.0 else gradient.mul_(part)
        total = gradient if total is None else total.add_(gradient)
    assert total is not None
    return head.back(total, capped), sums


def _divergence(
    z: torch.Tensor, teacher: torch.Tensor | TopK | Sampled | None, objective: Objective
) -> LossAndGradient:
    if isinstance(teacher, TopK):
        return top_k_kl(z, teacher)
    if isinstance(teacher, Sampled):
        return sampled_cross_entropy(z, teacher)
    assert teacher is not None
    return DIVERGENCES[objective.kind](z, teacher, objective.temperature)


def _products(target: Target | None, chunk: slice) -> torch.Tensor | None:
    """A live teacher's products on some rows."""
    if isinstance(target, LiveTeacher):
        return target.head.products(target.hidden[chunk])
    return None


def _logits(
    target: Target | None, products: torch.Tensor | None, part: slice, rows: slice
) -> torch.Tensor | TopK | Sampled | None:
    """The target of the loss: `part` of a live teacher's products, or `rows` of a cache."""
    if isinstance(target, LiveTeacher):
        assert products is not None
        return target.head.finish(products[part])
    if isinstance(target, TopK):
        return TopK(target.ids[rows], target.probabilities[rows])
    if isinstance(target, Sampled):
        return Sampled(target.ids[rows], target.weights[rows])
    return None
