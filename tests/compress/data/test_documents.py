"""Text files of every kind are read as documents; what is refused names file and line."""

import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from edgelm.compress.data.documents import Document, read_documents, tokenized
from edgelm.errors import BadInput, MissingPackage
from tests.compress.tokenizers import tiny_fast_tokenizer

TALK = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
LINES = [{"text": "The miller waits."}, {"messages": TALK}, {"text": "Ünder the wheel", "id": 3}]
DOCUMENTS = [
    Document("The miller waits."),
    Document(messages=tuple(TALK)),
    Document("Ünder the wheel"),
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_fast_tokenizer()


def as_jsonl(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(path: Path, text: str) -> Path:
    content = text.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_parquet(path: Path, rows: list[Any]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_jsonl(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, as_jsonl(LINES[:1]) + "\n  \n" + as_jsonl(LINES[1:]))
    assert list(read_documents(path)) == DOCUMENTS
    assert list(read_documents(str(path))) == DOCUMENTS


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_a_text_file_is_one_document(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "First line.\n\nSecond, über.\n")
    assert list(read_documents(path)) == [Document("First line.\n\nSecond, über.\n")]


@pytest.mark.parametrize("name", ["a.parquet", "a.parquet.gz"])
def test_parquet(tmp_path: Path, name: str) -> None:
    rows = [{"text": f"text {index}", "id": index} for index in range(600)]
    path = write_parquet(tmp_path / "a.parquet", rows)
    if name.endswith(".gz"):
        path = tmp_path / name
        path.write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    assert list(read_documents(path)) == [Document(f"text {index}") for index in range(600)]


def test_conversations_in_parquet(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [{"messages": TALK}])
    assert list(read_documents(path)) == [Document(messages=tuple(TALK))]


def test_a_folder_is_its_data_files_by_name(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", "second")
    write(tmp_path / "c.jsonl.gz", as_jsonl([{"text": "third"}]))
    write(tmp_path / "README.md", "no data")
    write_parquet(tmp_path / "a.parquet", [{"text": "first"}])
    assert [one.text for one in read_documents(tmp_path)] == ["first", "second", "third"]


def test_a_folder_without_data(tmp_path: Path) -> None:
    write(tmp_path / "README.md", "no data")
    message = rf"{tmp_path} holds no data file; expected \.jsonl, \.txt, \.parquet \(\.gz\)"
    with pytest.raises(BadInput, match=message):
        list(read_documents(tmp_path))


@pytest.mark.parametrize("name", ["missing.jsonl", "./missing", "/nowhere/missing", "~/missing"])
def test_missing_file(name: str) -> None:
    with pytest.raises(BadInput, match=r"no such data file: .*missing"):
        list(read_documents(name))


def test_unknown_kind(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text\nfirst\n")
    with pytest.raises(BadInput, match=r"a\.csv: unknown kind of data file; expected \.jsonl"):
        list(read_documents(path))


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"content": "x", "id": 1}, "found content, id"),
        ({"text": 3}, "found text"),
        ({"messages": "hello"}, "found messages"),
        ({"messages": [{"role": "user"}]}, "found messages"),
        ({}, "found an empty object"),
    ],
    ids=str,
)
def test_wrong_fields_are_named_with_their_line(tmp_path: Path, row: Any, found: str) -> None:
    path = write(tmp_path / "a.jsonl", as_jsonl([LINES[0], row]))
    message = rf"a\.jsonl:2: expected a field `text` \(string\) or `messages` .*{found}"
    with pytest.raises(BadInput, match=message):
        list(read_documents(path))


@pytest.mark.parametrize(
    "content", [None, 3, [{"type": "image_url", "image_url": "a.png"}]], ids=str
)
def test_a_message_that_is_no_text_is_refused(tmp_path: Path, content: Any) -> None:
    """A template would write None, or a list as Python does."""
    talk = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": content}]
    path = write(tmp_path / "a.jsonl", as_jsonl([LINES[0], {"messages": talk}]))
    with pytest.raises(BadInput, match=r"a\.jsonl:2: the content of `messages\[1\]` is .* a text"):
        list(read_documents(path))


def test_an_empty_conversation_is_an_empty_document(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", as_jsonl([{"messages": []}]))
    assert list(read_documents(path)) == [Document()]


def test_wrong_fields_in_parquet(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [{"text": "one"}, {"text": None}])
    with pytest.raises(BadInput, match=r"a\.parquet, row 2: expected a field `text`"):
        list(read_documents(path))


def test_not_json(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", as_jsonl(LINES[:2]) + '{"text": "torn\n')
    with pytest.raises(BadInput, match=r"a\.jsonl:3 is not JSON: "):
        list(read_documents(path))


def damaged(whole: bytes) -> bytes:
    middle = len(whole) // 2
    return whole[:middle] + bytes(byte ^ 0xFF for byte in whole[middle:])


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
@pytest.mark.parametrize("how", ["cut", "damaged", "no gzip", "no UTF-8"])
def test_files_that_cannot_be_read(tmp_path: Path, name: str, how: str) -> None:
    rng = np.random.default_rng(0)
    noise = [{"text": "".join(map(chr, rng.integers(97, 122, 3000)))} for _ in range(3)]
    content = as_jsonl(noise).encode()
    packed = gzip.compress(content, mtime=0)
    path = tmp_path / (name if how == "no UTF-8" else f"{name}.gz")
    kinds = {
        "cut": packed[:-200],
        "damaged": damaged(packed),
        "no gzip": content,
        "no UTF-8": b'{"text": "\xff\xfe"}\n',
    }
    path.write_bytes(kinds[how])
    with pytest.raises(BadInput, match=rf"{path} cannot be read: "):
        list(read_documents(path))


@pytest.mark.parametrize("content", [b"no parquet", b""], ids=["text", "empty"])
def test_no_parquet(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"a\.parquet is not a Parquet file: "):
        list(read_documents(path))


def test_parquet_that_is_damaged_inside(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [{"text": "word " * 50}] * 2000)
    whole = bytearray(path.read_bytes())
    whole[8:200] = b"\xa5" * 192
    path.write_bytes(whole)
    with pytest.raises(BadInput, match=r"a\.parquet is not a Parquet file: "):
        list(read_documents(path))


def test_a_name_of_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, bool]] = []

    def load_dataset(name: str, *, split: str, streaming: bool) -> list[Any]:
        asked.append((name, split, streaming))
        return [*LINES, {"label": 1}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    found = read_documents("owner/stories:validation")
    assert [next(found) for _ in DOCUMENTS] == DOCUMENTS
    with pytest.raises(
        BadInput, match=r"owner/stories:validation, row 4: expected .*, found label"
    ):
        next(found)
    next(read_documents("stories"))
    assert asked == [("owner/stories", "validation", True), ("stories", "train", True)]


def test_a_name_of_datasets_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'stories' on the Hub\nand more lines")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    message = (
        r"'stories' is not a file or folder, and `datasets` cannot load it "
        r"\(ConnectionError: Couldn't reach 'stories' on the Hub and more lines\)$"
    )
    with pytest.raises(BadInput, match=message):
        list(read_documents("stories"))


def test_without_datasets_or_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", LINES[:1])
    for name in ("datasets", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        MissingPackage, match=r"stories is not a file, and loading it by name needs"
    ):
        list(read_documents("stories"))
    with pytest.raises(MissingPackage, match=r"a\.parquet needs pyarrow: pip install 'edgelm\["):
        list(read_documents(path))


def test_tokens_of_a_conversation_are_the_template(tokenizer: Any) -> None:
    rendered = "<s>user: Why?<|end|><s>assistant: Because.<|end|>"
    ((ids, starts),) = tokenized(DOCUMENTS[1:2], tokenizer)
    assert starts, "the template writes the first token itself"
    assert tokenizer.decode(ids) == rendered
    assert ids.count(tokenizer.convert_tokens_to_ids("<|end|>")) == 2
    tokenizer = tiny_fast_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(BadInput, match="the tokenizer has no chat template to render them"):
        tokenized(DOCUMENTS[1:2], tokenizer)


def test_calls_and_tools_of_a_conversation_reach_the_template(tmp_path: Path) -> None:
    tokenizer = tiny_fast_tokenizer()
    tokenizer.chat_template = (
        "{{ tools[0].name }}{% for m in messages %}<s>{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.arguments.day }}{% endfor %}{% endfor %}"
    )
    call = {"function": {"name": "rain", "arguments": '{"day": "now"}'}}
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": [call]}]
    path = tmp_path / "calls.jsonl"
    path.write_text(json.dumps({"messages": messages, "tools": [{"name": "rain"}]}))
    (document,) = read_documents(path)
    assert document.rendered(tokenizer) == "rain<s>?<s>now"


def test_a_packed_line_of_gigabytes_is_refused(tmp_path: Path) -> None:
    for name in ("bomb.jsonl.gz", "bomb.txt.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"0" * 10_000_000) * 7)
        with pytest.raises(BadInput, match="more than 64,000,000 characters in one document"):
            list(read_documents(tmp_path / name))


def test_a_deeply_nested_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "deep.jsonl").write_text('{"text": "a"}\n' + "[" * 100_000)
    with pytest.raises(BadInput, match=r"deep\.jsonl:2 is nested too deeply"):
        list(read_documents(tmp_path / "deep.jsonl"))
