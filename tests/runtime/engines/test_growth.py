"""The cache grows in powers of two, and nothing that is computed shows it."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgelm.errors import DoesNotFit
from edgelm.runtime.engines import growth
from edgelm.runtime.engines.growth import MIN_ROWS, rows_for
from tests.conftest import TinyFactory
from tests.export.graphs import CONTEXT, DialectName, build_session, cpu_engine

TOKENS = np.random.default_rng(0).integers(3, 128, CONTEXT)


@pytest.mark.parametrize(
    ("tokens", "rows"), [(0, 256), (1, 256), (256, 256), (257, 512), (512, 512), (3000, 4096)]
)
def test_powers_of_two(tokens: int, rows: int) -> None:
    assert rows_for(tokens, 1 << 20) == rows
    assert rows_for(tokens, 3000) == min(rows, 3000), "never more than the context"


def test_a_step_reads_at_most_twice_what_it_has_seen() -> None:
    for tokens in range(MIN_ROWS, 20_000, 17):
        assert tokens <= rows_for(tokens, 1 << 20) < 2 * tokens + 1


def run(folder: Path, tiny: TinyFactory, dialect: DialectName, segments: int = 1) -> "Run":
    """Logits of a prefill, steps, a rewind and another prefill, and the sizes of the cache."""
    source = tiny("gemma3").checkpoint  # windows and two kinds of rotation
    with build_session(source, folder, dialect=dialect, segments=segments) as session:
        rows, sizes = [], []
        for start, stop, keep in ((0, 3, 0), (3, 5, 3), (5, 23, 5), (23, 24, 23), (9, 40, 9)):
            session.rewind(keep)
            rows.append(session.advance(TOKENS[start:stop], logits=4).copy())
            sizes.append(session.cache_bytes)
        for at in range(40, CONTEXT):
            rows.append(session.advance(TOKENS[at : at + 1]).copy())
        sizes.append(session.cache_bytes)
        assert cpu_engine(session).capacity == CONTEXT
        return rows, sizes


Run = tuple[list[npt.NDArray[np.float32]], list[int]]


@pytest.mark.parametrize("dialect", ["ort", "standard", "decomposed"])
def test_growing_changes_no_logits(
    dialect: DialectName, tiny: TinyFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, [full, *_] = run(tmp_path / "full", tiny, dialect)  # 64 rows: it does not grow
    monkeypatch.setattr(growth, "MIN_ROWS", 4)
    grown, sizes = run(tmp_path / "grown", tiny, dialect)
    for ours, theirs in zip(grown, expected, strict=True):
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
    shares = [size / full for size in sizes]
    # The standard dialect's cache is updated in place, and TensorRT takes a fixed one only.
    assert shares == ([1] * 6 if dialect == "standard" else [4 / 64, 8 / 64, 0.5, 0.5, 1, 1])


def test_segments_grow_together(
    tiny: TinyFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "MIN_ROWS", 4)
    for dialect in ("standard", "decomposed"):
        whole, _ = run(tmp_path / f"{dialect}-whole", tiny, dialect)
        segments, _ = run(tmp_path / f"{dialect}-3", tiny, dialect, 3)
        assert all(np.array_equal(*pair) for pair in zip(whole, segments, strict=True))


def test_without_memory_to_grow_the_session_goes_on_as_it_was(
    tiny: TinyFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "MIN_ROWS", 4)
    with build_session(tiny("llama").checkpoint, tmp_path) as session:
        session.advance(TOKENS[:3])
        expected = session.advance(TOKENS[3:4]).copy()
        session.rewind(3)

        def no_memory(*_: object) -> None:
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(np, "zeros", no_memory)
            with pytest.raises(DoesNotFit, match="no memory for a cache of 16 tokens"):
                session.advance(TOKENS[3:12])
        assert session.length == 3
        assert np.array_equal(session.advance(TOKENS[3:4]), expected)
        session.advance(TOKENS[4:12])
