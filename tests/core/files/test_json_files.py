"""JSON from elsewhere: read, or refused by name, whatever it is."""

import os
from pathlib import Path
from typing import Any

import pytest

from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import parse_json_object, read_json_object, shown


def test_utf8_whatever_the_locale(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes('{"a": "｜é"}'.encode())
    assert read_json_object(path) == {"a": "｜é"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not valid JSON"),
        (b'{"a": ', "not valid JSON"),
        (b"\xff\xfe{\x00}\x00", "not encoded in UTF-8"),
        (b'\xef\xbb\xbf{"a": 1}', "not valid JSON.*BOM"),
        (b'{"a": 1, "b": {"c": 2, "c": 3}}', "the key 'c' appears twice"),
        (b"[1]", "contains list, expected an object"),
        (b"1", "contains int, expected an object"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "not valid JSON"),
        (b"[" + b"[]," * 1_000_000 + b"[]]", "about 2,000,00. values, expected at most"),
    ],
    ids=[
        *("empty", "cut-off", "utf-16", "byte-order-mark", "twice", "list", "number"),
        *("deep-list", "deep-object", "long-integer", "many-values"),
    ],
)
def test_refused(data: bytes, message: str) -> None:
    with pytest.raises(BadCheckpoint, match=f"(?s)config.json .*{message}"):
        parse_json_object(data, "config.json")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(BadCheckpoint, match=r"a\.json is not a regular file"):
        read_json_object(tmp_path / "a.json")


def test_a_device_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").symlink_to("/dev/zero")
    with pytest.raises(BadCheckpoint, match="not a regular file"):
        read_json_object(tmp_path / "a.json")


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(10**10)  # sparse
    with pytest.raises(BadCheckpoint, match="10,000,000,000 bytes, expected at most"):
        read_json_object(path)


@pytest.mark.parametrize(
    "value", ["x" * 10**6, [[[[1]]]] * 1000, {"a": {"b": {"c": 1}}}, 10**4000, None]
)
def test_a_value_in_a_message_is_short(value: Any) -> None:
    assert len(shown(value)) < 200


def test_ordinary_values_are_shown_as_they_are() -> None:
    for value in (None, True, 0.5, "abc", [1, 2], {"a": 1}):
        assert shown(value) == repr(value)
