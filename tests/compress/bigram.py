"""A model that is a table: the next token depends on the last one, with probabilities by hand."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch

from tests.checkpoints.models import tiny_model
from tests.checkpoints.tiny_chat import CONTEXT, VOCAB

Follows = Mapping[tuple[int, int], float]  # (token, next token) -> probability, below 1 a token


def bigram(follows: Follows, *, vocab: int = VOCAB, context: int = CONTEXT) -> Any:
    """A Llama that attends to nothing; tokens that are not given share the rest of the mass."""
    model = tiny_model(
        "llama",
        vocab_size=vocab,
        hidden_size=vocab,
        num_hidden_layers=1,
        tie_word_embeddings=False,
        max_position_embeddings=context,
    )
    table = log_probabilities(follows, vocab)
    with torch.no_grad():
        layer = model.model.layers[0]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        # The norm makes sqrt(vocab) of a unit vector; a long one hides the norm's epsilon.
        model.model.embed_tokens.weight.copy_(100 * torch.eye(vocab))
        model.model.norm.weight.fill_(1)
        model.lm_head.weight.copy_(table.T / math.sqrt(vocab))
    return model


def log_probabilities(follows: Follows, vocab: int = VOCAB) -> torch.Tensor:
    """Of the next token, [token, next token]."""
    table = torch.empty(vocab, vocab)
    for token in range(vocab):
        given = {after: share for (before, after), share in follows.items() if before == token}
        table[token] = math.log((1 - sum(given.values())) / (vocab - len(given)))
        for after, share in given.items():
            table[token, after] = math.log(share)
    return table


def chain(*ids: int, share: float = 0.9) -> dict[tuple[int, int], float]:
    """Each token is followed by the next one."""
    return dict.fromkeys(pairwise(ids), share)
