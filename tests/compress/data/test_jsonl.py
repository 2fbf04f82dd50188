"""The one reader of JSONL: what it yields and what it refuses, with file and line."""

import json
from pathlib import Path

import pytest

from edgelm.compress.data.jsonl import read_jsonl
from edgelm.errors import BadInput


def test_blank_lines_count_but_are_not_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    separator = {"text": "one line\u2028one row"}
    path.write_text(f'{{"n": 1}}\n\n  \n{json.dumps(separator, ensure_ascii=False)}\n', "utf-8")
    assert list(read_jsonl(path)) == [(f"{path}:1", {"n": 1}), (f"{path}:4", separator)]


def test_escaped_characters_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": "\\ud83d\\ude00"}\n', "utf-8-sig")
    assert list(read_jsonl(path)) == [(f"{path}:1", {"n": "\N{GRINNING FACE}"})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"n": 1}\n{"n":', r"a\.jsonl:2 is not JSON: .*; expected one object per line"),
        (b'{"n": 1}\n["n"]', r"a\.jsonl:2: expected a JSON object, found list"),
        (b'"n"', r"a\.jsonl:1: expected a JSON object, found str"),
        (b"[" * 100_000, r"a\.jsonl:1 is nested too deeply to be read"),
        (b"\xff\xfe", r"a\.jsonl cannot be read: it is not UTF-8 text"),
        (b'{"n": ["\\uD83d"]}', r"a\.jsonl:1: a text has half of a surrogate pair"),
    ],
    ids=["not JSON", "list", "text", "deep", "encoding", "surrogate"],
)
def test_what_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=message):
        list(read_jsonl(path))


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no such data file: .*none\.jsonl"):
        list(read_jsonl(tmp_path / "none.jsonl"))
    with pytest.raises(BadInput, match="cannot be read: Is a directory"):
        list(read_jsonl(tmp_path))
