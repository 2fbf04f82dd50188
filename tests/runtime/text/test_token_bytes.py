"""The bytes of single tokens: together they are the text, even where one is half a character."""

from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, models

from edgelm.runtime.text.token_bytes import TokenBytes, token_name
from edgelm.runtime.text.tokenizer import Tokenizer
from tests.checkpoints.tiny_chat import tiny_tokenizer
from tests.sentencepiece import add_sentencepiece_steps

TEXT = "Grüße 😀 the miller\n waits, 中"


def saved(tokenizer: tokenizers.Tokenizer, folder: Path) -> Tokenizer:
    tokenizer.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder / "tokenizer.json")


def sentencepiece() -> tokenizers.Tokenizer:
    """As Llama 2 and Mistral have it: bytes for what is unknown, and a space before the text."""
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁the", "▁m", *"abcdefghijklmnopqrstuvwxyzG,"]
    vocab = {piece: at for at, piece in enumerate(pieces)}
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    add_sentencepiece_steps(tokenizer)
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    return tokenizer


def test_byte_level(tmp_path: Path) -> None:
    tokenizer = saved(tiny_tokenizer(), tmp_path)
    names = TokenBytes(tokenizer)
    parts = [names(int(token)) for token in tokenizer.encode(TEXT, special=False)]
    assert b"".join(parts) == TEXT.encode()
    assert b"\xf0" in parts  # the emoji is four tokens
    assert names(3) == b"<|end|>"
    assert names(10_000) == b""


def test_byte_fallback(tmp_path: Path) -> None:
    tokenizer = saved(sentencepiece(), tmp_path)
    names = TokenBytes(tokenizer)
    parts = [names(int(token)) for token in tokenizer.encode(TEXT, special=False)]
    assert b"".join(parts) == f" {TEXT}".encode()
    assert b"\xf0" in parts
    assert names(1) == b"<s>"


@pytest.mark.parametrize(
    ("content", "name"),
    [(b" the", " the"), ("é".encode(), "é"), (b"\xf0\x9f", "bytes:\\xf0\\x9f"), (b"", "")],
)
def test_names(content: bytes, name: str) -> None:
    assert token_name(content, "bytes:") == name
