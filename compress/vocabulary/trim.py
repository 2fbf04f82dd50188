"""Trim the vocabulary to the tokens that a use needs: tokenizer and embeddings shrink together.

In small models the embedding is a large part: 28 of SmolLM2-135M's 135 million parameters, of
which a megabyte of English articles uses 11. Text that used only kept tokens is cut as before, and
the logits of those tokens are the ones they were; why, says `edgelm.compress.vocabulary.pieces`.
Other text becomes more tokens, in the end bytes, and decodes to what it did.
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

MULTIPLE = 128  # what matrix units and TensorRT-Edge-LLM's reduced vocabulary want
_BATCH = 256  # texts


@dataclass(frozen=True, slots=True)
class Trimmed:
    """A model and its tokenizer with a smaller vocabulary, and what that costs on a corpus.

    Attributes:
        model: a new model with `len(keep)` embeddings.
        tokenizer_json: content of the new `tokenizer.json`.
        keep: old id of every new id, ascending.
        coverage: share of the corpus's tokens that are kept, 0 to 1; at 1 nothing changes on it.
        tokens_per_byte_before: tokens per UTF-8 byte of the corpus with the old tokenizer.
        tokens_per_byte_after: the same with the new one.
        parameters_saved: parameters that the model lost; tied embeddings count once.
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
        model: a causal language model of `transformers`; it is not changed.
        tokenizer_json: content of its `tokenizer.json`; it is not changed.
        texts: the corpus as the model will see it and write it, chats in their template. Read
            twice where `size` leaves out tokens that it uses; an iterator is therefore held in
            memory, a list or a dataset is not copied.
        size: tokens to keep; by default all that the corpus uses.
        multiple: of which the vocabulary's size becomes one by taking more tokens, unless the
            tokenizer has no more.

    Raises:
        BadInput: no text, a tokenizer that is not supported, or a size below what has to stay.
        BadCheckpoint: tokenizer and model do not belong together.
    """
    if isinstance(texts, Iterator):
        texts = list(texts)
    vocabulary = read_vocabulary(tokenizer_json)
    counts, text_bytes = _count(tokenizer_json, texts)
    keep = _choose(vocabulary, counts, size, multiple, config_ids(model))
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
    """Choose the tokens to keep, as ascending ids.

    What has to stay: added and special tokens, the bytes (or, where a tokenizer has none, all
    characters), `always`, and what these are built from. Then the tokens that the corpus uses most
    often, alone or on the way to a longer one, then the tokenizer's own order of merges or scores.

    Args:
        tokenizer_json: content of the file.
        texts: the corpus, read once and never held as a whole.
        size: tokens to keep; by default all that the corpus uses.
        multiple: of which the number becomes one by taking more tokens, unless there are no more.
        always: ids to keep whether the corpus uses them or not.

    Raises:
        BadInput: no text, a tokenizer that is not supported, or a size below what has to stay.
        BadCheckpoint: an id of `always` that the tokenizer does not have.
    """
    counts, _ = _count(tokenizer_json, texts)
    return _choose(read_vocabulary(tokenizer_json), counts, size, multiple, always)


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
        raise BadInput(
            "the corpus has no text to count tokens in; pass texts of the kind the model will see"
        )
    return counts, text_bytes


def _choose(
    vocabulary: Vocabulary,
    counts: Counter[int],
    size: int | None,
    multiple: int,
    always: Iterable[int],
) -> list[int]:
    if multiple < 1:
        raise BadInput(f"the vocabulary's size cannot be a multiple of {multiple}; use 1 or more")
    always = set(always)
    unknown = sorted(always - vocabulary.text.keys())
    if unknown:
        raise BadCheckpoint(
            f"token {unknown[0]} has to stay, but the tokenizer has {len(vocabulary.text):,} "
            f"tokens, ids up to {max(vocabulary.text)}; is it from another model?"
        )
    kept = vocabulary.closed(vocabulary.required | always)
    uses = _uses(vocabulary, counts)
    if size is None:
        size = len(kept | {token for token, used in uses.items() if used})
    elif size < len(kept):
        raise BadInput(
            f"a vocabulary of {size:,} tokens is too small; {len(kept):,} have to stay (special "
            f"and added tokens, bytes or characters), so ask for at least {len(kept):,}"
        )
    more = -(-size // multiple) * multiple - len(kept)
    optional = (token for token in _ranked(vocabulary, uses) if token not in kept)
    return sorted(kept.union(islice(optional, more)))


def _uses(vocabulary: Vocabulary, counts: Counter[int]) -> dict[int, int]:
    """How many tokens more the corpus would have without a token, roughly.

    A token is used where it stands and where a longer one is built from it, so that parts are
    never used less than the whole.
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
    """All tokens, the most useful first, and no token before its parts."""
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
