"""Answers of a bundle that is expected to answer as its source: the same as in single steps."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edgelm
from edgelm.bundle.records.behavior import Behavior, compare_trait
from edgelm.checkpoint.source import open_checkpoint
from edgelm.export.gate import graph_run, prompts
from edgelm.export.gate.answers import (
    SEED,
    CoupledSampler,
    SampledAnswer,
    bundle_answers,
)
from edgelm.export.gate.graph_run import measure_behavior
from edgelm.export.gate.source_answers import source_answers
from edgelm.export.pipeline import export_model
from edgelm.export.source.reference import Reference
from edgelm.export.work.cache import ArtifactCache
from edgelm.runtime.generation.sampling.sampler import Sampler
from edgelm.runtime.generation.sampling.settings import Sampling
from edgelm.runtime.generation.sampling.transforms import softmax
from edgelm.runtime.model import LanguageModel
from tests.checkpoints.tiny_chat import save_tiny_chat
from tests.export.gate.talker import save_talker

SAMPLING = Sampling(temperature=0.8, top_p=0.95)
ASKED = [[*range(30, 36), number, number + 7] for number in range(40, 46)]


def single_steps(model: LanguageModel, prompt: list[int], number: int) -> SampledAnswer:
    sampler = CoupledSampler(replace(SAMPLING, seed=SEED + number), prompt_length=len(prompt))
    history = list(prompt)
    model.session.rewind(0)
    row = model.session.advance(np.array(prompt))[-1]
    while len(history) < len(prompt) + prompts.MAX_TOKENS:
        token = sampler(row, history)
        if token in model.eos_token_ids:
            return SampledAnswer(tuple(history[len(prompt) :]), True)
        history.append(token)
        row = model.session.advance(np.array([token]))[-1]
    return SampledAnswer(tuple(history[len(prompt) :]), False)


@pytest.mark.parametrize("name", ["llama", "lfm2"])  # rows of a cache, and a recurrent state
def test_expected_tokens_change_no_answer(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_tiny_chat(tmp_path / "source", name)
    export_model(source, tmp_path / "bundle", precision="fp32", gate="off")
    monkeypatch.setattr(prompts, "MAX_TOKENS", 20)
    with edgelm.load(tmp_path / "bundle", threads=1) as model:
        alone = [single_steps(model, prompt, number) for number, prompt in enumerate(ASKED, 3)]
        reference = Reference(open_checkpoint(source))
        theirs = source_answers(reference, ASKED, SAMPLING, model.eos_token_ids, first=3)
        for cut in (0, 1, 5, 11, 20):
            wrong = [
                SampledAnswer((*one.tokens[:cut], *(9 for _ in one.tokens[cut:])), False)
                for one in theirs
            ]
            assert bundle_answers(model, ASKED, SAMPLING, wrong, first=3) == alone
        seen = list[int]()
        verify = model.session.verify

        def counted(tokens: object) -> object:
            seen.append(len(tokens))  # type: ignore[arg-type]
            return verify(tokens)  # type: ignore[arg-type]

        monkeypatch.setattr(model.session, "verify", counted)
        assert bundle_answers(model, ASKED, SAMPLING, theirs, first=3) == alone == theirs
        assert max(seen) == 8


def test_coupled_samples_follow_the_distribution() -> None:
    row = np.array([1.0, 2.0, 0.0, 2.5, -1.0], dtype=np.float32)
    sampling = Sampling(temperature=1.0, top_k=3, seed=5)
    sampler, count = CoupledSampler(sampling), 4000
    found = Counter(sampler(row, []) for _ in range(count))
    expected = softmax(np.array([1.0, 2.0, 2.5], dtype=np.float32))
    assert set(found) == {0, 1, 3}
    for token, share in zip((0, 1, 3), expected, strict=True):
        error = (share * (1 - share) / count) ** 0.5
        assert abs(found[token] / count - share) < 4 * error


def test_close_models_choose_the_same_token_more_often_than_by_cumulated_probabilities() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=2000).astype(np.float32)
    other = one + rng.normal(scale=0.05, size=2000).astype(np.float32)

    def same(kind: type[Sampler]) -> int:
        chosen = [
            kind(Sampling(temperature=1.0, seed=seed))(row, [])
            for seed in range(300)
            for row in (one, other)
        ]
        return sum(a == b for a, b in zip(chosen[::2], chosen[1::2], strict=True))

    assert same(CoupledSampler) > 0.9 * 300 > same(Sampler)


@pytest.mark.parametrize("broken", [False, True], ids=["same", "never-ends"])
def test_prompts_that_cannot_change_the_verdict_are_not_asked(
    broken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "PROMPTS", tuple(f"Why {number}?" for number in range(20)))
    monkeypatch.setattr(prompts, "MAX_TOKENS", 24)
    source = save_talker(tmp_path / "talker")
    export_model(source, tmp_path / "bundle", precision="fp32", gate="off")
    with edgelm.load(tmp_path / "bundle", threads=1) as model:
        if broken:
            ends = model.eos_token_ids
            monkeypatch.setattr(graph_run, "turn_end", lambda _: ends)
            model.eos_token_ids = frozenset()
        (tmp_path / "cache").mkdir()
        found = measure_behavior(
            model,
            Reference(open_checkpoint(source)),
            ArtifactCache(tmp_path / "cache"),
            lambda _: None,
        )
    assert found is not None
    assert (found.prompts, found.passed) == ((20, False) if broken else (16, True))


@pytest.mark.parametrize(
    ("lost", "gained", "more", "decided"),
    [(0, 0, 8, True), (1, 0, 8, True), (2, 0, 8, False), (2, 1, 8, True), (10, 0, 8, False)],
)
def test_decided_means_that_losses_alone_could_not_fail_it(
    lost: int, gained: int, more: int, decided: bool
) -> None:
    source = [True] * lost + [False] * gained + [True] * (16 - lost - gained)
    bundle = [False] * lost + [True] * gained + [True] * (16 - lost - gained)
    found = Behavior(16, 24, 1.0, 7, (compare_trait("ended", source, bundle),))
    assert found.is_decided(more) is decided
    assert found.is_decided(0)
