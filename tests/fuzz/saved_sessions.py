"""Saved chats: damaged ones are refused, forged ones are refused or continued without a crash."""

import copy
import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec

import edgelm
from edgelm.runtime.saved.session_file import Header, sealed_header
from tests.fuzz.bytewise import mutate_bytes
from tests.fuzz.kind import Case, Kind, Opened
from tests.fuzz.outcome import Wrong
from tests.fuzz.strange import dump, mutate
from tests.fuzz.tiny_bundle import write_bundle

_LENGTH = struct.Struct("<Q")
_MAGIC = b"edgelm-session\n"
_QUESTION = "And at night?"


class SavedSessions(Kind):
    """Without the right hashes, what opens must continue as the file that was saved."""

    name = "session"
    tested = 200

    def prepare(self, folder: Path) -> None:
        self.bundle = write_bundle(folder)
        path = folder / "chat"
        with edgelm.load(self.bundle, threads=1) as lm:
            chat = lm.chat("Be brief.")
            chat.send("Why is the sky blue?", max_tokens=4).read()
            chat.save(path)
        self.saved = path.read_bytes()
        self.continued = continued(self.bundle, path)

    def make(self, rng: Random, folder: Path) -> Case:
        if rng.random() < 0.4:
            data, note = mutate_bytes(rng, self.saved)
            damaged = True
        else:
            data, note, damaged = _changed_header(rng, self.saved)
        (folder / "chat").write_bytes(data)
        return Case(note, {"damaged": damaged})

    def check(self, folder: Path, case: Case, reference: Callable[[], None]) -> Opened:
        answers = continued(self.bundle, folder / "chat")
        reference()
        if answers == self.continued:
            return "equal"
        if case.facts["damaged"]:
            raise Wrong("it continues otherwise than the chat that was saved")
        return "other"


def continued(bundle: Path, path: Path) -> tuple[Any, ...]:
    """Messages of a saved chat, and what is answered next."""
    with edgelm.load(bundle, threads=1) as lm:
        chat = lm.chat(session=path)
        before = copy.deepcopy(chat.messages)
        return before, chat.send(_QUESTION, max_tokens=3, logprobs=2).read().chunks


def _changed_header(rng: Random, saved: bytes) -> tuple[bytes, str, bool]:
    """A value of the header changed, half of the time with the hashes that a forger computes."""
    start = len(_MAGIC) + _LENGTH.size
    end = start + _LENGTH.unpack(saved[len(_MAGIC) : start])[0]
    tree, state = json.loads(saved[start:end]), saved[end:]
    note = mutate(rng, tree)
    text, odd = dump(rng, tree)
    forged = rng.random() < 0.5
    if forged:
        if rng.random() < 0.3:
            state, change = mutate_bytes(rng, state)
            note += f"; state: {change}"
        text = _sealed(text, state)
    data = _MAGIC + _LENGTH.pack(len(text)) + text + state
    return data, f"{'forged' if forged else 'damaged'}: {note} {odd}".rstrip(), not forged


def _sealed(text: bytes, state: bytes) -> bytes:
    """A header with right hashes, where it is one."""
    try:
        header = msgspec.json.decode(text, type=Header)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return text
    hashed = msgspec.structs.replace(header, sha256=hashlib.sha256(state).hexdigest())
    return msgspec.json.encode(sealed_header(hashed))
