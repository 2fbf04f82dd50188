"""The part of the gate that travels with a bundle."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgelm.errors import BadBundle
from edgelm.gate_sample import FILE, GateSample, measure_sample, read_sample, write_sample

VOCABULARY = 50
RANDOM = np.random.default_rng(0)
TOKENS = RANDOM.integers(0, VOCABULARY, (2, 12))
LOGITS = RANDOM.normal(size=(2, 12, VOCABULARY)).astype(np.float32) * 3


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    shifted = logits - logits.max(-1, keepdims=True)
    normed: npt.NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return normed


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
    again = read_sample(tmp_path)
    assert again is not None
    expected = sample()._asdict()
    for name, array in again._asdict().items():
        assert (array == expected[name]).all()
        assert array.dtype == expected[name].dtype


def test_none_where_there_is_none(tmp_path: Path) -> None:
    assert read_sample(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04"])
def test_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(BadBundle, match=r"gate\.npz is damaged .*; copy or export the bundle"):
        read_sample(tmp_path)
