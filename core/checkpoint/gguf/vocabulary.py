"""The vocabulary of a GGUF file: tokens, their types, and the end-of-generation tokens.

The rules and defaults are those of llama.cpp's loader (llama-vocab.cpp).
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from edgelm.checkpoint.gguf.config.config_reader import token_id
from edgelm.checkpoint.gguf.metadata import GgufMetadata
from edgelm.checkpoint.gguf.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import shown

_KEY = "tokenizer.ggml."
_MAX_TOKEN_CHARACTERS = 4096


class TokenType(IntEnum):
    """Token types, with the numbers of the file format."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# Hugging Face's name of a special token -> the word in the file's key.
_SPECIAL = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "sep_token": "seperator",  # the spelling of the format
    "pad_token": "padding",
    "cls_token": "cls",
    "mask_token": "mask",
}
# Defaults of SentencePiece vocabularies.
_SENTENCEPIECE_DEFAULTS = {"bos_token": 1, "eos_token": 2, "unk_token": 0}

# Tokens that end a turn in every vocabulary.
END_OF_TURN = frozenset(
    {
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<|tool_response>",  # Gemma 4: what comes after it is not the model's
        "<｜end▁of▁sentence｜>",
    }
)
# These only as control tokens: in some vocabularies they are HTML or ordinary words.
_END_IF_CONTROL = frozenset({"</s>", "<eos>", "[EOS]", "[EOT]", "<|EOT|>", "<turn|>"})


@dataclass(frozen=True, slots=True)
class GgufVocabulary:
    """The input of `gguf_tokenizer`.

    `special` maps Hugging Face's names (`bos_token`, ...) to ids; `eos_token_ids` end an answer.
    `pre` is set for byte-level BPE; without it, words are SentencePiece's, which are merged by
    `scores`, or (Gemma 4) in the order of `merges`.
    """

    tokens: list[str]
    types: list[int]
    special: dict[str, int]
    eos_token_ids: list[int]
    add_bos: bool
    add_eos: bool
    pre: PreTokenizer | None
    merges: list[str]
    scores: list[float]
    space_prefix: bool
    strips_right: bool
    """Control tokens remove the white space after them (Phi-3)."""

    def special_texts(self) -> dict[str, str]:
        """Text of each special token by its name."""
        return {name: self.tokens[index] for name, index in self.special.items()}


def read_vocabulary(metadata: GgufMetadata) -> GgufVocabulary:
    """Read the vocabulary of a file.

    Raises:
        BadCheckpoint: it is missing, inconsistent, or of an unsupported kind.
    """
    return _Reader(metadata).read()


class _Reader:
    def __init__(self, metadata: GgufMetadata) -> None:
        self.metadata = metadata
        self.path = metadata.path

    def read(self) -> GgufVocabulary:
        model = self.metadata.text(f"{_KEY}model")
        if model is None or model in ("none", "no_vocab"):
            raise BadCheckpoint(
                f"{self.path} has no tokenizer (no key {_KEY}model); convert the model again "
                "with its tokenizer, or use its safetensors folder"
            )
        if model not in ("gpt2", "llama", "gemma4"):
            raise BadCheckpoint(
                f"{self.path}: a tokenizer of kind {shown(model)} is not supported; known: gpt2 "
                "(byte-level BPE), llama (SentencePiece), gemma4; use the model's safetensors "
                "folder"
            )
        byte_level, scored = model == "gpt2", model == "llama"
        tokens = self.tokens()
        types = self.types(tokens)
        special = self.special(tokens, _SENTENCEPIECE_DEFAULTS if scored else {})
        pre = self.pre_tokenizer() if byte_level else None
        return GgufVocabulary(
            tokens=tokens,
            types=types,
            special=special,
            eos_token_ids=self.ends(tokens, types, special),
            add_bos=model == "gemma4"  # whatever the file says, as in llama.cpp
            or self.adds("bos", special, default=pre.add_bos if pre else True),
            add_eos=self.adds("eos", special, default=False),
            pre=pre,
            merges=[] if scored else self.merges(),
            scores=self.scores(tokens) if scored else [],
            space_prefix=self.metadata.flag(f"{_KEY}add_space_prefix", scored) or False,
            strips_right=self.is_phi3(),
        )

    def tokens(self) -> list[str]:
        tokens = self.metadata.texts(f"{_KEY}tokens")
        if not tokens:
            raise BadCheckpoint(
                f"{self.path} has a tokenizer without tokens ({_KEY}tokens); download it again"
            )
        tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]
        longest = max(map(len, tokens))
        if longest > _MAX_TOKEN_CHARACTERS:
            raise BadCheckpoint(
                f"{self.path}: a token of {longest} characters in {_KEY}tokens, at most "
                f"{_MAX_TOKEN_CHARACTERS} are read"
            )
        if len(set(tokens)) < len(tokens):
            seen: set[str] = set()
            twice = next(token for token in tokens if token in seen or seen.add(token))  # type: ignore[func-returns-value]
            raise BadCheckpoint(
                f"{self.path}: the token {shown(twice)} is in {_KEY}tokens more than once, so "
                "token ids are ambiguous; convert the model again"
            )
        return tokens

    def types(self, tokens: list[str]) -> list[int]:
        types = self.metadata.numbers(f"{_KEY}token_type", "iu")
        if types is None:
            return [TokenType.NORMAL] * len(tokens)
        self.same_length("token_type", len(types), len(tokens))
        # llama.cpp treats these as control tokens even if the file calls them normal.
        return [
            TokenType.CONTROL if token in END_OF_TURN else kind
            for token, kind in zip(tokens, types, strict=True)
        ]

    def scores(self, tokens: list[str]) -> list[float]:
        scores = self.metadata.numbers(f"{_KEY}scores", "f")
        if scores is None:
            raise BadCheckpoint(
                f"{self.path}: a SentencePiece tokenizer without {_KEY}scores, which give the "
                "order of merges; convert the model again"
            )
        self.same_length("scores", len(scores), len(tokens))
        return scores

    def merges(self) -> list[str]:
        merges = self.metadata.texts(f"{_KEY}merges")
        if merges is None:
            raise BadCheckpoint(
                f"{self.path}: a BPE tokenizer without {_KEY}merges; convert the model again"
            )
        return merges

    def same_length(self, name: str, found: int, expected: int) -> None:
        if found != expected:
            raise BadCheckpoint(
                f"{self.path}: {_KEY}{name} has {found} entries, expected one for each of "
                f"{expected} tokens; convert the model again"
            )

    def special(self, tokens: list[str], defaults: dict[str, int]) -> dict[str, int]:
        ids: dict[str, int] = {}
        for name, word in _SPECIAL.items():
            default = defaults.get(name)
            found = self.identifier(word, tokens)
            if found is None and f"{_KEY}{word}_token_id" not in self.metadata:
                found = default if default is not None and default < len(tokens) else None
            if found is not None:
                ids[name] = found
        return ids

    def identifier(self, word: str, tokens: list[str]) -> int | None:
        index = token_id(self.metadata, word)
        if index is not None and index >= len(tokens):
            raise BadCheckpoint(
                f"{self.path}: {_KEY}{word}_token_id is {index}, the vocabulary has {len(tokens)} "
                "tokens; convert the model again"
            )
        return index

    def ends(self, tokens: list[str], types: list[int], special: dict[str, int]) -> list[int]:
        ids = [self.identifier(word, tokens) for word in ("eot", "eom")]
        named = {
            index
            for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if token in END_OF_TURN or (token in _END_IF_CONTROL and kind == TokenType.CONTROL)
        }
        first = special.get("eos_token")
        ends = [index for index in (first, *ids, *sorted(named)) if index is not None]
        return without_channels(list(dict.fromkeys(ends)), lambda index: tokens[index])

    def adds(self, word: str, special: dict[str, int], *, default: bool) -> bool:
        key = f"{_KEY}add_{word}_token"
        adds = self.metadata.flag(key, default)
        if adds and f"{word}_token" not in special:
            if key not in self.metadata:
                return False
            raise BadCheckpoint(
                f"{self.path}: {key} is true, but {_KEY}{word}_token_id is missing; convert the "
                "model again"
            )
        return bool(adds)

    def pre_tokenizer(self) -> PreTokenizer:
        name = self.metadata.text(f"{_KEY}pre")
        if name is None:
            raise BadCheckpoint(
                f"{self.path} does not name its pre-tokenizer ({_KEY}pre is missing, as "
                "in files from before May 2024); convert the model again"
            )
        if name not in PRE_TOKENIZERS:
            raise BadCheckpoint(
                f"{self.path}: unknown pre-tokenizer {shown(name)} ({_KEY}pre); "
                f"known: {', '.join(sorted(PRE_TOKENIZERS))}; use the model's "
                "safetensors folder"
            )
        return PRE_TOKENIZERS[name]

    def is_phi3(self) -> bool:
        name = self.metadata.values.get("general.name")
        return isinstance(name, str) and any(word in name.lower() for word in ("phi-3", "phi3"))


def without_channels(ends: list[int], text: Callable[[int], str | None]) -> list[int]:
    """Leave out `<|end|>` if it only ends a channel, as `<|return|>` and `<|call|>` show."""
    texts = {text(index) for index in ends}
    if not {"<|return|>", "<|call|>"} <= texts:
        return ends
    return [index for index in ends if text(index) != "<|end|>"]
