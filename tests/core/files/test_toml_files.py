"""TOML files: what is not one is refused by name, quickly, whatever it is."""

import os
from pathlib import Path
from typing import Annotated

import msgspec
import pytest

from edgelm.errors import BadInput
from edgelm.files.toml_files import MAX_BYTES, convert_toml, read_toml


class Record(msgspec.Struct, forbid_unknown_fields=True):
    name: str = ""
    share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a = \xff", "can't decode byte 0xff"),
        (b"a = ", "Invalid value"),
        (b"a = 1\na = 2", "Cannot overwrite a value"),
        (b"a = " + b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b"a = " + b"9" * 5_000, "4300"),
        (b"#" * (MAX_BYTES + 1), "larger than 1,000,000 bytes"),
        ("a = 1".encode("utf-16"), "can't decode"),
    ],
    ids=["latin", "cut", "twice", "deep", "digits", "large", "utf-16"],
)
def test_what_is_not_toml_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(data)
    with pytest.raises(BadInput, match=message) as caught:
        read_toml(path)
    assert str(caught.value).startswith(f"{path}")


def test_a_pipe_and_a_device_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    for path in (tmp_path / "pipe.toml", Path("/dev/zero")):
        with pytest.raises(BadInput, match="is not a regular file"):
            read_toml(path)
    with pytest.raises(BadInput, match=r"null (byte|character)"):
        read_toml(tmp_path / "a\x00b")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nam": "x"}, "unknown field `nam`"),
        ({"share": float("nan")}, r"Expected `float` > 0.0 - at `\$\.share`"),
        ({"share": 10**400}, "out of range"),
        ({"share": 2}, r"<= 1.0 - at `\$\.share`"),
    ],
)
def test_a_field_is_named(tmp_path: Path, values: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        convert_toml(values, Record, tmp_path / "x.toml")
    assert convert_toml({"share": 0.5}, Record, tmp_path) == Record(share=0.5)


def test_a_message_stays_short(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(f"[a.{'x' * 50_000}]\n[a.{'x' * 50_000}]\n")
    with pytest.raises(BadInput) as caught:
        convert_toml({"x" * 50_000: 1}, Record, path)
    assert len(str(caught.value)) < 1_000
