"""The tokens of a `tokenizer.json`, and the tokens that each is merged from.

Why removing tokens can be lossless. BPE merges the pair of lowest rank first. No merge crosses the
border of a token of the result, so the merges within it are those of BPE on the token's own string:
its path. If the path of every kept token is kept, and the merges whose parts and result are kept
stay in their old order, then text that used only kept tokens goes through the same merges in the
same order; the removed merges never applied there. Unigram takes the best path through all pieces;
removing pieces cannot make another path better, as long as the score of unknown characters (the
lowest score of the vocabulary, minus a constant) stays.

Text that used other tokens is split into smaller pieces, down to bytes, and still decodes to the
same text.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from edgelm.errors import BadCheckpoint, BadInput

TokenizerJson = Mapping[str, Any]  # the content of a tokenizer.json

_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
# Byte fallback cannot replace it: decoders turn it into a space before they join bytes.
_SPACE = "▁"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of a tokenizer, with what trimming needs to know.

    Attributes:
        text: token string of every id, added tokens included.
        parts: ids that a token is merged from: the two of its last merge. Single characters, added
            tokens and Unigram pieces have none.
        required: always kept: added and special tokens, unknown, bytes or characters.
        preference: order of tokens that the corpus does not use; the lowest first.
        byte_fallback: whether a character without a token becomes its UTF-8 bytes.
    """

    text: dict[int, str]
    parts: dict[int, tuple[int, ...]]
    required: frozenset[int]
    preference: dict[int, float]
    byte_fallback: bool

    def closed(self, tokens: Iterable[int]) -> set[int]:
        """The tokens and all tokens that they are merged from."""
        found: set[int] = set()
        waiting = list(tokens)
        while waiting:
            token = waiting.pop()
            if token not in found:
                found.add(token)
                waiting.extend(self.parts.get(token, ()))
        return found


def read_vocabulary(tokenizer_json: TokenizerJson) -> Vocabulary:
    """Read the vocabulary of a tokenizer; takes seconds for 250,000 tokens.

    Raises:
        BadInput: neither BPE nor Unigram, or a BPE with word-position marks.
        BadCheckpoint: the file uses an id that no token has.
    """
    model = tokenizer_json["model"]
    kind = _model_kind(model)
    ids = model_ids(model)
    added = {entry["id"]: entry["content"] for entry in tokenizer_json.get("added_tokens") or []}
    text = {index: token for token, index in ids.items()} | added
    parts = _bpe_parts(model, ids) if kind == "BPE" else {}
    named = set(added) | _named_ids(tokenizer_json) | _unknown(model, ids)
    missing = sorted(named - text.keys())
    if missing:
        raise BadCheckpoint(
            f"tokenizer.json uses id {missing[0]}, which none of its {len(text):,} tokens has; "
            "is the file damaged?"
        )
    characters = {index for token, index in ids.items() if len(token) == 1}
    falls_back = bool(model.get("byte_fallback")) and ids.keys() >= _BYTES
    base = {ids[token] for token in _BYTES | {_SPACE} if token in ids} if falls_back else characters
    preference = {index: float(index) for index in text}
    if kind == "Unigram":
        preference |= {index: -model["vocab"][index][1] for index in ids.values()}
        # The lowest score sets that of an unknown character, see the module's docstring.
        base.add(max(ids.values(), key=preference.__getitem__))
    return Vocabulary(text, parts, frozenset(named | base), preference, falls_back)


def model_ids(model: Mapping[str, Any]) -> dict[str, int]:
    """Id of every token of a tokenizer's model, without added tokens."""
    if isinstance(model["vocab"], dict):
        return model["vocab"]
    return {piece: index for index, (piece, _) in enumerate(model["vocab"])}


def model_merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs in order of rank; older files write them as "left right"."""
    merges = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    return [(left, right) for left, right in merges]


def with_ids(processor: Any, new_id: Callable[[int], int]) -> Any:
    """A post-processor with every token id replaced; None stays None."""
    kind = processor["type"] if processor else None
    if kind == "Sequence":
        inner = [with_ids(part, new_id) for part in processor["processors"]]
        return processor | {"processors": inner}
    if kind == "TemplateProcessing":
        special = {
            name: entry | {"ids": [new_id(index) for index in entry["ids"]]}
            for name, entry in processor["special_tokens"].items()
        }
        return processor | {"special_tokens": special}
    if kind in ("BertProcessing", "RobertaProcessing"):
        ends = {end: [processor[end][0], new_id(processor[end][1])] for end in ("sep", "cls")}
        return processor | ends
    return processor


def check_ascending(keep: Sequence[int]) -> None:
    """Raise BadInput unless the ids are ascending, unique and not empty."""
    if not keep or keep[0] < 0 or any(left >= right for left, right in pairwise(keep)):
        raise BadInput(
            "the kept token ids are not ascending, unique and non-negative; pass "
            "sorted(set(keep)), or the result of kept_tokens"
        )


def _model_kind(model: Mapping[str, Any]) -> str:
    # Early versions of the format have no type; only BPE has merges.
    kind = model.get("type") or ("BPE" if "merges" in model else None)
    if kind not in ("BPE", "Unigram"):
        raise BadInput(f"cannot trim a tokenizer of type {kind!r}; supported: BPE, Unigram")
    for field in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(field):
            raise BadInput(
                f"cannot trim a BPE tokenizer with {field} {model[field]!r}; supported: byte-level "
                "BPE and BPE with byte fallback, which have none"
            )
    return str(kind)


def _unknown(model: Mapping[str, Any], ids: Mapping[str, int]) -> set[int]:
    if isinstance(model["vocab"], dict):
        return {ids[model["unk_token"]]} if model.get("unk_token") in ids else set()
    return {model["unk_id"]} if model.get("unk_id") is not None else set()


def _named_ids(tokenizer_json: TokenizerJson) -> set[int]:
    """Ids that the post-processor and the padding add to a text."""
    found: set[int] = set()

    def note(index: int) -> int:
        found.add(index)
        return index

    with_ids(tokenizer_json.get("post_processor"), note)
    padding = tokenizer_json.get("padding")
    return found | {padding["pad_id"]} if padding else found


def _bpe_parts(model: Mapping[str, Any], ids: Mapping[str, int]) -> dict[int, tuple[int, ...]]:
    merges = model_merges(model)
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    ways: dict[str, list[tuple[str, str]]] = {}
    for left, right in merges:
        ways.setdefault(left + right, []).append((left, right))
    parts = {}
    for token, pairs in ways.items():
        last = _last_merge(token, ranks)
        # Not reachable from its characters, but perhaps from bytes: keep every merge.
        used = [last] if last else pairs
        parts[ids[token]] = tuple(dict.fromkeys(ids[part] for pair in used for part in pair))
    return parts


def _last_merge(token: str, ranks: Mapping[tuple[str, str], int]) -> tuple[str, str] | None:
    """The pair that BPE merges last for this token; None if it never produces the token."""
    pieces = list(token)
    while len(pieces) > 2:
        found = [ranks.get(pair, math.inf) for pair in pairwise(pieces)]
        best = min(found)
        if best == math.inf:
            return None
        at = found.index(best)  # the leftmost of equal ones, as in BPE
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    last = (pieces[0], pieces[-1])
    return last if last in ranks else None
