"""Answers with and without speculation in turn: speed, accepted tokens, and whether they are equal.

Each task is answered twice over: as the model answers it, greedily, and with a reference answer in
place of its own. A small model's own answers may run into loops, which are easily drafted; such
answers are marked.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from edgelm.bench.speculation.gain import Ratios, gain_of, interval_of
from edgelm.bench.speculation.task import Task
from edgelm.bench.speculation.tasks import WORKS
from edgelm.errors import BadInput
from edgelm.runtime import LanguageModel, Reply
from edgelm.runtime.generation.sampling.logits_processor import Row
from edgelm.speculation import SpeculationMode

Answers = Literal["own", "reference"]
_MAX_TOKENS = 160
_LOOP = 48  # tokens at the end of an answer that repeat a shorter part
_MAX_PERIOD = 16


class WorkResult(msgspec.Struct, frozen=True):
    """One kind of work.

    Rates are tokens per second of decoding, a pair per task and round, all rounds of the first task
    first. `different` counts tasks whose answer was another one with speculation, `loops` those
    whose answer ends in a loop.
    """

    work: str
    answers: Answers
    tasks: int
    rates_off: list[float]
    rates_on: list[float]
    decoded: int
    drafted: int
    accepted: int
    different: int
    loops: int

    @property
    def gain(self) -> float:
        """Speed with speculation over that without: see `gain_of`."""
        return gain_of(self._ratios())

    @property
    def gain_interval(self) -> tuple[float, float]:
        """The 95% interval of `gain`: see `interval_of`."""
        return interval_of(self._ratios())

    @property
    def task_gains(self) -> list[float]:
        """The median of each task's pairs."""
        return [float(gain) for gain in np.median(self._ratios(), axis=1)]

    def _ratios(self) -> Ratios:
        ratios: Ratios = np.array(self.rates_on) / np.array(self.rates_off)
        return ratios.reshape(self.tasks, -1)

    @property
    def tokens_per_run(self) -> float:
        """Tokens that a run of the engine gave (acceptance length)."""
        return self.decoded / max(1, self.decoded - self.accepted)


class _Pair(msgspec.Struct):
    off: Reply
    on: Reply


def measure_works(
    lm: LanguageModel,
    mode: SpeculationMode,
    *,
    rounds: int,
    works: Sequence[str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> list[WorkResult]:
    """Answer all tasks of all kinds of work, or of `works`, `rounds` times after a warm-up.

    Raises:
        BadInput: a kind of work that there is not.
    """
    chosen = tuple(WORKS) if works is None else tuple(works)
    for work in chosen:
        if work not in WORKS:
            known = ", ".join(WORKS)
            raise BadInput(f"{work!r} is not a kind of work; expected some of {known}")
    results = []
    for answers in ("own", "reference"):
        for work in chosen:
            progress(f"{work}, {answers} answers")
            results.append(_measure_work(lm, mode, work, WORKS[work], answers, rounds))
    return results


def _measure_work(
    lm: LanguageModel,
    mode: SpeculationMode,
    work: str,
    tasks: Sequence[Task],
    answers: Answers,
    rounds: int,
) -> WorkResult:
    pairs = []
    different = loops = 0
    for task in tasks:
        measured = [_pair(lm, mode, task, answers, turn) for turn in range(rounds + 1)][1:]
        different += any(pair.on.tokens != pair.off.tokens for pair in measured)
        loops += ends_in_a_loop(measured[0].off.tokens)
        pairs += measured
    return WorkResult(
        work,
        answers,
        len(tasks),
        [pair.off.timings.tokens_per_second or 0.0 for pair in pairs],
        [pair.on.timings.tokens_per_second or 0.0 for pair in pairs],
        sum(pair.on.timings.decoded for pair in pairs),
        sum(pair.on.timings.drafted for pair in pairs),
        sum(pair.on.timings.accepted for pair in pairs),
        different,
        loops,
    )


def _pair(
    lm: LanguageModel, mode: SpeculationMode, task: Task, answers: Answers, turn: int
) -> _Pair:
    """Each of the two is first in every other turn: what runs second may be slower for it."""
    if turn % 2:
        return _Pair(_answer(lm, "off", task, answers), _answer(lm, mode, task, answers))
    on = _answer(lm, mode, task, answers)
    return _Pair(_answer(lm, "off", task, answers), on)


def _answer(lm: LanguageModel, mode: SpeculationMode, task: Task, answers: Answers) -> Reply:
    """Answer from an empty cache: a cached prompt is rounded otherwise than one that is read."""
    lm.session.rewind(0)
    prompt: Any = task.prompt
    if lm.has_chat_template:
        prompt = [{"role": "user", "content": task.prompt}]
    options: Any = {"temperature": 0, "speculation": mode, "max_tokens": _MAX_TOKENS}
    if answers == "reference":
        tokens = lm.tokenizer.encode(task.reference, special=False)
        options["max_tokens"] = len(tokens)
        options["logits_processors"] = [_Dictated(tokens.tolist())]
    return lm.generate(prompt, **options)


class _Dictated:
    """A logits processor that makes the answer a given one."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens
        self._start: int | None = None

    def __call__(self, history: Sequence[int], row: Row) -> Row:
        if self._start is None:
            self._start = len(history)
        row[self._tokens[len(history) - self._start]] = np.float32(1e9)
        return row


def ends_in_a_loop(tokens: Sequence[int]) -> bool:
    """Whether the end of an answer repeats a part of at most 16 tokens."""
    end = list(tokens[-_LOOP:])
    periods = range(1, _MAX_PERIOD + 1)
    return len(end) == _LOOP and any(end[period:] == end[:-period] for period in periods)
