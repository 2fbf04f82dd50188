"""A `tokenizer.json` with a part of its tokens, renumbered from 0 in their old order."""

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from edgelm.compress.vocabulary.pieces import (
    TokenizerJson,
    Vocabulary,
    check_ascending,
    model_ids,
    model_merges,
    read_vocabulary,
    with_ids,
)
from edgelm.errors import BadCheckpoint, BadInput


def trim_tokenizer(tokenizer_json: TokenizerJson, keep: Sequence[int]) -> dict[str, Any]:
    """Trim a `tokenizer.json` to the kept tokens, renumbered from 0 in their old order.

    Args:
        tokenizer_json: content of the file; it is not changed.
        keep: old ids, ascending, as `edgelm.compress.vocabulary.trim.kept_tokens` chooses them.

    Raises:
        BadInput: an unsupported kind of tokenizer, unknown ids, or a selection that would change
            the tokens of a text.
        BadCheckpoint: the trimmed file does not load as written.
    """
    check_ascending(keep)
    _check_closed(read_vocabulary(tokenizer_json), keep)
    return rewrite_tokenizer(tokenizer_json, keep)


def rewrite_tokenizer(tokenizer_json: TokenizerJson, keep: Sequence[int]) -> dict[str, Any]:
    """`trim_tokenizer` without checks; `keep` must be closed under merges."""
    new_ids = {old: new for new, old in enumerate(keep)}
    trimmed = {key: value for key, value in tokenizer_json.items() if key != "model"}
    trimmed = copy.deepcopy(trimmed)
    trimmed["model"] = _trimmed_model(tokenizer_json["model"], new_ids)
    added = trimmed.get("added_tokens") or []
    trimmed["added_tokens"] = [entry | {"id": new_ids[entry["id"]]} for entry in added]
    trimmed["post_processor"] = with_ids(trimmed.get("post_processor"), new_ids.__getitem__)
    if trimmed.get("padding"):
        trimmed["padding"]["pad_id"] = new_ids[trimmed["padding"]["pad_id"]]
    _check_ids(trimmed, len(keep))
    return trimmed


def with_vocabulary(tokenizer: Any, tokenizer_json: TokenizerJson) -> Any:
    """A copy of a `transformers` tokenizer with the vocabulary of another `tokenizer.json`.

    Chat template, special tokens and class stay the same, so that `save_pretrained` writes a
    folder that loads like the original.
    """
    backend = Tokenizer.from_str(json.dumps(tokenizer_json))
    # The copy has the new backend wherever the original has the old one.
    return copy.deepcopy(tokenizer, {id(tokenizer.backend_tokenizer): backend})


def _trimmed_model(model: Mapping[str, Any], new_ids: Mapping[int, int]) -> dict[str, Any]:
    trimmed = dict(model)
    if isinstance(model["vocab"], dict):
        kept = {token: new_ids[old] for token, old in model["vocab"].items() if old in new_ids}
        trimmed["vocab"] = kept
        trimmed["merges"] = [
            merge
            for merge, (left, right) in zip(model["merges"], model_merges(model), strict=True)
            if left in kept and right in kept and left + right in kept
        ]
        return trimmed
    trimmed["vocab"] = [pair for old, pair in enumerate(model["vocab"]) if old in new_ids]
    if model.get("unk_id") is not None:
        trimmed["unk_id"] = new_ids[model["unk_id"]]
    return trimmed


def _check_closed(vocabulary: Vocabulary, keep: Sequence[int]) -> None:
    kept = set(keep)
    unknown = sorted(kept - vocabulary.text.keys())
    if unknown:
        raise BadInput(
            f"cannot keep token {unknown[0]}: the tokenizer has {len(vocabulary.text):,} tokens, "
            f"ids up to {max(vocabulary.text)}"
        )
    missing = sorted(vocabulary.closed(kept | vocabulary.required) - kept)
    if missing:
        raise BadInput(
            f"the kept tokens lack {len(missing):,} that are required or that others are merged "
            f"from, first {vocabulary.text[missing[0]]!r} (id {missing[0]}); select with "
            "kept_tokens"
        )


def _check_ids(trimmed: dict[str, Any], size: int) -> None:
    read = Tokenizer.from_str(json.dumps(trimmed)).get_vocab(with_added_tokens=True)
    model = trimmed["model"]
    written = dict(model_ids(model))
    written |= {entry["content"]: entry["id"] for entry in trimmed["added_tokens"]}
    if read != written or len(written) != size:
        raise BadCheckpoint(
            f"the trimmed tokenizer loads with {len(read):,} tokens, {size:,} were kept; does the "
            "original have a token twice, or ids with gaps?"
        )
