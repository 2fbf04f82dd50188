"""Build the tokenizer of a GGUF file from its own vocabulary, by llama.cpp's rules.

Only the file itself is read. Three kinds are supported: byte-level BPE; SentencePiece, whose merges
are not stored; and Gemma 4's, which has SentencePiece's words and stores its merges. Without merges
llama.cpp merges the neighbors whose joined token has the highest score, which is BPE with merges
ranked by score. (Tokens of equal score are ranked by id, while llama.cpp works from left to right;
in practice only tokens that text never merges have equal scores.)
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelm.checkpoint.gguf.metadata import GgufMetadata
from edgelm.checkpoint.gguf.pre_tokenizers import PreTokenizer
from edgelm.checkpoint.gguf.vocabulary import GgufVocabulary, TokenType, read_vocabulary
from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import shown
from edgelm.reasons import reason

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SPACE = "\u2581"  # SentencePiece's mark for a space
_SPECIAL = (TokenType.CONTROL, TokenType.UNKNOWN)


def gguf_tokenizer(metadata: GgufMetadata) -> "tuple[Tokenizer, GgufVocabulary]":
    """The tokenizer of a file, and the vocabulary that it was built from.

    Raises:
        BadCheckpoint: the file has no tokenizer, or one that would give different ids.
    """
    vocabulary = read_vocabulary(metadata)
    try:
        tokenizer = _build(vocabulary)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises plain Exception, and Rust's panics
        raise BadCheckpoint(
            f"{metadata.path}: its tokenizer cannot be built ({reason(error)}); convert the model "
            "again, or use its safetensors folder"
        ) from None
    _check(metadata, vocabulary, tokenizer)
    return tokenizer, vocabulary


def write_for_transformers(metadata: GgufMetadata, folder: Path) -> None:
    """Write a file's tokenizer into a folder for `AutoTokenizer.from_pretrained`.

    Raises:
        BadCheckpoint: as `gguf_tokenizer`.
    """
    tokenizer, vocabulary = gguf_tokenizer(metadata)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **vocabulary.special_texts(),
    }
    template = metadata.text("tokenizer.chat_template")
    if template is not None:
        config["chat_template"] = template
    text = json.dumps(config, indent=1, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def _build(vocabulary: GgufVocabulary) -> "Tokenizer":
    from tokenizers import AddedToken

    if vocabulary.pre is not None:
        tokenizer = _byte_level(vocabulary, vocabulary.pre)
    else:
        tokenizer = _sentencepiece(vocabulary)
    kinds = (*_SPECIAL, TokenType.USER_DEFINED)
    added = [
        AddedToken(
            token,
            special=kind in _SPECIAL,
            normalized=False,
            rstrip=_strips_right(vocabulary, token),
        )
        for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
        if kind in kinds
    ]
    # One call each: special and other tokens share one list, in order of ids.
    tokenizer.add_tokens([token for token in added if not token.special])
    tokenizer.add_special_tokens([token for token in added if token.special])
    _add_ends_of_text(tokenizer, vocabulary)
    return tokenizer


def _byte_level(vocabulary: GgufVocabulary, pre: PreTokenizer) -> "Tokenizer":
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    model = models.BPE(ids, _known_merges(vocabulary.merges, ids), ignore_merges=pre.ignore_merges)
    tokenizer = Tokenizer(model)
    splits: list[Any] = [
        pre_tokenizers.Split(Regex(expression), "isolated") for expression in pre.expressions
    ]
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _known_merges(merges: list[str], ids: dict[str, int]) -> list[tuple[str, str]]:
    pairs = []
    for merge in merges:
        cut = merge.find(" ", 1)  # a token may begin with a space
        left, right = merge[:cut], merge[cut + 1 :]
        if cut < 0 or left not in ids or right not in ids or left + right not in ids:
            raise ValueError(f"the merge {shown(merge)} does not join two tokens to a third one")
        pairs.append((left, right))
    return pairs


def _sentencepiece(vocabulary: GgufVocabulary) -> "Tokenizer":
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    unknown, merges = vocabulary.special.get("unk_token"), vocabulary.merges
    model = models.BPE(
        ids,
        _known_merges(merges, ids) if merges else _merges_by_score(vocabulary, ids),
        unk_token=None if unknown is None else vocabulary.tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    escape = normalizers.Replace(" ", _SPACE)
    prefix = [normalizers.Prepend(_SPACE)] if vocabulary.space_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, escape])
    if merges:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]+|\n+"), "isolated")
    strip = [decoders.Strip(" ", 1, 0)] if vocabulary.space_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _merges_by_score(vocabulary: GgufVocabulary, ids: dict[str, int]) -> list[tuple[str, str]]:
    order = sorted(range(len(vocabulary.tokens)), key=lambda index: -vocabulary.scores[index])
    merges = []
    for index in order:
        token = vocabulary.tokens[index]
        pairs = [
            (token[:cut], token[cut:])
            for cut in range(1, len(token))
            if token[:cut] in ids and token[cut:] in ids
        ]
        merges += sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return merges


def _strips_right(vocabulary: GgufVocabulary, token: str) -> bool:
    # As in llama.cpp for Phi-3, following its tokenizer.json.
    return vocabulary.strips_right and token not in ("<unk>", "<s>", "<|endoftext|>")


def _add_ends_of_text(tokenizer: "Tokenizer", vocabulary: GgufVocabulary) -> None:
    from tokenizers import processors

    names = ["bos_token"] * vocabulary.add_bos + ["eos_token"] * vocabulary.add_eos
    if not names:
        return
    texts = vocabulary.special_texts()
    template = "$A"
    if vocabulary.add_bos:
        template = f"bos_token {template}"
    if vocabulary.add_eos:
        template = f"{template} eos_token"
    tokens = [
        {"id": name, "ids": [vocabulary.special[name]], "tokens": [texts[name]]} for name in names
    ]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=tokens)


def _check(metadata: GgufMetadata, vocabulary: GgufVocabulary, tokenizer: "Tokenizer") -> None:
    """Raise BadCheckpoint unless every id stands for the file's own token."""
    built = tokenizer.get_vocab(with_added_tokens=True)
    expected = {token: index for index, token in enumerate(vocabulary.tokens)}
    if built != expected:
        token = next(iter(dict(set(built.items()) ^ set(expected.items()))))
        raise BadCheckpoint(
            f"{metadata.path}: the tokenizer built from it gives {shown(token)} the id "
            f"{built.get(token)}, the file has {expected.get(token)}; use the model's "
            "safetensors folder"
        )
