"""Logits that are not numbers, settings at their extremes, and options of the wrong type."""

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgelm
from edgelm.errors import BadBundle, BadInput
from edgelm.runtime import LanguageModel
from edgelm.runtime.generation.sampling.logits_processor import Row
from edgelm.runtime.generation.sampling.sampler import Sampler
from edgelm.runtime.generation.sampling.settings import Sampling
from edgelm.runtime.generation.sampling.token_counts import TokenCounts
from edgelm.runtime.generation.sampling.transforms import log_softmax, softmax, transforms

ROW: Row = np.array([2.0, 1.0, -1.0, -4.0], dtype=np.float32)


def poisoned(value: float, *, everywhere: bool = False) -> Row:
    row = ROW.copy()
    row[slice(None) if everywhere else 1] = value
    return row


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampling"])
@pytest.mark.parametrize(
    "row",
    [
        poisoned(np.nan),
        poisoned(np.nan, everywhere=True),
        poisoned(np.inf),
        poisoned(-np.inf, everywhere=True),
    ],
    ids=["a NaN", "all NaN", "infinity", "all minus infinity"],
)
def test_logits_that_are_not_numbers(row: Row, temperature: float) -> None:
    sampler = Sampler(Sampling(temperature=temperature, top_p=0.9, typical_p=0.9, seed=0))
    with pytest.raises(BadBundle, match="the model's logits are not numbers"):
        sampler(row, [])


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e300])
def test_a_processor_that_leaves_no_token(value: float) -> None:
    """An error of its own, whatever the settings: each transform expects a token."""
    for settings in ({}, {"typical_p": 0.9}, {"top_p": 0.9}, {"top_k": 2}, {"min_p": 0.1}):
        sampling = Sampling(temperature=1.0, seed=0, **settings)
        sampler = Sampler(sampling, processors=(lambda _, row: np.full(len(row), value),))
        with pytest.raises(BadInput, match="leave no token"):
            sampler(ROW, [])


def test_a_model_that_computes_nan_says_so_and_stays_usable(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = lm.generate("a", max_tokens=3).text
    engine = lm.session.engine  # type: ignore[attr-defined]
    real = engine._run_step

    def broken(*given: Any) -> Any:
        step = real(*given)
        return step._replace(logits=step.logits * np.nan)

    monkeypatch.setattr(engine, "_run_step", broken)
    with pytest.raises(BadBundle, match="not numbers"):
        lm.generate("a", max_tokens=3)
    monkeypatch.undo()
    assert lm.generate("a", max_tokens=3).text == expected


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=5e-324),
        Sampling(temperature=1e-320, top_p=0.5, typical_p=0.5, min_p=0.1),
        Sampling(temperature=1e-300, logit_bias={0: 1e30}),
        Sampling(temperature=1, logit_bias={0: 1e30, 1: -1e30}),
        Sampling(temperature=1e-3, repetition_penalty=1e-308, logit_bias={3: -np.inf}),
        Sampling(repetition_penalty=1e308, temperature=1e-3),
        Sampling(temperature=1, top_p=5e-324),
    ],
    ids=repr,
)
def test_extremes_choose_the_best(sampling: Sampling) -> None:
    sampling.check(4)
    history = [3] if sampling.repetition_penalty != 1 else []
    assert {Sampler(sampling)(ROW, history) for _ in range(20)} == {0}


def test_a_huge_temperature_is_uniform() -> None:
    sampler = Sampler(Sampling(temperature=1e308))
    assert softmax(sampler.transformed(ROW, [])).tolist() == [0.25] * 4


@pytest.mark.parametrize("value", [1e31, -1e300, 10**400], ids=["1e31", "-1e300", "10**400"])
def test_a_bias_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(BadInput, match="logit_bias of token 1 is "):
        Sampling(logit_bias={1: value}).check(4)


def test_forbidding_every_token() -> None:
    sampler = Sampler(Sampling(temperature=1e-9, logit_bias=dict.fromkeys(range(4), -np.inf)))
    with pytest.raises(BadInput, match="logit_bias forbids every token"):
        sampler(ROW, [])


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "temperature": ({"temperature": "hot"}, "temperature is 'hot', expected a number"),
    "temperature bool": ({"temperature": True}, "temperature is True"),
    "temperature none": ({"temperature": None}, "temperature is None"),
    "temperature huge": ({"temperature": 10**400}, "temperature is 1000"),
    "top_k": ({"top_k": 2.5}, "top_k is 2.5, expected an integer"),
    "top_p": ({"top_p": [1]}, r"top_p is \[1\], expected a number"),
    "max_tokens": ({"max_tokens": "5"}, "max_tokens is '5', expected an integer"),
    "max_tokens float": ({"max_tokens": 5.0}, "max_tokens is 5.0"),
    "scores": ({"logprobs": True}, "logprobs is True"),
    "seed": ({"seed": "x"}, "seed is 'x', expected an integer"),
    "stop": ({"stop": 5}, "stop is 5, expected a string or a list of strings"),
    "stop list": ({"stop": ["a", 5]}, "expected a string or a list of strings"),
    "many stops": ({"stop": ["a"] * 1001}, "stop has 1001 strings of 1001 characters in all"),
    "long stop": ({"stop": "a" * 100_001}, "expected at most 1000 of 100000"),
    "stop bytes": ({"stop": b"a"}, "expected a string or a list of strings"),
    "stop_tokens": ({"stop_tokens": ["a"]}, r"stop_tokens is \['a'\], expected a list of token"),
    "stop_tokens far": ({"stop_tokens": [3, 5000]}, "stop_tokens names token 5000, the vocabulary"),
    "stop_tokens -1": ({"stop_tokens": [-1]}, "stop_tokens names token -1, the vocabulary has"),
    "stop_tokens int": ({"stop_tokens": 5}, "stop_tokens is 5, expected a list of token ids"),
    "logit_bias": ({"logit_bias": {"a": 1}}, "logit_bias names 'a', expected a token id"),
    "logit_bias list": ({"logit_bias": [1]}, r"logit_bias is \[1\], expected a dict"),
    "logit_bias value": ({"logit_bias": {1: "x"}}, "logit_bias of token 1 is 'x'"),
    "cancel": ({"cancel": 5}, "cancel is 5, expected a function .* or an event"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_options_of_another_type(lm: LanguageModel, options: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        lm.stream("a", **options)


def test_numbers_and_events_of_other_kinds_are_taken(lm: LanguageModel) -> None:
    done = lm.generate(
        "a",
        max_tokens=np.int64(2),  # type: ignore[arg-type]
        temperature=np.float32(0.5),  # type: ignore[arg-type]
        logit_bias={np.int64(5): np.float64(1.0)},  # type: ignore[dict-item]
        stop=None,  # type: ignore[arg-type]
        cancel=threading.Event(),
    )
    assert done.finish_reason == "length"


@pytest.mark.parametrize("prompt", [None, ["a"], b"a", 5, "\ud800"], ids=repr)
def test_prompts_that_are_not_text(lm: LanguageModel, prompt: Any) -> None:
    with pytest.raises(BadInput, match=r"expected a text|surrogate"):
        lm.generate(prompt)
    messages: Any = [{"role": "user", "content": prompt}]
    with pytest.raises(BadInput):
        lm.generate(messages)
    with pytest.raises(BadInput):
        lm.chat().send(prompt)


@pytest.mark.parametrize("messages", [b"hi", None, {"role": "user"}, ["hi"], 5], ids=repr)
def test_conversations_that_are_not_lists_of_messages(lm: LanguageModel, messages: Any) -> None:
    with pytest.raises(BadInput, match=r"expected a list of messages|bad message"):
        lm.chat_tokens(messages)
    with pytest.raises(BadInput):
        lm.generate(messages)
    with pytest.raises(BadInput):
        lm.chat().send(messages)


@pytest.mark.parametrize("tokens", [[[1]], [1.5], None, [1, "a"], [[1], 2]], ids=repr)
def test_tokens_that_are_not_ids(lm: LanguageModel, tokens: Any) -> None:
    with pytest.raises(
        BadInput, match=r"the prompt is .*, expected a text, a list of messages, or token ids"
    ):
        lm.stream(tokens)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"do_sample": true, "temperature": "hot"}', "generation_config.json: temperature is"),
        ('{"eos_token_id": "x"}', "eos_token_id is x"),
        ("[1]", "holds a list, expected an object"),
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("\udcff", "is not valid JSON"),
        ('{"eos_token_id": 3, "eos_token_id": 2}', "the key 'eos_token_id' appears twice"),
    ],
    ids=["temperature", "eos", "list", "cut", "deep", "bytes", "twice"],
)
def test_generation_configs_that_cannot_be(
    bundle: Path, tmp_path: Path, text: str, message: str
) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    (copy / "generation_config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BadBundle, match=message):
        edgelm.load(copy, check_hashes=False)


def kept_by_sorting_all(row: Row, order: Any, mass: float) -> list[int]:
    """The definition: all tokens in order, until they hold the mass."""
    alive = np.flatnonzero(row > -np.inf)
    ranked = alive[np.argsort(order[alive], kind="stable")]
    count = int(np.searchsorted(np.cumsum(softmax(row[ranked])), mass - 1e-9)) + 1
    return sorted(ranked[:count].tolist())


ROWS = {
    "peaked": lambda r: r.normal(0, 4, 3000),
    "flat": lambda r: r.normal(0, 0.1, 3000),
    "equal": lambda r: np.zeros(3000),
    "ties": lambda r: r.integers(-3, 4, 3000),
    "forbidden": lambda r: np.where(r.random(3000) < 0.5, -np.inf, r.normal(0, 2, 3000)),
    "one": lambda r: np.where(np.arange(3000) == 7, 50.0, r.normal(0, 1, 3000)),
}


@pytest.mark.parametrize("mass", [1e-6, 0.1, 0.5, 0.9, 0.95, 0.999, 1 - 1e-8])
@pytest.mark.parametrize("make", ROWS.values(), ids=ROWS)
def test_truncations_keep_what_sorting_everything_keeps(make: Any, mass: float) -> None:
    for seed in range(3):
        row = make(np.random.default_rng(seed)).astype(np.float32)
        (top_p,) = transforms(Sampling(temperature=1, top_p=mass), 0)
        kept = np.flatnonzero(top_p(row, []) > -np.inf).tolist()
        assert kept == kept_by_sorting_all(row, -row, mass)
        (typical,) = transforms(Sampling(temperature=1, typical_p=mass), 0)
        kept = np.flatnonzero(typical(row, []) > -np.inf).tolist()
        logs = log_softmax(row)
        known = logs[logs > -np.inf]
        entropy = -float((np.exp(known) * known).sum())
        assert softmax(row)[kept].sum() >= mass - 2e-9
        farthest = np.abs(logs + entropy)[kept].max()
        others = np.setdiff1d(np.flatnonzero(row > -np.inf), kept)
        assert (np.abs(logs + entropy)[others] >= farthest - 1e-9).all()


def test_counts_grow_with_the_sequence() -> None:
    generator = np.random.default_rng(0)
    counts, history = TokenCounts(start=3), generator.integers(0, 300, 3).tolist()
    for added in (0, 1, 200, 1, 500):
        history += generator.integers(0, 300, added).tolist()
        counts.update(history)
        tokens, expected = np.unique(np.array(history[3:], dtype=np.int64), return_counts=True)
        order = np.argsort(counts.tokens)
        assert counts.tokens[order].tolist() == tokens.tolist()
        assert counts.counts[order].tolist() == expected.tolist()
