"""The part of the gate that travels with a bundle."""

import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from msgspec.structs import replace

from edgelm.bundle import FileEntry, Manifest
from edgelm.bundle.records import gate_sample
from edgelm.bundle.records.gate_sample import (
    FILE,
    GateSample,
    measure_sample,
    read_sample,
    sequence_predictions,
    write_sample,
)
from edgelm.bundle.records.gates import GATES, passes
from edgelm.errors import BadBundle
from tests.devices.checks.recorded import manifest

VOCABULARY = 50
RANDOM = np.random.default_rng(0)
TOKENS = RANDOM.integers(0, VOCABULARY, (2, 12))
LOGITS = RANDOM.normal(size=(2, 12, VOCABULARY)).astype(np.float32) * 3


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    shifted = logits - logits.max(-1, keepdims=True)
    normed: npt.NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return normed


def listing(*names: str) -> Manifest:
    """A manifest of a model with that vocabulary, which lists these files."""
    whole = manifest(files={name: FileEntry(0, "") for name in names})
    return replace(whole, spec=replace(whole.spec, vocab_size=VOCABULARY))


def sample(outcomes: int = 8) -> GateSample:
    source = log_softmax(LOGITS)
    likeliest = np.argsort(-source, -1)[..., :outcomes]
    return GateSample(
        TOKENS,
        likeliest.astype(np.int32),
        np.take_along_axis(source, likeliest, -1),
        np.take_along_axis(source[:, :-1], TOKENS[:, 1:, None], -1)[..., 0],
    )


class Replay:
    """A session that gives recorded logits, and notices where it is."""

    chunk, vocab_size = 2, VOCABULARY

    def __init__(self, logits: npt.NDArray[np.float32]) -> None:
        self.logits = logits
        self.sequence = -1
        self.length = 0
        self.steps = 0

    def rewind(self, length: int) -> None:
        assert length == 0
        self.sequence += 1
        self.length = 0

    def advance(self, tokens: npt.NDArray[np.int64], *, logits: int = 1) -> npt.NDArray[np.float32]:
        assert (tokens == TOKENS[self.sequence, self.length : self.length + len(tokens)]).all()
        self.length += len(tokens)
        self.steps += len(tokens) == 1
        return self.logits[self.sequence, self.length - logits : self.length]


def test_the_source_itself_is_at_no_distance() -> None:
    session = Replay(LOGITS)
    figures = measure_sample(sample(), session, tail=5)
    assert figures.kl == pytest.approx(0, abs=1e-6)
    assert figures.top1 == 1
    assert figures.perplexity_ratio == pytest.approx(1, abs=1e-6)
    assert figures.tokens == TOKENS.size
    assert session.steps == 10  # five of each sequence one by one


def test_it_bounds_the_whole_divergence_from_below() -> None:
    other = LOGITS + RANDOM.normal(size=LOGITS.shape).astype(np.float32)
    source, ours = log_softmax(LOGITS), log_softmax(other)
    whole = float((np.exp(source) * (source - ours)).sum(-1).mean())
    few = measure_sample(sample(4), Replay(other)).kl
    more = measure_sample(sample(30), Replay(other)).kl
    assert 0.3 * whole < few < more < whole
    assert measure_sample(sample(VOCABULARY - 1), Replay(other)).kl == pytest.approx(
        whole, rel=1e-4
    )


def test_perplexity_is_of_the_text() -> None:
    other = LOGITS * 0.5
    ours = np.take_along_axis(log_softmax(other)[:, :-1], TOKENS[:, 1:, None], -1)
    figures = measure_sample(sample(), Replay(other))
    assert figures.perplexity == pytest.approx(float(np.exp(-ours.mean())), rel=1e-5)


def test_it_comes_back_from_its_file(tmp_path: Path) -> None:
    write_sample(tmp_path, sample())
    again = read_sample(tmp_path, listing(FILE))
    assert again is not None
    expected = sample()._asdict()
    for name, array in again._asdict().items():
        assert (array == expected[name]).all()
        assert array.dtype == expected[name].dtype


def test_none_where_there_is_none(tmp_path: Path) -> None:
    assert read_sample(tmp_path, listing()) is None
    write_sample(tmp_path, sample())
    assert read_sample(tmp_path, listing()) is None, "a file that nobody lists is not read"


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04"])
def test_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(BadBundle, match=r"gate\.npz is damaged .*; copy or export the bundle"):
        read_sample(tmp_path, listing(FILE))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": TOKENS + 45}, r"has token \d+, the vocabulary 50 tokens"),
        ({"tokens": TOKENS[:, :9]}, "arrays have the shapes"),
        ({"tokens": TOKENS.astype(np.float32)}, "arrays have the types"),
        (
            {"target_logprobs": np.full((2, 11), np.nan, np.float32)},
            "probabilities are not numbers",
        ),
    ],
    ids=["vocabulary", "shape", "type", "nan"],
)
def test_a_sample_of_something_else(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_sample(tmp_path, sample()._replace(**changes))
    with pytest.raises(BadBundle, match=message):
        read_sample(tmp_path, listing(FILE))


def test_an_archive_that_unpacks_to_more_than_memory(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / FILE, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("tokens", "likeliest", "log_probabilities", "following"):
            archive.writestr(f"{name}.npy", bytes(80 << 20))
    with pytest.raises(BadBundle, match="it unpacks to"):
        read_sample(tmp_path, listing(FILE))


@pytest.mark.parametrize("rows", [1, 5])
def test_a_few_rows_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    other = LOGITS + RANDOM.normal(size=LOGITS.shape).astype(np.float32)
    whole = measure_sample(sample(), Replay(other), tail=3)
    monkeypatch.setattr(gate_sample, "_BLOCK", rows * VOCABULARY)
    monkeypatch.setattr(Replay, "chunk", rows)
    assert measure_sample(sample(), Replay(other), tail=3) == whole


class Uniform:
    """A session of a large vocabulary whose logits take no memory."""

    chunk, vocab_size = 16, 200_000

    def rewind(self, length: int) -> None:
        pass

    def advance(self, tokens: npt.NDArray[np.int64], *, logits: int = 1) -> npt.NDArray[np.float32]:
        return np.broadcast_to(np.float32(0), (logits, self.vocab_size))


def test_a_large_vocabulary_does_not_take_memory_by_the_sequence() -> None:
    tokens = np.arange(64)
    tracemalloc.start()
    try:
        found = sequence_predictions(Uniform(), tokens, tokens[:, None], tail=8)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.logprobs == pytest.approx(-np.log(Uniform.vocab_size))
    assert found.target_logprobs.shape == (63,)
    assert peak < 4 * 17e6  # three arrays of 10 rows; 300 MB if all rows were converted at once


def test_nan_logits_are_no_distance_of_zero() -> None:
    figures = measure_sample(sample(), Replay(np.full_like(LOGITS, np.nan)), tail=5)
    assert np.isnan(figures.kl)
    assert not passes(figures, GATES["4-bit"])


def test_the_file_names_its_arrays_as_it_always_has(tmp_path: Path) -> None:
    write_sample(tmp_path, sample())
    with np.load(tmp_path / FILE) as arrays:
        assert arrays.files == ["tokens", "likeliest", "log_probabilities", "following"]
