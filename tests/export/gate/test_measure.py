"""The gate: no distance for the source itself, and a fault in any path shows."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from edgelm.bundle.records import gate_sample
from edgelm.bundle.records.gate_sample import sequence_predictions
from edgelm.export.gate import measure
from edgelm.export.gate.divergence import Distance
from edgelm.export.gate.measure import Evaluator
from edgelm.export.source.reference import Reference
from edgelm.export.source.text import Passage
from edgelm.python310 import Self
from edgelm.quantize.precision import Int8
from edgelm.runtime.engines.adapters import LoadedAdapter
from edgelm.runtime.engines.session import CacheRows, Logits, Tokens
from tests.checkpoints.models import REPRESENTATIVE, TINY
from tests.conftest import Tiny, TinyFactory
from tests.export.graphs import build_session
from tests.slow import slow_but

TOKENS = torch.from_numpy(np.random.default_rng(0).integers(3, 128, (3, 100)))
PASSAGE = Passage(TOKENS, "tokens", "00")
SHORT = Passage(TOKENS[:1, :48], "tokens", "00")  # beyond every window of the tiny models
Change = Callable[[Logits], Logits]


class Replaying:
    """A session that answers with the source's own logits, changed in prefill or decode."""

    chunk = 16
    cache_bytes = 0

    def __init__(self, source: Tiny, prefill: Change, decode: Change) -> None:
        self.hf, self.prefill, self.decode = source.hf, prefill, decode
        self.length, self.capacity, self.vocab_size = 0, 100, 128
        self.seen: list[int] = []
        self.steps: list[int] = []

    @property
    def tokens(self) -> list[int]:
        return self.seen

    @property
    def adapter(self) -> LoadedAdapter | None:
        return None

    def use_adapter(self, adapter: LoadedAdapter | None) -> None:
        raise NotImplementedError

    def cancel_when(self, cancelled: Callable[[], bool] | None) -> None:
        pass

    def advance(self, tokens: Tokens, *, logits: int = 1) -> Logits:
        self.seen += tokens.tolist()
        self.length = len(self.seen)
        self.steps.append(len(tokens))
        with torch.inference_mode():
            rows: Logits = self.hf(torch.tensor([self.seen])).logits[0, -logits:].numpy()
        return (self.decode if len(tokens) == 1 else self.prefill)(rows)

    def verify(self, tokens: Tokens) -> Logits:
        raise NotImplementedError

    def keep(self, length: int) -> None:
        raise NotImplementedError

    def rewind(self, length: int) -> None:
        del self.seen[length:]
        self.length = length

    def sibling(self) -> "Replaying":
        raise NotImplementedError

    def state(self, length: int) -> CacheRows:
        raise NotImplementedError

    def restore(self, tokens: Sequence[int], state: CacheRows) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def same(rows: Logits) -> Logits:
    return rows


def turned(rows: Logits) -> Logits:
    return np.roll(rows, 1, axis=-1)


@pytest.fixture(scope="module")
def source(tiny: TinyFactory) -> Tiny:
    return tiny("llama")


@pytest.fixture(scope="module")
def evaluator(source: Tiny) -> Evaluator:
    return Evaluator.from_passage(Reference(source.checkpoint), PASSAGE)


@pytest.mark.parametrize("name", slow_but(sorted(TINY), REPRESENTATIVE))
def test_the_source_itself_is_at_no_distance(tiny: TinyFactory, name: str) -> None:
    model = tiny(name)
    evaluator = Evaluator.from_passage(Reference(model.checkpoint), SHORT)
    figures = evaluator.measure(Replaying(model, same, same))
    assert figures.kl <= 1e-6
    assert figures.top1 == 1.0
    assert figures.perplexity_ratio == pytest.approx(1.0, abs=1e-4)


def test_every_row_of_every_sequence_counts(source: Tiny, evaluator: Evaluator) -> None:
    session = Replaying(source, same, same)
    assert evaluator.measure(session, tail=64).tokens == TOKENS.numel()
    # Half of a sequence of 100 is prefilled, the other half decoded.
    assert session.steps == ([50] + [1] * 50) * 3


def test_perplexity_is_the_models_own(source: Tiny, evaluator: Evaluator) -> None:
    with torch.inference_mode():
        loss = source.hf(TOKENS, labels=TOKENS).loss
    figures = evaluator.measure(Replaying(source, same, same))
    assert figures.perplexity == pytest.approx(float(loss.exp()), rel=1e-4)


@pytest.mark.parametrize(
    ("prefill", "decode"), [(turned, same), (same, turned)], ids=["prefill", "decode"]
)
def test_fault_in_one_path_shows(
    source: Tiny, evaluator: Evaluator, prefill: Change, decode: Change
) -> None:
    figures = evaluator.measure(Replaying(source, prefill, decode), tail=64)
    assert figures.kl > 1.0
    assert 0.49 <= figures.top1 <= 0.53  # the other half is right


def test_sequences_start_afresh(source: Tiny, evaluator: Evaluator) -> None:
    session = Replaying(source, same, same)
    session.advance(np.array([5, 6, 7]))
    assert evaluator.measure(session).kl <= 1e-6
    assert session.length == 100


def test_wide_rows_are_computed_and_compared_a_few_at_a_time(
    tiny: TinyFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tiny("llama").checkpoint
    evaluator = Evaluator.from_passage(Reference(checkpoint), SHORT)
    counts = list[int]()
    add = Distance.add

    def counted(self: Distance, source: torch.Tensor, *others: torch.Tensor) -> None:
        counts.append(len(source))
        add(self, source, *others)

    monkeypatch.setattr(Distance, "add", counted)
    with build_session(checkpoint, tmp_path, Int8(32)) as session:
        whole = evaluator.measure(session)
        assert max(counts) > 7
        counts.clear()
        monkeypatch.setattr(measure, "_LOGITS", 7 * checkpoint.spec.vocab_size + 1)
        parts = evaluator.measure(session)
    assert max(counts) == 7
    assert parts.tokens == whole.tokens
    assert parts.top1 == whole.top1
    assert parts.kl == pytest.approx(whole.kl, rel=1e-4)
    assert parts.perplexity == pytest.approx(whole.perplexity, rel=1e-5)


def test_the_sample_is_computed_a_few_rows_at_a_time(
    source: Tiny, evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluator.sample()
    counts = list[int]()
    logits = Reference.logits

    def counted(self: Reference, hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        counts.append(len(hidden))
        return logits(self, hidden, head)

    monkeypatch.setattr(Reference, "logits", counted)
    monkeypatch.setattr(measure, "_LOGITS", 7 * source.checkpoint.spec.vocab_size)
    parts = evaluator.sample()
    assert max(counts) == 7
    assert (parts.top_tokens == whole.top_tokens).all()
    assert parts.target_logprobs.shape == (3, 99)
    np.testing.assert_allclose(parts.top_logprobs, whole.top_logprobs, atol=1e-5)
    np.testing.assert_allclose(parts.target_logprobs, whole.target_logprobs, atol=1e-5)


def test_a_prompt_is_measured_as_it_is_processed(
    tiny: TinyFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quantized kernels give other logits where a run has another number of rows."""
    tokens = np.random.default_rng(1).integers(3, 128, 60)
    outcomes = np.tile(np.arange(128), (60, 1))
    with build_session(tiny("llama").checkpoint, tmp_path, Int8(32)) as session:
        monkeypatch.setattr(measure, "_LOGITS", 7 * 128)
        monkeypatch.setattr(gate_sample, "_BLOCK", 7 * 128)
        parts = [part.copy() for part in measure.session_logits(session, tokens, 15)]
        predicted = sequence_predictions(session, tokens, outcomes, tail=15)
        session.rewind(0)
        whole = session.advance(tokens[:45], logits=45).copy()
        rest = [session.advance(token).copy() for token in tokens[45:, None]]
    assert max(map(len, parts)) == 7
    logits = np.concatenate([whole, *rest])
    assert (np.concatenate(parts) == logits).all()
    assert (predicted.top1 == logits.argmax(1)).all()
    exact = logits.astype(np.float64)
    exact -= exact.max(1, keepdims=True)
    assert (predicted.logprobs == exact - np.log(np.exp(exact).sum(1, keepdims=True))).all()
