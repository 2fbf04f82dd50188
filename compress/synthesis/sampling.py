"""Sample texts from a language model, a batch at a time.

Nucleus sampling as in Holtzman et al. 2020: tokens are drawn at a temperature from the smallest
set of tokens whose probabilities sum to `top_p`. The model's own `generation_config` is not used
(its penalties would distort the distribution to learn), nor is torch's global random state.
Finished rows leave the batch.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from edgelm.compress.model import Model, Tokenizer
from edgelm.errors import BadCheckpoint, BadInput

# A nucleus is looked for among this many of the likeliest tokens before the vocabulary is sorted
# whole, which takes longer than a small model.
_WIDTHS = (256, 4096)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How texts are sampled.

    temperature: divides the logits; 0 selects the most likely token.
    top_p: probability mass to sample from, above 0 up to 1.
    max_new_tokens: maximum of new tokens per text.
    batch_size: texts at a time; the result depends on it.
    seed: of the random numbers.
    """

    temperature: float = 1.0
    top_p: float = 0.95
    max_new_tokens: int = 512
    batch_size: int = 16
    seed: int = 0

    def check(self) -> None:
        """Raise BadInput for values out of range."""
        if not 0 <= self.temperature < float("inf"):
            raise BadInput(f"temperature is {self.temperature}, expected 0 or more")
        if not 0 < self.top_p <= 1:
            raise BadInput(f"top_p is {self.top_p}, expected above 0 and up to 1")
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} is {getattr(self, name)}, expected 1 or more")
        if self.seed < 0:
            raise BadInput(f"seed is {self.seed}, expected 0 or more")


@dataclass(frozen=True, slots=True)
class Sampled:
    """New tokens without the stop token; `ended` is false at the limit of new tokens."""

    ids: tuple[int, ...]
    ended: bool


def stop_ids(model: Model, tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that end a text: all end-of-sequence tokens and all special tokens.

    A special token within sampled text starts another document or turn (which one ends an
    assistant's turn depends on the template), so the text ends in either case.
    """
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    for config in (model.config, model.generation_config):
        end = getattr(config, "eos_token_id", None)
        special |= set(end) if isinstance(end, list) else {end}
    return frozenset((special | {tokenizer.eos_token_id}) - {None})


@torch.inference_mode()
def sample(
    model: Model,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    generator: torch.Generator,
    *,
    stop: Collection[int],
    vocab_size: int,
) -> list[Sampled]:
    """Continue every prompt.

    Args:
        model: in eval mode.
        prompts: token ids, at least one each.
        sampling: temperature, nucleus and limit.
        generator: on the model's device.
        stop: tokens that end a text.
        vocab_size: of the tokenizer; a model may have more rows than that.
    """
    from transformers import DynamicCache

    ids, mask = _left_padded(prompts, model.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    ends = torch.tensor(sorted(stop), device=model.device)
    rows = torch.arange(len(prompts), device=model.device)  # the prompt of each row
    written: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    for _ in range(sampling.max_new_tokens):
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1, :vocab_size]
        drawn = draw(logits.float(), sampling, generator)
        over = torch.isin(drawn, ends)
        for row, token, done in zip(rows.tolist(), drawn.tolist(), over.tolist(), strict=True):
            ended[row] = done
            if not done:
                written[row].append(token)
        if over.any():
            keep = (~over).nonzero().flatten()
            if not len(keep):
                break
            cache.batch_select_indices(keep)
            rows, drawn, mask, positions = rows[keep], drawn[keep], mask[keep], positions[keep]
        ids = drawn[:, None]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        positions = positions[:, -1:] + 1
    return [Sampled(tuple(tokens), done) for tokens, done in zip(written, ended, strict=True)]


def draw(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> torch.Tensor:
    """One token [B] for each row of fp32 logits [B, vocab]."""
    # NaN is the largest of all, and so is infinity. A single infinite negative logit is a ban.
    if not bool(torch.isfinite(logits.amax(-1)).all()):
        raise BadCheckpoint(
            "the model that writes the text computes NaN or infinity: its weights are damaged, or "
            "its configuration is another model's"
        )
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits / sampling.temperature, -1)
    # One uniform number per row, so that a token depends on nothing but its own row and number.
    uniform = torch.rand(
        len(logits), 1, dtype=torch.float64, device=logits.device, generator=generator
    )
    if sampling.top_p == 1:
        return _at(probabilities.double(), uniform)
    drawn = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    rows = torch.arange(len(logits), device=logits.device)
    for width in (*_WIDTHS, probabilities.shape[-1]):
        drawn[rows], complete = _in_nucleus(probabilities, width, sampling.top_p, uniform)
        if complete.all():
            break
        rows, probabilities, uniform = (one[~complete] for one in (rows, probabilities, uniform))
    return drawn


def _in_nucleus(
    probabilities: torch.Tensor, width: int, top_p: float, uniform: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [B] of the nucleus, and whether the `width` likeliest tokens hold it [B]."""
    likeliest, order = probabilities.topk(min(width, probabilities.shape[-1]), -1)
    likeliest = likeliest.double()
    total = likeliest.cumsum(-1)
    # The token that crosses top_p is part of the nucleus.
    nucleus = likeliest.masked_fill(total - likeliest >= top_p, 0)
    complete = (total[:, -1] >= top_p) | (width >= probabilities.shape[-1])
    return order.gather(-1, _at(nucleus, uniform)[:, None]).flatten(), complete


def _at(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The index [B] at which the running sum of float64 weights [B, N] exceeds uniform [B, 1]."""
    total = weights.cumsum(-1)
    index = torch.searchsorted(total, uniform * total[:, -1:], right=True).flatten()
    # A product that rounds up to the whole sum belongs to the last token that has a weight.
    last = (weights > 0).long().cumsum(-1).argmax(-1)
    return torch.minimum(index, last)


def _left_padded(
    prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in prompts], device=device)
    mask = torch.tensor(
        [[0] * (longest - len(row)) + [1] * len(row) for row in prompts], device=device
    )
    return ids, mask
