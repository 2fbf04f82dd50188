"""What turns final hidden states into logits: the output matrix and what follows it."""

from dataclasses import dataclass, replace

import torch

from edgelm.compress.model import Model, spec_of


@dataclass(frozen=True, slots=True)
class Head:
    """What turns final hidden states into logits.

    `weight` is [vocab, hidden], `bias` [vocab] (Phi); logits are divided by `divisor` (Granite) and
    then soft-capped at `softcap` (Gemma 2).
    """

    weight: torch.Tensor
    divisor: float = 1.0
    softcap: float | None = None
    bias: torch.Tensor | None = None

    @classmethod
    def from_model(cls, model: Model) -> "Head":
        """The head of a `transformers` model."""
        spec, head = spec_of(model), model.get_output_embeddings()
        return cls(head.weight, spec.logits_divisor, spec.logits_softcap, head.bias)

    def to(self, dtype: torch.dtype) -> "Head":
        """The same head with its weight in another type, without gradient."""
        bias = None if self.bias is None else self.bias.detach().to(dtype)
        return replace(self, weight=self.weight.detach().to(dtype), bias=bias)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """fp32 logits [rows, vocab] of hidden states [rows, hidden], both in the weight's type."""
        return self.finish(self.products(hidden))

    def products(self, hidden: torch.Tensor) -> torch.Tensor:
        """The head's products [rows, vocab] with hidden states, plus its bias, in its type."""
        products = hidden.to(self.weight.dtype) @ self.weight.T
        return products if self.bias is None else products.add_(self.bias)

    def finish(self, products: torch.Tensor) -> torch.Tensor:
        """fp32 logits of products, in memory of their own."""
        logits = products.to(torch.float32, copy=True)
        if self.divisor != 1.0:
            logits.div_(self.divisor)
        if self.softcap:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def back(self, gradient: torch.Tensor, capped: torch.Tensor | None) -> torch.Tensor:
        """The gradient before cap and divisor; `capped` are the logits after the cap."""
        if self.softcap and capped is not None:
            gradient = gradient * (1 - (capped / self.softcap).square())
        return gradient if self.divisor == 1.0 else gradient / self.divisor
