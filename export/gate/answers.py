"""Sampled answers of a bundle, with the random numbers of edgelm.export.gate.source_answers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from edgelm.errors import BadInput
from edgelm.export.gate import prompts as asked
from edgelm.runtime.engines.session import Session
from edgelm.runtime.generation.sampling.logits_processor import Row
from edgelm.runtime.generation.sampling.sampler import Sampler
from edgelm.runtime.generation.sampling.settings import Sampling
from edgelm.runtime.model import LanguageModel
from edgelm.runtime.sequences import common_prefix

SEED = 7
_RUN = 8  # expected tokens that are run at a time: twice the time of one


class SampledAnswer(msgspec.Struct, frozen=True):
    """New tokens, the end-of-turn token left out, and whether there was one."""

    tokens: tuple[int, ...]
    ended: bool


def sampling_of(values: dict[str, Any], vocab_size: int) -> Sampling:
    """The sampling of a generation config, at temperature 1 where it names none that is valid."""
    names = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
    given = {name: values[name] for name in names if values.get(name) is not None}
    if not given.get("temperature"):  # greedy: nothing would be sampled
        given["temperature"] = 1.0
    sampling = Sampling(**given)
    try:
        sampling.check(vocab_size)
    except BadInput:  # values of a config that does not sample are not checked at export
        return Sampling(temperature=1.0)
    return sampling


class CoupledSampler(Sampler):
    """Samples with a random number for each token of the vocabulary.

    Each log-probability gets a Gumbel variate, and the largest sum is chosen, which samples the
    distribution exactly (Maddison et al. 2014, arXiv 1411.0030). Two models that are close thus
    mostly choose the same token. By cumulated probabilities, where each token's place moves with
    the probabilities of all tokens before it, answers to one prompt would soon differ by chance.
    """

    def _choose(self, row: Row) -> int:
        return int((row + self._random.gumbel(size=len(row))).argmax())


def bundle_answers(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    expected: Sequence[SampledAnswer],
    first: int = 0,
) -> list[SampledAnswer]:
    """The answers of a bundle.

    Args:
        model: the bundle; nothing else may use it meanwhile.
        prompts: token ids.
        sampling: how tokens are chosen.
        expected: the source's answers. Their tokens are run several at a time for as long as the
            bundle chooses the same ones; the answers are those of single steps.
        first: the number of the first prompt, which its seed depends on.
    """
    return [
        _answer(model, list(map(int, prompt)), replace(sampling, seed=SEED + number), one.tokens)
        for number, (prompt, one) in enumerate(zip(prompts, expected, strict=True), first)
    ]


def _answer(
    model: LanguageModel, prompt: list[int], sampling: Sampling, expected: Sequence[int]
) -> SampledAnswer:
    sampler = CoupledSampler(sampling, prompt_length=len(prompt))
    steps = _Steps(model.session, prompt, expected)
    history = list(prompt)
    while len(history) < len(prompt) + asked.MAX_TOKENS:
        token = sampler(steps.row(history), history)
        if token in model.eos_token_ids:
            return SampledAnswer(tuple(history[len(prompt) :]), True)
        history.append(token)
    return SampledAnswer(tuple(history[len(prompt) :]), False)


class _Steps:
    """Logits behind a history that is probably the prompt and the expected tokens."""

    def __init__(self, session: Session, prompt: list[int], expected: Sequence[int]) -> None:
        self._session = session
        self._expected = [*prompt, *expected]
        shared = min(common_prefix(session.tokens, prompt), len(prompt) - 1)
        session.rewind(shared)
        self._rows = session.advance(np.array(prompt[shared:], dtype=np.int64))[-1:]
        self._start = len(prompt)  # tokens of the history that the first row is behind
        self._on_trial = False

    def row(self, history: list[int]) -> Row:
        """The logits [vocab_size] behind a history, one token longer than at the last call."""
        length = len(history)
        at, same = length - self._start, history == self._expected[:length]
        if at < len(self._rows) and (at == 0 or same):
            row: Row = self._rows[at]
            return row
        if self._on_trial:
            self._session.keep(length - 1)
        run = self._expected[length - 1 :][:_RUN] if same else history[-1:]
        tokens = np.array(run, dtype=np.int64)
        self._start, self._on_trial = length, len(run) > 1
        step = self._session.verify if self._on_trial else self._session.advance
        self._rows = step(tokens)
        first: Row = self._rows[0]
        return first
