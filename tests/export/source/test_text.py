"""Texts cut into sequences of tokens; what cannot be used is named."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, normalizers

from edgelm.errors import BadCheckpoint, BadInput
from edgelm.export.source.text import (
    CALIBRATION,
    GATE,
    SEQUENCE,
    SEQUENCES,
    affordable,
    read_passage,
)
from edgelm.files.hashing import file_sha256
from tests.checkpoints.tiny_chat import VOCAB, tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_plain_text_is_cut_evenly(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "text.txt", "The miller waits. " * 40)
    ids = tokenizer.encode(path.read_text(), add_special_tokens=False).ids
    passage = read_passage(path, tokenizer, vocab_size=VOCAB, context=64)
    count = len(ids) // 64
    assert 2 < count < SEQUENCES
    assert passage.tokens.shape == (count, 64)
    assert passage.tokens.dtype == torch.int64
    assert passage.tokens[0].tolist() == ids[:64]
    assert passage.tokens[-1].tolist() == ids[-64:]  # the end counts too
    assert (passage.name, passage.sha256) == ("text.txt", file_sha256(path))


def test_jsonl_is_joined(tmp_path: Path, tokenizer: Tokenizer) -> None:
    lines = [{"text": "The miller waits."}, {"text": "Why?", "id": 7}]
    path = write(tmp_path / "t.jsonl", "\n".join(json.dumps(line) for line in lines))
    passage = read_passage(path, tokenizer, vocab_size=VOCAB, context=8)
    expected = tokenizer.encode("The miller waits.\n\nWhy?", add_special_tokens=False).ids
    assert passage.tokens[0].tolist() == expected[:8]


def test_gzip(tmp_path: Path, tokenizer: Tokenizer) -> None:
    lines = "".join(json.dumps({"text": f"The miller waits {n}."}) + "\n" for n in range(40))
    plain = write(tmp_path / "t.jsonl", lines)
    packed = tmp_path / "t.jsonl.gz"
    packed.write_bytes(gzip.compress(lines.encode()))
    ours, theirs = (
        read_passage(path, tokenizer, vocab_size=VOCAB, context=32) for path in (packed, plain)
    )
    assert torch.equal(ours.tokens, theirs.tokens)
    assert (ours.name, ours.sha256) == ("t.jsonl.gz", file_sha256(packed))
    for damaged in (packed.read_bytes()[:-20], b"plain"):
        packed.write_bytes(damaged)
        with pytest.raises(BadInput, match=r"t\.jsonl\.gz is not a complete gzip file"):
            read_passage(packed, tokenizer, vocab_size=VOCAB, context=32)


def test_at_most_eight_sequences_of_512(tokenizer: Tokenizer) -> None:
    passage = read_passage(GATE, tokenizer, vocab_size=VOCAB, context=8192)
    assert passage.tokens.shape == (SEQUENCES, SEQUENCE) == (8, 512)
    assert torch.unique(passage.tokens, dim=0).shape[0] == 8


def test_exactly_one_sequence(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "t.txt", "The miller waits")
    count = len(tokenizer.encode(path.read_text()).ids)
    passage = read_passage(path, tokenizer, vocab_size=VOCAB, context=count)
    assert passage.tokens.shape == (1, count)


def test_first_sequences(tokenizer: Tokenizer) -> None:
    passage = read_passage(GATE, tokenizer, vocab_size=VOCAB, context=64)
    first = passage.first(3)
    assert torch.equal(first.tokens, passage.tokens[:3])
    assert first.sha256 == passage.sha256


def test_built_in_texts_are_held_apart(tokenizer: Tokenizer) -> None:
    texts = [
        {json.loads(line)["text"] for line in path.read_text().splitlines()}
        for path in (CALIBRATION, GATE)
    ]
    assert texts[0].isdisjoint(texts[1])
    sentences = [{s for text in part for s in text.split(". ") if len(s) > 40} for part in texts]
    assert sentences[0].isdisjoint(sentences[1])


@pytest.mark.parametrize("path", [CALIBRATION, GATE], ids=["calibration", "gate"])
def test_built_in_text_is_long_enough_for_every_sequence(path: Path) -> None:
    # A vocabulary of 250,000 makes a token of about five characters at most.
    characters = sum(len(json.loads(line)["text"]) for line in path.read_text().splitlines())
    assert characters / 5.5 > SEQUENCE * SEQUENCES


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", b"", r"t\.txt has 0 tokens, expected at least 64; give a longer text"),
        ("t.txt", b"Why?", r"has \d tokens, expected at least 64"),
        ("t.jsonl", b"", "has 0 tokens"),
        ("t.txt", b"\xff\xfe\x00", "is not UTF-8 text; expected JSONL or plain text"),
        ("t.jsonl", b'{"text": "a"}\n{"txt": "b"}', r't\.jsonl, line 2: expected .* "text" field'),
        ("t.jsonl", b"plain", r't\.jsonl, line 1: expected a JSON object with a "text" field'),
        ("t.jsonl", b'["text"]', "line 1: expected"),
        ("t.jsonl", b'{"text": 5}', "line 1: expected"),
        ("t.jsonl", b'{"text": "\\ud83d"}', "line 1: a text has half of a surrogate pair"),
    ],
    ids=[
        "empty",
        "too-short",
        "no-lines",
        "binary",
        "other-field",
        "no-json",
        "list",
        "number",
        "surrogate",
    ],
)
def test_unusable_text(
    tmp_path: Path, tokenizer: Tokenizer, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadInput, match=message):
        read_passage(path, tokenizer, vocab_size=VOCAB, context=64)


def test_a_byte_order_mark_is_no_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    line = json.dumps({"text": "The wheel turns until the level has dropped. " * 9})
    found = []
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "t.jsonl").write_text(line, encoding)
        passage = read_passage(tmp_path / "t.jsonl", tokenizer, vocab_size=VOCAB, context=64)
        found.append(passage.tokens.tolist())
    assert found[0] == found[1]


def test_missing_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(BadInput, match=f"no such text file: {tmp_path}/nothing"):
        read_passage(tmp_path / "nothing", tokenizer, vocab_size=VOCAB, context=64)


def test_a_folder_is_no_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(BadInput, match=str(tmp_path)):
        read_passage(tmp_path, tokenizer, vocab_size=VOCAB, context=64)


def test_a_line_of_jsonl_ends_at_a_newline_only(tmp_path: Path, tokenizer: Tokenizer) -> None:
    # json.dumps(..., ensure_ascii=False) leaves U+2028 and U+0085 in a string as they are.
    line = json.dumps({"text": "The miller\u2028waits\u0085until noon."}, ensure_ascii=False)
    path = tmp_path / "t.jsonl"
    path.write_bytes(f"{line}\n{line}\n".encode())
    passage = read_passage(path, tokenizer, vocab_size=VOCAB, context=8)
    assert tokenizer.decode(passage.tokens[0].tolist()).startswith("The miller")


def test_tokenizer_of_another_model(tokenizer: Tokenizer) -> None:
    with pytest.raises(
        BadInput, match=r"produces token \d+, the model's vocabulary has 100: .* belong together"
    ):
        read_passage(GATE, tokenizer, vocab_size=100, context=64)


def test_line_ends_of_other_systems(tmp_path: Path, tokenizer: Tokenizer) -> None:
    unix, windows = "The miller waits.\nWhy?\n" * 20, "The miller waits.\r\nWhy?\r\n" * 20
    passages = []
    for name, content in (("unix.txt", unix), ("windows.txt", windows)):
        (tmp_path / name).write_bytes(content.encode())
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
        for path in (tmp_path / name, tmp_path / f"{name}.gz"):
            passages.append(read_passage(path, tokenizer, vocab_size=VOCAB, context=32))
    assert all(torch.equal(one.tokens, passages[0].tokens) for one in passages)


@pytest.mark.parametrize(
    ("parameters", "sequences"),
    [(135_000_000, 8), (500_000_000, 8), (1_000_000_000, 4), (4_500_000_000, 2)],
)
def test_a_large_model_is_measured_on_fewer_sequences(parameters: int, sequences: int) -> None:
    assert affordable(SEQUENCES, parameters) == sequences


def test_a_text_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.txt.gz"
    path.write_bytes(gzip.compress(bytes(10_000_000)) * 3)
    with pytest.raises(BadInput, match="holds more than 20 MB of text"):
        read_passage(path, tiny_tokenizer(), vocab_size=VOCAB, context=16)


def test_a_deeply_nested_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "deep.jsonl"
    path.write_text("[" * 100_000)
    with pytest.raises(BadInput, match='line 1: expected a JSON object with a "text" field'):
        read_passage(path, tiny_tokenizer(), vocab_size=VOCAB, context=16)


def test_line_ends_are_those_of_text(tmp_path: Path) -> None:
    (tmp_path / "unix.txt").write_bytes(b"one two\nthree\n" * 40)
    (tmp_path / "dos.txt").write_bytes(b"one two\r\nthree\r\n" * 40)
    unix, dos = (
        read_passage(tmp_path / name, tiny_tokenizer(), vocab_size=VOCAB, context=16)
        for name in ("unix.txt", "dos.txt")
    )
    assert torch.equal(unix.tokens, dos.tokens)


def test_a_tokenizer_that_fails_on_the_text(tmp_path: Path) -> None:
    bomb = tiny_tokenizer()
    bomb.normalizer = normalizers.Replace(Regex("(a+)+$"), "a")
    path = write(tmp_path / "a.txt", "a" * 50 + "b")
    with pytest.raises(BadCheckpoint, match=r"tokenizer cannot encode a\.txt: .*retry-limit"):
        read_passage(path, bomb, vocab_size=VOCAB, context=8)
