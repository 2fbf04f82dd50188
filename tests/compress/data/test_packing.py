"""Documents become rows of tokens, in a file that is complete or absent."""

import errno
import os
import pickle
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import edgelm.compress.data.packing as packing
import edgelm.compress.data.token_batches as module
from edgelm.compress.data.documents import Document
from edgelm.compress.data.packing import PackedTokens, calibration_rows, pack
from edgelm.errors import BadInput
from tests.compress.tokenizers import tiny_fast_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_fast_tokenizer()


def test_packed_rows_by_hand(tokenizer: Any, tmp_path: Path) -> None:
    end = tokenizer.eos_token_id
    texts = ["The wheel", "", "Why is the sky blue?"]
    first, _, third = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    whole = [*first, end, *third, end]  # nothing of the empty one, not even an end
    length = 4
    packed = pack(map(Document, texts), tokenizer, length, tmp_path / "tokens.npy")
    rows = len(whole) // length
    assert packed.rows.dtype == np.uint16, "a small vocabulary takes two bytes a token"
    assert packed.rows.tolist() == np.reshape(whole[: rows * length], (rows, length)).tolist()
    assert (len(packed), packed.length, packed.tokens) == (rows, length, rows * length)
    assert end not in (first[0], third[0]), "special tokens are the packer's"
    loaded = PackedTokens.load(tmp_path / "tokens.npy")
    assert isinstance(loaded.rows, np.memmap)
    batch = loaded.batch([1, 0])
    assert batch.dtype == torch.int64
    assert batch.tolist() == [whole[4:8], whole[:4]]


def test_a_tokenizer_without_end(tmp_path: Path) -> None:
    tokenizer = tiny_fast_tokenizer()
    tokenizer.eos_token = None
    ids = tokenizer("The wheel turns", add_special_tokens=False)["input_ids"]
    packed = pack([Document("The wheel turns")] * 2, tokenizer, len(ids), tmp_path / "t.npy")
    assert packed.rows.tolist() == [ids, ids]


def test_reading_stops_at_the_most_tokens(tokenizer: Any, tmp_path: Path) -> None:
    seen: list[int] = []

    def documents() -> Iterator[Document]:
        for index in range(1000):
            seen.append(index)
            yield Document("abcdefghi")

    each = len(tokenizer("abcdefghi", add_special_tokens=False)["input_ids"]) + 1
    packed = pack(documents(), tokenizer, each, tmp_path / "t.npy", max_tokens=3 * each + 2)
    assert len(seen) == 256, "no further than one batch of documents"
    assert len(packed) == 3, "the two tokens beyond are no row"


@pytest.mark.parametrize(
    ("texts", "over", "message"),
    [
        ([], {}, "0 documents with 0 tokens make no row of 64"),
        (["", ""], {}, "2 documents with 0 tokens make no row of 64"),
        (["abc"], {}, "1 documents with 4 tokens make no row of 64"),
        (["abcdefghi" * 20], {"max_tokens": 32}, "1 documents with 32 tokens make no row of 64"),
    ],
    ids=["none", "blank", "short", "cut short"],
)
def test_empty_after_packing(
    tokenizer: Any, tmp_path: Path, texts: list[str], over: dict[str, int], message: str
) -> None:
    with pytest.raises(BadInput, match=f"too little data: {message}; add text"):
        pack(map(Document, texts), tokenizer, 64, tmp_path / "t.npy", **over)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_progress_in_tokens(tokenizer: Any, tmp_path: Path) -> None:
    seen: list[int] = []
    pack([Document("abc")] * 600, tokenizer, 8, tmp_path / "t.npy", progress=seen.append)
    assert seen == [256 * 4, 512 * 4, 600 * 4]


def test_the_file_is_whole_or_what_it_was(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "tokens.npy"

    def broken() -> Iterator[Document]:
        yield Document("The wheel turns " * 10)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(broken(), tokenizer, 8, path)
    assert not path.exists()
    pack([Document("The wheel turns")], tokenizer, 4, path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        pack([Document("Another text, and longer")] * 9, tokenizer, 4, path)
    assert path.read_bytes() == before
    assert sorted(one.name for one in path.parent.iterdir()) == ["tokens.npy", "tokens.starts.npy"]


class Words:
    """A vocabulary of `size` tokens in which every letter is a token; begins texts with BOS."""

    def __init__(self, size: int) -> None:
        self.size, self.eos_token_id, self.chat_template = size, 1, None

    def __len__(self) -> int:
        return self.size

    def __call__(self, text: str | list[str], add_special_tokens: bool = True) -> dict[str, Any]:
        if isinstance(text, list):
            return {"input_ids": [self(one, add_special_tokens)["input_ids"] for one in text]}
        ids = [self.size - 128 + ord(letter) for letter in text]
        return {"input_ids": [0, *ids] if add_special_tokens else ids}


@pytest.mark.parametrize(("size", "dtype"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.int32)])
def test_the_largest_id_fits(size: int, dtype: type, tmp_path: Path) -> None:
    packed = pack([Document("\x7f\x7f")] * 2, Words(size), 4, tmp_path / "t.npy")
    assert packed.rows.dtype == dtype
    assert packed.rows.tolist() == [[0, size - 1, size - 1, 1]] * 2, "BOS, text, EOS"


def test_memory_does_not_grow_with_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BATCH_CHARACTERS", 1 << 16)

    def peak(documents: int) -> int:
        tracemalloc.start()
        path = tmp_path / f"{documents}.npy"
        packed = pack([Document("x" * 2_000)] * documents, Words(1 << 16), 512, path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert packed.tokens == documents * 2_002 // 512 * 512
        return peak

    assert peak(300) < 1.1 * peak(100)


@pytest.mark.parametrize("tokens", [1, 100, 10_000], ids=["often", "seldom", "never"])
@pytest.mark.parametrize("torn", [False, True])
def test_an_interrupted_packing_resumes(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: int, torn: bool
) -> None:
    """From the last record, to the same bytes; documents before it are not tokenized again."""
    monkeypatch.setattr(packing, "_RECORD_TOKENS", tokens)
    monkeypatch.setattr(module, "_BATCH_CHARACTERS", 40)
    documents = [Document("The wheel turns " * (index % 7)) for index in range(60)]
    whole = pack(documents, tokenizer, 16, tmp_path / "whole" / "t.npy")
    folder, seen = tmp_path / "parts", list[int]()

    def stop(count: int) -> None:
        seen.append(count)
        if count > whole.tokens // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(documents, tokenizer, 16, folder / "t.npy", progress=stop, resumes=True)
    assert not (folder / "t.npy").exists()
    if torn:  # a batch that was written after the record, as far as the disk got it
        with (folder / "t.npy.unfinished").open("ab") as file:
            file.write(b"torn")
    again: list[int] = []
    pack(documents, tokenizer, 16, folder / "t.npy", progress=again.append, resumes=True)
    assert sorted(path.name for path in folder.iterdir()) == ["t.npy", "t.starts.npy"]
    for name in ("t.npy", "t.starts.npy"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert again[0] == seen[0] if tokens == 10_000 else again[0] > seen[0]
    assert tokens != 1 or again[0] > seen[-2]


def test_other_rows_are_not_continued(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_RECORD_TOKENS", 1)
    documents = [Document("The wheel turns " * 9)] * 20

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "t.npy"
    with pytest.raises(KeyboardInterrupt):
        pack(documents, tokenizer, 16, path, progress=stop, resumes=True)
    assert pack(documents, tokenizer, 8, path, resumes=True).length == 8
    with pytest.raises(KeyboardInterrupt):
        pack(documents, tokenizer, 16, path, progress=stop, resumes=True)
    (tmp_path / "t.starts.npy.unfinished").unlink()
    found = pack(documents, tokenizer, 16, path, resumes=True)
    assert np.array_equal(found.rows, pack(documents, tokenizer, 16, tmp_path / "u.npy").rows)
    for name in ("u.npy", "u.starts.npy"):
        (tmp_path / name).unlink()
    with pytest.raises(BadInput, match="too little data"):
        pack(documents[:1], tokenizer, 4096, tmp_path / "few.npy", resumes=True)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["t.npy", "t.starts.npy"]


def test_text_that_cannot_be_read_leaves_what_was_packed(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a network that fails for a moment."""
    monkeypatch.setattr(packing, "_RECORD_TOKENS", 1)
    monkeypatch.setattr(module, "_BATCH_CHARACTERS", 40)
    documents, seen = [Document("The wheel turns " * 5) for _ in range(40)], list[int]()

    def unreadable() -> Iterator[Document]:
        yield from documents[:20]
        raise BadInput("cannot read the data")

    path = tmp_path / "t.npy"
    with pytest.raises(BadInput, match="cannot read"):
        pack(unreadable(), tokenizer, 16, path, resumes=True)
    pack(documents, tokenizer, 16, path, progress=seen.append, resumes=True)
    whole = pack(documents, tokenizer, 16, tmp_path / "whole.npy")
    assert np.array_equal(PackedTokens.load(path).rows, whole.rows)
    assert seen[0] > whole.tokens // 3


def test_rows_are_chosen_without_a_copy() -> None:
    data = PackedTokens(np.arange(40, dtype=np.int32).reshape(10, 4))
    odd = data.only(np.arange(10)[1::2])
    assert (len(odd), odd.tokens) == (5, 20)
    assert odd.batch([0, 4])[:, 0].tolist() == [4, 36]
    assert odd.without(np.array([1])).batch(range(4))[:, 0].tolist() == [4, 20, 28, 36]
    assert odd.rows is data.rows


def test_calibration_is_spread_over_the_data() -> None:
    tokens = PackedTokens(np.arange(10, dtype=np.int32)[:, None].repeat(3, 1))
    batches = list(calibration_rows(tokens, 4, 3))
    assert [batch[:, 0].tolist() for batch in batches] == [[0, 2, 5], [7]]
    assert all(batch.dtype == torch.int64 for batch in batches)
    everything = list(calibration_rows(tokens, 99, 4))
    assert torch.cat(everything)[:, 0].tolist() == list(range(10))


@pytest.mark.slow
def test_several_processes_pack_the_same(tokenizer: Any, tmp_path: Path) -> None:
    documents = [Document("The wheel turns " * (index % 7)) for index in range(900)]
    whole = pack(documents, tokenizer, 16, tmp_path / "one.npy")
    shared = pack(documents, tokenizer, 16, tmp_path / "two.npy", processes=2)
    assert np.array_equal(whole.rows, shared.rows)
    few = pack(documents, tokenizer, 16, tmp_path / "few.npy", processes=2, max_tokens=400)
    assert few.tokens == 400, "what is tokenized ahead is dropped"


def test_an_error_of_another_process_is_the_callers(tmp_path: Path) -> None:
    tokenizer = tiny_fast_tokenizer()
    tokenizer.chat_template = None
    talk = Document(messages=({"role": "user", "content": "Why?"},))
    with pytest.raises(BadInput, match="the tokenizer has no chat template"):
        pack([talk], tokenizer, 4, tmp_path / "t.npy", processes=2)
    assert list(tmp_path.iterdir()) == []


def test_processes_that_tokenize_import_no_torch() -> None:
    """Each of them would take some hundred MB for it."""
    code = (
        "import sys, pickle, edgelm.compress.data.token_batches as t;"
        "pickle.loads(sys.stdin.buffer.read()); print('torch' in sys.modules)"
    )
    pickled = pickle.dumps(module.Encoder(tiny_fast_tokenizer()))
    done = subprocess.run([sys.executable, "-c", code], input=pickled, capture_output=True)
    assert done.stdout.strip() == b"False", done.stderr.decode()[-500:]


def test_positions_restart_where_documents_begin(tokenizer: Any, tmp_path: Path) -> None:
    texts = ["abcdef", "", "ab", "abcdefghijkl"]
    lengths = [
        len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 if text else 0
        for text in texts
    ]
    whole = [position for length in lengths for position in range(length)]
    packed = pack(map(Document, texts), tokenizer, 6, tmp_path / "t.npy")
    assert packed.starts is not None
    assert packed.starts.tolist() == [0, lengths[0], lengths[0] + lengths[2]]
    for row, positions in enumerate(packed.positions(range(len(packed))).tolist()):
        expected = whole[6 * row : 6 * row + 6]
        # A document that goes beyond its row is counted from the start of the next one.
        until = next((i for i, one in enumerate(expected) if one == 0), 6)
        assert positions == [*range(until), *expected[until:]]
    kept = packed.only(np.array([1])).positions([0])
    assert torch.equal(kept[0], packed.positions([1])[0])
    few = pack(map(Document, texts), tokenizer, 2, tmp_path / "few.npy", max_tokens=lengths[0])
    assert few.starts is not None
    assert few.starts.tolist() == [0]
    with pytest.raises(BadInput, match="packed without the documents' beginnings"):
        PackedTokens(packed.rows).positions([0])
