"""Small tokenizers of every kind that vocabulary trimming supports, as `tokenizer.json` content."""

import json
import random
from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, UnigramTrainer

from edgelm.export.source.text import CALIBRATION
from tests.checkpoints.tiny_chat import tiny_tokenizer
from tests.sentencepiece import add_sentencepiece_steps

SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LLAMA3_SPLIT = r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"
TRAINED_ON = [json.loads(line)["text"] for line in CALIBRATION.read_text().splitlines()]


def as_json(tokenizer: Tokenizer) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    return content


def as_tokenizer(content: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(content))


def byte_level() -> dict[str, Any]:
    """As Llama 3: whole words first, beginning of text by a template, special tokens at the end."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated")
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytewise])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=1200,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINED_ON, trainer)
    tokenizer.add_special_tokens(["<|begin|>", "<|end|>"])
    begin = processors.TemplateProcessing("<|begin|> $A", special_tokens=[("<|begin|>", 1200)])
    bytewise_offsets = processors.ByteLevel(trim_offsets=True)
    tokenizer.post_processor = processors.Sequence([bytewise_offsets, begin])
    return as_json(tokenizer)


def byte_fallback() -> dict[str, Any]:
    """As Llama 2, Mistral and Gemma: `▁` for spaces, bytes for what has no token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = BpeTrainer(
        vocab_size=1300, special_tokens=SPECIAL + BYTES, show_progress=False, max_token_length=12
    )
    tokenizer.train_from_iterator([*TRAINED_ON, "über 漢字 façade"], trainer)
    content = as_json(tokenizer)
    content["added_tokens"] = content["added_tokens"][: len(SPECIAL)]
    content["model"]["merges"] = every_split(content["model"]["vocab"])
    tokenizer = as_tokenizer(content)
    tokenizer.pre_tokenizer = None
    add_sentencepiece_steps(tokenizer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
    tokenizer.enable_padding(pad_id=2, pad_token="</s>")
    tokenizer.enable_truncation(16)
    return as_json(tokenizer)


def every_split(vocab: dict[str, int]) -> list[list[str]]:
    """Merges as a conversion from SentencePiece makes them: all pairs that give a token."""
    merges = []
    for token in sorted(vocab, key=vocab.__getitem__):
        cuts = [(token[:at], token[at:]) for at in range(1, len(token))]
        pairs = [(left, right) for left, right in cuts if left in vocab and right in vocab]
        merges += [list(pair) for pair in sorted(pairs, key=lambda p: (vocab[p[0]], vocab[p[1]]))]
    return merges


def unigram(*, fallback: bool = True) -> dict[str, Any]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace()] if fallback else [decoders.Metaspace()]
    )
    special = SPECIAL + BYTES if fallback else SPECIAL
    trainer = UnigramTrainer(
        vocab_size=1000 if fallback else 700,
        special_tokens=special,
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINED_ON, trainer)
    content = as_json(tokenizer)
    content["added_tokens"] = content["added_tokens"][: len(SPECIAL)]
    content["model"]["byte_fallback"] = fallback
    return content


@cache
def _built(kind: str) -> str:
    return json.dumps(KINDS[kind]())


def small_tokenizer(kind: str) -> dict[str, Any]:
    """A fresh copy of one of `KINDS`."""
    content: dict[str, Any] = json.loads(_built(kind))
    return content


def random_bpe(seed: int) -> dict[str, Any]:
    """A BPE that no training makes: random merges, many ways to one token, dead ends."""
    rng = random.Random(seed)
    tokens = ["<unk>", *"ab"]
    merges: list[list[str]] = []
    while len(tokens) < 40:
        pair = rng.choices(tokens[1:], k=2)
        if len(token := "".join(pair)) <= 8 and pair not in merges:
            merges.append(pair)
            if token not in tokens:
                tokens.append(token)
    rng.shuffle(merges)
    vocab = {token: index for index, token in enumerate(tokens)}
    ranked = [(left, right) for left, right in merges]
    model = models.BPE(vocab, ranked, unk_token="<unk>", ignore_merges=seed % 3 == 0)
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Fuse()
    return as_json(tokenizer)


KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "tiny-chat": lambda: as_json(tiny_tokenizer()),
    "byte-level": byte_level,
    "byte-fallback": byte_fallback,
    "unigram": unigram,
    "unigram-characters": lambda: unigram(fallback=False),
}
