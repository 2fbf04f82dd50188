"""Saved chats: what comes back, and that nothing comes back from a file that does not fit."""

import json
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

import edgelm
from edgelm.errors import BadInput
from edgelm.runtime import LanguageModel
from edgelm.runtime.conversation import Chat
from edgelm.runtime.saved import session_file

COUNT = 8


@pytest.fixture
def saved(lm: LanguageModel, tmp_path: Path) -> Path:
    chat = lm.chat(system="Be brief.")
    chat.send("Why?", max_tokens=COUNT).read()
    chat.save(tmp_path / "a.session")
    return tmp_path / "a.session"


def test_a_chat_continues_where_it_was(lm: LanguageModel, bundle: Path, tmp_path: Path) -> None:
    chat = lm.chat(system="Be brief.")
    first = chat.send("Why?", max_tokens=COUNT).read()
    saved = chat.save(tmp_path / "a.session")
    assert saved.tokens >= first.usage.prompt_tokens
    assert saved.bytes == saved.path.stat().st_size
    assert str(saved).startswith(f"{saved.path}: the state of {saved.tokens} tokens, ")
    expected = chat.send("And then?", max_tokens=COUNT).read()
    with edgelm.load(bundle, threads=1) as other:
        again = other.chat(session=saved.path)
        assert again.messages == chat.messages[:3]
        reply = again.send("And then?", max_tokens=COUNT).read()
        assert reply.text == expected.text
        assert reply.usage.cached_tokens == expected.usage.cached_tokens >= saved.tokens
        again.reset()
        assert again.messages == chat.messages[:1]


def test_a_state_that_was_lost_is_computed_again(lm: LanguageModel, tmp_path: Path) -> None:
    chat = lm.chat()
    chat.send("Why?", max_tokens=COUNT).read()
    lm.generate([200] * 20, max_tokens=1)
    assert chat.save(tmp_path / "a.session").tokens == 0
    again = lm.chat(session=tmp_path / "a.session")
    assert again.messages == chat.messages
    expected = chat.send("And?", max_tokens=COUNT).read().text
    assert again.send("And?", max_tokens=COUNT).read().text == expected


def test_an_empty_chat(lm: LanguageModel, tmp_path: Path) -> None:
    lm.chat().save(tmp_path / "a.session")
    assert lm.chat(session=tmp_path / "a.session").messages == []


def test_only_its_owner_can_read_it(saved: Path) -> None:
    assert saved.stat().st_mode & 0o077 == 0


def test_messages_alone(saved: Path, lm: LanguageModel) -> None:
    chat = Chat.load(lm, saved, state=False)
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant"]
    assert lm.running == 0


def change_header(
    path: Path, change: Callable[[dict[str, object]], object], *, seal: bool = True
) -> None:
    content = path.read_bytes()
    at = len(session_file._MAGIC)
    (length,) = struct.unpack("<Q", content[at : at + 8])
    header = json.loads(content[at + 8 : at + 8 + length])
    change(header)
    encoded = json.dumps(header).encode()
    if seal:
        # Where the change is of a type that no header has, there is nothing to seal.
        with suppress(msgspec.MsgspecError):
            given = msgspec.json.decode(encoded, type=session_file.Header)
            encoded = msgspec.json.encode(session_file.sealed_header(given))
    path.write_bytes(
        content[:at] + struct.pack("<Q", len(encoded)) + encoded + content[at + 8 + length :]
    )


IDENTITY = {
    "graph": "another model",
    "tokenizer": "another tokenizer",
    "engine": "the engine other, this is onnxruntime",
    "edgelm": "edgelm other, this is",
}


@pytest.mark.parametrize(("field", "message"), IDENTITY.items(), ids=IDENTITY)
def test_of_something_else(saved: Path, lm: LanguageModel, field: str, message: str) -> None:
    change_header(saved, lambda header: header["identity"].update({field: "other"}))  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match=message):
        lm.chat(session=saved)
    assert Chat.load(lm, saved, state=False).messages


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "is not a saved session"),
    "text": (lambda _: b"hello " * 100, "is not a saved session"),
    "truncated": (lambda content: content[:-10], "truncated"),
    "longer": (lambda content: content + b"0", "truncated or changed"),
    "bit": (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "does not match its own hash"),
    "header": (lambda content: content[:15] + b"\xff" * 8 + content[23:], "its header has"),
    "json": (lambda content: content[:40] + b"}" + content[41:], "damaged or of another version"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damaged(
    saved: Path, lm: LanguageModel, damage: Callable[[bytes], bytes], message: str
) -> None:
    saved.write_bytes(damage(saved.read_bytes()))
    with pytest.raises(BadInput, match=message):
        lm.chat(session=saved)


HEADERS: dict[str, tuple[Callable[[dict[str, object]], object], str]] = {
    "version": (lambda header: header.update(schema_version=3), "schema version 3"),
    "dtype": (lambda header: header["arrays"][0].update(dtype="object"), "'object'"),  # type: ignore[index]
    "control tokens": (lambda header: header.update(template={"allow_special": True}), "may not"),
    "negative": (lambda header: header["arrays"][0].update(shape=[-1]), "damaged"),  # type: ignore[index]
    "fewer tokens": (lambda header: header["tokens"].pop(), "was not saved after these"),  # type: ignore[attr-defined]
    "role": (lambda header: header["messages"][0].update(role="x"), "bad message"),  # type: ignore[index]
    "heads": (lambda header: _move_axis(header), "does not have this model's shapes"),
}


def _move_axis(header: dict[str, object]) -> None:
    for array in header["arrays"]:  # type: ignore[attr-defined]
        batch, heads, rows, size = array["shape"]
        array["shape"] = [batch, 1, rows, heads * size]


@pytest.mark.parametrize(("change", "message"), HEADERS.values(), ids=HEADERS)
def test_headers_that_lie(
    saved: Path, lm: LanguageModel, change: Callable[[dict[str, object]], object], message: str
) -> None:
    change_header(saved, change)
    with pytest.raises(BadInput, match=message):
        lm.chat(session=saved)
    assert lm.running == 0


def test_a_header_that_was_changed(saved: Path, lm: LanguageModel) -> None:
    change_header(saved, lambda header: header["messages"][0].update(content="!"), seal=False)  # type: ignore[index]
    for state in (True, False):
        with pytest.raises(BadInput, match="does not match its own hash"):
            Chat.load(lm, saved, state=state)


def test_a_size_of_zero_beside_sizes_that_overflow(saved: Path, lm: LanguageModel) -> None:
    def empty(header: dict[str, object]) -> None:
        header["arrays"] = [{"dtype": "int8", "shape": [2**32, 2**32, 0]}]
        header["sha256"] = sha256(b"").hexdigest()

    change_header(saved, empty)
    content = saved.read_bytes()
    at = len(session_file._MAGIC)
    (length,) = struct.unpack("<Q", content[at : at + 8])
    saved.write_bytes(content[: at + 8 + length])
    with pytest.raises(BadInput, match="is damaged"):
        lm.chat(session=saved)


def test_not_a_file(lm: LanguageModel, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "a\0b"):
        with pytest.raises(BadInput, match=r"is not a file|cannot be read"):
            lm.chat(session=path)


def test_no_file(lm: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read: No such file"):
        lm.chat(session=tmp_path / "none")


def test_a_session_has_its_own_messages(lm: LanguageModel, saved: Path) -> None:
    with pytest.raises(BadInput, match="has its own messages"):
        lm.chat("Be brief.", session=saved)


def test_messages_that_are_no_plain_values(lm: LanguageModel, tmp_path: Path) -> None:
    chat = lm.chat(thing=SimpleNamespace())
    with pytest.raises(BadInput, match="cannot be saved"):
        chat.save(tmp_path / "a.session")
    assert not list(tmp_path.iterdir())
