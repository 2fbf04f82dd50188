"""Several texts in one run have the vectors that each has alone."""

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import edgelm
from edgelm.bundle import read_manifest
from edgelm.errors import BadInput
from edgelm.export.pipeline import export_model
from edgelm.runtime.embedding.pooling import batch_vectors
from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.onnxruntime.host.host_texts import HostTexts, runs_texts
from edgelm.runtime.engines.onnxruntime.ort_cuda import OrtCudaEngine
from edgelm.runtime.engines.session import Cancelled, Logits, Tokens
from tests.checkpoints.sentence_folders import save_sentence_model
from tests.runtime.cpu_as_cuda import use_cpu_as_cuda
from tests.slow import slow_but

WORDS = ("the", "miller", "waits", "until", "why", "is", "the", "sky", "so", "blue", "over", "it")
TEXTS = [" ".join(WORDS[at % 7 : at % 7 + 1 + at % 11]) for at in range(40)]


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts each run over several takes."""
    counted: list[int] = []
    real = HostTexts.run

    def run(self: HostTexts, texts: Sequence[Tokens], positions: Sequence[int]) -> Logits:
        counted.append(len(texts))
        return real(self, texts, positions)

    monkeypatch.setattr(HostTexts, "run", run)
    return counted


POOLINGS = ("lasttoken", "mean", "cls")
CASES = [(pooling, precision) for pooling in POOLINGS for precision in ("fp32", "int8", "int4")]


@pytest.mark.parametrize(
    ("pooling", "precision"), slow_but(CASES, [("lasttoken", "int4"), ("mean", "fp32")])
)
def test_vectors_are_those_of_single_texts(
    pooling: str, precision: str, tmp_path: Path, sizes: list[int]
) -> None:
    folder = save_sentence_model(tmp_path / "source", pooling=pooling)
    export_model(folder, tmp_path / "bundle", precision=precision, gate="off")
    with edgelm.load(tmp_path / "bundle", threads=1) as lm:
        together = lm.embed(TEXTS)
        assert sum(sizes) == len(TEXTS)
        assert len(sizes) < 15
        alone = np.concatenate([lm.embed(text) for text in TEXTS])
    # The kernel for 4 bits adds in another order for one row than for several, by which an
    # activation may be rounded to the next level of 8 bits.
    np.testing.assert_allclose(together, alone, atol=1e-2 if precision == "int4" else 1e-6)


def test_without_batching_texts_run_alone(embedding_bundle: Path, sizes: list[int]) -> None:
    with edgelm.load(embedding_bundle, batching=False) as lm:
        vectors = lm.embed(TEXTS[:5])
        assert np.array_equal(vectors, np.concatenate([lm.embed(text) for text in TEXTS[:5]]))
    assert sizes == []


def test_long_texts_run_alone_in_chunks(embedding_bundle: Path, sizes: list[int]) -> None:
    texts = ["Why is the sky blue? " * 7, "The miller waits. " * 9]
    with edgelm.load(embedding_bundle) as lm:
        lm.session.engine.chunk = 16  # type: ignore[attr-defined]
        together = lm.embed(texts)
        assert sizes == []
        assert np.array_equal(together, np.concatenate([lm.embed(text) for text in texts]))


def test_a_run_over_texts_leaves_the_sequence_alone(embedding_bundle: Path) -> None:
    with edgelm.load(embedding_bundle) as lm:
        session = lm.session
        assert isinstance(session, EngineSession)
        assert session.engine.texts is not None
        tokens = np.arange(4, 24)
        session.rewind(0)
        expected = session.advance(tokens)[0].copy()
        session.rewind(0)
        session.advance(tokens[:10])
        batch_vectors(session.engine.texts, [tokens[::-1].copy(), tokens[:5]], "mean")
        assert np.allclose(session.advance(tokens[10:])[0], expected, atol=1e-5)


def test_on_the_engine_for_cuda(embedding_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = read_manifest(embedding_bundle).graph
    use_cpu_as_cuda(monkeypatch)
    engine = OrtCudaEngine(embedding_bundle, graph, capacity=200, prefill_chunk=64)
    random = np.random.default_rng(0)
    texts = [random.integers(4, 300, count) for count in (9, 3, 12, 12)]
    with edgelm.load(embedding_bundle, threads=1) as lm, EngineSession(engine) as session:
        assert isinstance(lm.session, EngineSession)
        for pooling in ("last", "first", "mean"):
            assert session.engine.texts is not None
            assert lm.session.engine.texts is not None
            ours = batch_vectors(session.engine.texts, texts, pooling)
            np.testing.assert_allclose(
                ours, batch_vectors(lm.session.engine.texts, texts, pooling), atol=1e-5
            )
        sibling = session.sibling()
        assert sibling.engine.texts is session.engine.texts
        sibling.close()
        assert sibling.engine.texts is None


def test_a_cache_of_8_bits_takes_one_text_per_run(tmp_path: Path, sizes: list[int]) -> None:
    folder = save_sentence_model(tmp_path / "source")
    export_model(folder, tmp_path / "bundle", precision="int8", kv="int8", gate="off")
    assert not runs_texts(read_manifest(tmp_path / "bundle").graph)
    with edgelm.load(tmp_path / "bundle") as lm:
        assert lm.embed(TEXTS[:3]).shape == (3, 64)
    assert sizes == []


def test_closing_between_two_groups(
    embedding_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = edgelm.load(embedding_bundle)
    real = HostTexts.run

    def run(self: HostTexts, texts: Sequence[Tokens], positions: Sequence[int]) -> Logits:
        rows = real(self, texts, positions)
        closing = threading.Thread(target=lm.close)
        closing.start()
        closing.join(0.2)  # it waits for this run
        return rows

    monkeypatch.setattr(HostTexts, "run", run)
    with pytest.raises(BadInput, match="closed"):
        lm.embed(TEXTS)


def test_texts_that_run_together_can_be_cancelled(tmp_path: Path, sizes: list[int]) -> None:
    folder = save_sentence_model(tmp_path / "source")
    export_model(folder, tmp_path / "bundle", precision="fp32", gate="off")
    with edgelm.load(tmp_path / "bundle", threads=1) as lm:
        embedder = lm._embedder
        assert embedder is not None
        tokens = embedder.encode(TEXTS)
        with pytest.raises(Cancelled):
            embedder.vectors(tokens, cancelled=lambda: len(sizes) == 2)
    assert len(sizes) == 2
