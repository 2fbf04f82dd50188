"""Trim the vocabulary to the tokens that a corpus uses: tokenizer and embeddings shrink together.

In small models the embedding is a large part: 28 of SmolLM2-135M's 135 million parameters, of
which a megabyte of English articles uses 11. Text that used only kept tokens has the same tokens as
before, with the same logits (`edgelm.compress.vocabulary.pieces` explains why). Other text becomes
more tokens, down to bytes, and decodes to the same text.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tokenizers import Tokenizer

from edgelm.compress.model import Model
from edgelm.compress.vocabulary.embeddings import config_ids, trim_embeddings
from edgelm.compress.vocabulary.pieces import TokenizerJson, Vocabulary, read_vocabulary
from edgelm.compress.vocabulary.tokenizer import rewrite_tokenizer
from edgelm.errors import BadCheckpoint, BadInput

MULTIPLE = 128  # for matrix units and TensorRT-Edge-LLM's reduced vocabulary
_BATCH = 256  # texts


@dataclass(frozen=True, slots=True)
class Trimmed:
    """A model and its tokenizer with a smaller vocabulary, and the effect on a corpus.

    Attributes:
        model: a new model with `len(keep)` embeddings.
        tokenizer_json: content of the new `tokenizer.json`.
        keep: old id of every new id, ascending.
        coverage: share of the corpus's tokens that are kept, 0 to 1; at 1 its tokens are unchanged.
        tokens_per_byte_before: tokens per UTF-8 byte of the corpus with the old tokenizer.
        tokens_per_byte_after: the same with the new tokenizer.
        parameters_saved: parameters removed; tied embeddings count once.
    """

    model: Model
    tokenizer_json: dict[str, Any]
    keep: tuple[int, ...]
    coverage: float
    tokens_per_byte_before: float
    tokens_per_byte_after: float
    parameters_saved: int


def trim_vocabulary(
    model: Model,
    tokenizer_json: TokenizerJson,
    texts: Iterable[str],
    *,
    size: int | None = None,
    multiple: int = MULTIPLE,
) -> Trimmed:
    """Trim a model and its tokenizer to the tokens that a corpus uses most.

    Args:
        model: a causal language model of `transformers`; not changed.
        tokenizer_json: content of its `tokenizer.json`; not changed.
        texts: the corpus as the model reads and writes it, chats rendered by their template. Read
            twice where `size` removes used tokens; an iterator is therefore held in memory, a
            list or a dataset is not copied.
        size: tokens to keep; by default all that the corpus uses.
        multiple: the size is rounded up to a multiple of this, if the tokenizer has enough tokens.

    Raises:
        BadInput: no text, an unsupported tokenizer, or a size below the required tokens.
        BadCheckpoint: tokenizer and model do not match.
    """
    if isinstance(texts, Iterator):
        texts = list(texts)
    vocabulary = read_vocabulary(tokenizer_json)
    counts, text_bytes = _count(tokenizer_json, texts)
    keep = _select(vocabulary, counts, size, multiple, config_ids(model))
    trimmed_model = trim_embeddings(model, keep)
    trimmed_json = rewrite_tokenizer(tokenizer_json, keep)
    before = after = counts.total()
    covered = sum(counts[token] for token in keep)
    if covered < before:
        after = _count(trimmed_json, texts)[0].total()
    return Trimmed(
        trimmed_model,
        trimmed_json,
        tuple(keep),
        coverage=covered / before,
        tokens_per_byte_before=before / text_bytes,
        tokens_per_byte_after=after / text_bytes,
        parameters_saved=_parameters(model) - _parameters(trimmed_model),
    )


def kept_tokens(
    tokenizer_json: TokenizerJson,
    texts: Iterable[str],
    *,
    size: int | None = None,
    multiple: int = MULTIPLE,
    always: Iterable[int] = (),
) -> list[int]:
    """Select the tokens to keep, as ascending ids.

    Required are added and special tokens, the bytes (or all characters, if a tokenizer has no byte
    tokens), `always`, and the tokens these are merged from. Then come the tokens that the corpus
    uses most often, directly or as part of a longer one, then the tokenizer's order of merges or
    scores.

    Args:
        tokenizer_json: content of the file.
        texts: the corpus, streamed once.
        size: tokens to keep; by default all that the corpus uses.
        multiple: the number is rounded up to a multiple of this, if there are enough tokens.
        always: ids to keep in any case.

    Raises:
        BadInput: no text, an unsupported tokenizer, or a size below the required tokens.
        BadCheckpoint: an id of `always` that the tokenizer does not have.
    """
    counts, _ = _count(tokenizer_json, texts)
    return _select(read_vocabulary(tokenizer_json), counts, size, multiple, always)


def _count(tokenizer_json: TokenizerJson, texts: Iterable[str]) -> tuple[Counter[int], int]:
    """Uses of every token, and the corpus's size in UTF-8 bytes."""
    if isinstance(texts, str):
        raise BadInput("the corpus is one str, expected several texts; pass [text]")
    tokenizer = Tokenizer.from_str(json.dumps(tokenizer_json))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    counts: Counter[int] = Counter()
    text_bytes = 0
    remaining = iter(texts)
    while batch := list(islice(remaining, _BATCH)):
        text_bytes += sum(len(text.encode()) for text in batch)
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            counts.update(encoding.ids)
    if not counts:
        raise BadInput("the corpus is empty; pass texts of the kind that the model will read")
    return counts, text_bytes


def _select(
    vocabulary: Vocabulary,
    counts: Counter[int],
    size: int | None,
    multiple: int,
    always: Iterable[int],
) -> list[int]:
    if multiple < 1:
        raise BadInput(f"multiple is {multiple}, expected 1 or more")
    always = set(always)
    unknown = sorted(always - vocabulary.text.keys())
    if unknown:
        raise BadCheckpoint(
            f"token {unknown[0]} is required, but the tokenizer has {len(vocabulary.text):,} "
            f"tokens, ids up to {max(vocabulary.text)}; is it from another model?"
        )
    kept = vocabulary.closed(vocabulary.required | always)
    uses = _uses(vocabulary, counts)
    if size is None:
        size = len(kept | {token for token, used in uses.items() if used})
    elif size < len(kept):
        raise BadInput(
            f"a vocabulary of {size:,} tokens is too small: {len(kept):,} are required (special "
            f"and added tokens, bytes or characters); set size to at least {len(kept):,}"
        )
    more = -(-size // multiple) * multiple - len(kept)
    optional = (token for token in _ranked(vocabulary, uses) if token not in kept)
    return sorted(kept.union(islice(optional, more)))


def _uses(vocabulary: Vocabulary, counts: Counter[int]) -> dict[int, int]:
    """Approximate number of extra tokens that the corpus would have without each token.

    A token counts where it occurs and where a longer one is merged from it, so that parts never
    count less than the whole.
    """
    uses = {token: counts[token] for token in vocabulary.text}
    for token in sorted(uses, key=lambda token: -len(vocabulary.text[token])):
        for part in vocabulary.parts.get(token, ()):
            uses[part] += uses[token]
    if vocabulary.byte_fallback:
        for token, text in vocabulary.text.items():
            if len(text) == 1:
                uses[token] *= max(1, len(text.encode()) - 1)
    return uses


def _ranked(vocabulary: Vocabulary, uses: dict[int, int]) -> list[int]:
    """All tokens, the most used first, and no token before its parts."""
    text = vocabulary.text
    preference = dict(vocabulary.preference)
    for token in sorted(text, key=lambda token: len(text[token])):
        parts = vocabulary.parts.get(token, ())
        preference[token] = max([preference[token], *(preference[part] for part in parts)])
    return sorted(
        text, key=lambda token: (-uses[token], preference[token], len(text[token]), token)
    )


def _parameters(model: Model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
