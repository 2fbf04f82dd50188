"""Texts and conversations: lines and bytes changed; what is read is what the lines hold."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from edgelm.compress.data.conversations import read_demonstrations, read_preferences, read_prompts
from edgelm.compress.data.documents import read_documents
from edgelm.compress.evaluation.rows import task_rows
from edgelm.export.source.text import read_passage
from tests.checkpoints.tiny_chat import VOCAB, tiny_tokenizer
from tests.fuzz.bytewise import mutate_bytes
from tests.fuzz.kind import Case, Kind, Opened
from tests.fuzz.outcome import Wrong
from tests.fuzz.strange import dump, mutate, strange

_SENTENCE = "The miller waits until the level outside has dropped below the wheel. é 🦙\u2028"
_TURNS = [
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "Because small molecules scatter short waves."},
]
_ROWS: dict[str, dict[str, Any]] = {
    "text": {"text": _SENTENCE},
    "chat": {"messages": _TURNS},
    "prompt": {"prompt": "Why?", "completion": "Because."},
    "task": {"context": _SENTENCE, "target": "wheel"},
    "preference": {"prompt": _TURNS[:1], "chosen": _TURNS[1:], "rejected": "No."},
}
_FITTING = {
    "text": ("passage", "documents"),
    "chat": ("documents", "demonstrations", "prompts"),
    "prompt": ("plain demonstrations", "demonstrations", "prompts"),
    "preference": ("preferences",),
    "task": ("task",),
}
_READERS: dict[str, Callable[[Path], Any]] = {
    "demonstrations": lambda path: read_demonstrations(path, chat=True),
    "plain demonstrations": lambda path: read_demonstrations(path, chat=False),
    "preferences": lambda path: read_preferences(path, chat=True),
    "prompts": read_prompts,
    "task": lambda path: list(task_rows(str(path), None, {"context": str, "target": str})),
}


class Texts(Kind):
    """Documents are the `text` fields of the lines, in order, and nothing else."""

    name = "text"

    def prepare(self, folder: Path) -> None:
        self.tokenizer = tiny_tokenizer()
        self.bomb = gzip.compress(bytes(2 * 10**7), mtime=0) * 100
        path = folder / "text.jsonl"
        path.write_text(json.dumps(_ROWS["text"]), encoding="utf-8")
        assert list(read_documents(path))
        self._read(path, "passage")

    def make(self, rng: Random, folder: Path) -> Case:
        kind = rng.choice(sorted(_ROWS))
        lines, note = _lines(rng, kind)
        data = b"\n".join(lines)
        name = rng.choice(("data.jsonl", "data.jsonl", "data.txt", "data.jsonl.gz", "data.parquet"))
        if name.endswith(".gz"):
            data = gzip.compress(data, mtime=0)
        if name.endswith(".parquet"):
            data = _parquet(rng)
        if rng.random() < 0.3:
            data, what = mutate_bytes(rng, data)
            note = f"{note}; {what}"
        if rng.random() < 0.02:
            data, note = self.bomb, "2 GB of zeros, packed"
            name = "data.jsonl.gz"
        (folder / name).write_bytes(data)
        any_reader = ("passage", "documents", *_READERS)
        reader = rng.choice((*any_reader, *(_FITTING[kind] * 8)))
        return Case(f"{reader} of {name}: {note}", {"file": name, "reader": reader})

    def check(self, folder: Path, case: Case, reference: Callable[[], None]) -> Opened:
        path, reader = folder / case.facts["file"], case.facts["reader"]
        found = self._read(path, reader)
        reference()
        if reader != "documents" or not path.name.endswith((".jsonl", ".jsonl.gz")):
            return "other"
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        rows = [json.loads(line) for line in raw.split(b"\n") if line.strip()]
        if [row.get("text", "") for row in rows] != [document.text for document in found]:
            raise Wrong("documents differ from the lines")
        return "equal"

    def _read(self, path: Path, reader: str) -> Any:
        if reader == "passage":
            passage = read_passage(path, self.tokenizer, vocab_size=VOCAB, context=16, sequences=2)
            return passage.tokens_sha256
        if reader == "documents":
            return list(read_documents(path))
        return _READERS[reader](path)


def _lines(rng: Random, kind: str) -> tuple[list[bytes], str]:
    lines, notes = [], []
    for number in range(rng.choice((1, 2, 4))):
        row = json.loads(json.dumps(_ROWS[kind]))
        if rng.random() < 0.3:
            notes.append(f"line {number}: {mutate(rng, row)}")
        text, odd = dump(rng, strange(rng) if rng.random() < 0.05 else row)
        notes += [odd] if odd else []
        lines.append(text.replace(b"\n", b" ") if rng.random() < 0.97 else text)
    if rng.random() < 0.1:
        lines.append(rng.choice((b"", b"  ", b"\r", b"\xff", b"\x00", b"{", b"\xe2\x80\xa8")))
    return lines, f"{kind} {'; '.join(notes)}"


def _parquet(rng: Random) -> bytes:
    import io

    import pyarrow
    import pyarrow.parquet

    columns: list[list[Any]] = [
        ["a", "b"],
        [1, 2],
        [None, "a"],
        [b"\xff", b"a"],
        [[{"role": "x"}]] * 2,
    ]
    table = pyarrow.table({rng.choice(("text", "messages", "x")): rng.choice(columns)})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()
