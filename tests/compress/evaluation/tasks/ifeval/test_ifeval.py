import logging
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgelm.compress.evaluation.backend import Conversation
from edgelm.compress.evaluation.backends.student_backend import StudentBackend
from edgelm.compress.evaluation.tasks.ifeval import ifeval as task
from edgelm.compress.evaluation.tasks.ifeval import language
from edgelm.compress.evaluation.tasks.ifeval.ifeval import (
    InstructedPrompt,
    InstructionResult,
    evaluate_answer,
    read_row,
)
from edgelm.compress.evaluation.tasks.scores import Score
from edgelm.errors import BadInput, MissingPackage, UnknownName
from tests.compress.bigram import bigram, chain
from tests.compress.tokenizers import tiny_fast_tokenizer

Subject = tuple[Any, Any]
END = 3  # <|end|>
PROMPTS = ["Why?", "Why is the sky blue, and the wheel of stone?", "A garnet", "Go on and on."]


@pytest.fixture(scope="module")
def chat(tiny_chat: Path) -> Subject:
    model = AutoModelForCausalLM.from_pretrained(tiny_chat).eval()
    return model, AutoTokenizer.from_pretrained(tiny_chat)


def respond(
    model: Any, tokenizer: Any, prompts: list[str], max_new_tokens: int, batch_size: int = 8
) -> list[str]:
    backend = StudentBackend(model, tokenizer, batch_size=batch_size)
    answers = backend.generate(list(map(Conversation.of_user, prompts)), max_new_tokens)
    return [answer.text for answer in answers]


def ifeval(
    model: Any, tokenizer: Any, rows: list[Any], *, batch_size: int = 8, **more: Any
) -> dict[str, Score]:
    backend = StudentBackend(model, tokenizer, batch_size=batch_size)
    return {name: one.score() for name, one in task.ifeval(backend, rows, **more).items()}


def scores(results: list[InstructionResult]) -> dict[str, Score]:
    return {name: one.score() for name, one in task.scores(results).items()}


def _row(*names: str, prompt: Any = "Why?", kwargs: Any = None, **more: Any) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "instruction_id_list": list(names),
        "kwargs": [{} for _ in names] if kwargs is None else kwargs,
        **more,
    }


def _says(answer: str) -> Subject:
    """A model that answers every prompt alike; no token of the answer may come twice."""
    tokenizer = tiny_fast_tokenizer()
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    assert len(set(ids)) == len(ids)
    return bigram(chain(END, *ids, tokenizer.eos_token_id)), tokenizer


def _greedy(subject: Subject, prompt: str, most: int) -> str:
    """The answer that transformers' own generation gives to a single prompt."""
    model, tokenizer = subject
    text = f"<s>user: {prompt}<|end|>"
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=most,
        eos_token_id=[0, 1, 2, 3],
        pad_token_id=0,
    )
    answer: str = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    return answer


def test_scores_of_a_model_whose_answers_are_known() -> None:
    model, tokenizer = _says("Sure,\nmy gold")
    rows = [
        # Loosely, without the first line, there is no comma.
        _row("punctuation:no_comma"),
        _row("keywords:existence", kwargs=[{"keywords": ["gold"]}], prompt="Name a metal."),
        _row(
            "keywords:existence",
            "punctuation:no_comma",
            "startend:quotation",
            kwargs=[{"keywords": ["sure"]}, {}, {}],
        ),
        _row("detectable_format:json_format", prompt="Why is the sky blue?"),
    ]
    seen = list[tuple[int, int]]()
    found = ifeval(model, tokenizer, rows, batch_size=3, progress=lambda *step: seen.append(step))
    assert {name: score.value for name, score in found.items()} == {
        "prompt_strict": 1 / 4,
        "instruction_strict": 2 / 6,
        "prompt_loose": 2 / 4,
        "instruction_loose": 4 / 6,
    }
    assert {name: score.n for name, score in found.items()} == {
        "prompt_strict": 4,
        "instruction_strict": 6,
        "prompt_loose": 4,
        "instruction_loose": 6,
    }
    assert seen == [(3, 4), (4, 4)]


def test_answers_are_the_greedy_ones_of_transformers(chat: Subject) -> None:
    expected = [_greedy(chat, prompt, 20) for prompt in PROMPTS]
    assert respond(*chat, PROMPTS, 20) == expected
    assert len(set(expected)) == 4


def test_a_batch_answers_as_single_prompts_do_in_their_order(chat: Subject) -> None:
    single = [respond(*chat, [prompt], 20)[0] for prompt in PROMPTS]
    assert respond(*chat, PROMPTS, 20) == single
    assert respond(*chat, PROMPTS, 20, batch_size=3) == single


def test_the_context_ends_an_answer_before_the_limit(
    chat: Subject, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer = _says("Go")
    ids = tokenizer("Go", add_special_tokens=False)["input_ids"]
    endless = bigram(chain(END, *ids, ids[0]), context=40)
    used = len(tokenizer("<s>user: Why?<|end|>", add_special_tokens=False)["input_ids"])
    with caplog.at_level(logging.WARNING):
        (answer,) = respond(endless, tokenizer, ["Why?"], 1000)
    assert answer == ("Go" * 40)[: 40 - used]
    assert "1 of 1 answers reached the limit of new tokens" in caplog.text
    # The longest of a batch is where the batch ends.
    both = respond(endless, tokenizer, ["Why?", "Why"], 1000)
    assert both == [answer, answer]
    caplog.clear()
    assert respond(model, tokenizer, ["Why?"], 1000) == ["Go"]
    assert not caplog.text


def test_a_prompt_that_fills_the_context_is_refused() -> None:
    model, tokenizer = _says("Go")
    long = "x" * 200
    count = len(tokenizer(f"<s>user: {long}<|end|>", add_special_tokens=False)["input_ids"])
    message = f"a prompt has {count} tokens, the model's context 128; remove longer prompts"
    with pytest.raises(BadInput, match=message):
        ifeval(model, tokenizer, [_row("punctuation:no_comma", prompt=p) for p in ("Why?", long)])


def test_without_a_chat_template_nothing_is_asked() -> None:
    model, tokenizer = _says("Go")
    tokenizer.chat_template = None
    with pytest.raises(
        BadInput, match=r"need a chat template.*evaluate an instruction-tuned model"
    ):
        ifeval(model, tokenizer, [_row("punctuation:no_comma")])


def test_no_rows_are_refused() -> None:
    with pytest.raises(BadInput, match="ifeval has no rows; expected one JSON object per line"):
        ifeval(*_says("Go"), [])


def test_a_missing_package_is_told_before_the_first_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "langdetect", None)
    language._detector.cache_clear()
    model, tokenizer = _says("Go")
    monkeypatch.setattr(model, "forward", None)
    rows = [_row("punctuation:no_comma"), _row("change_case:english_capital")]
    with pytest.raises(MissingPackage, match="pip install langdetect"):
        ifeval(model, tokenizer, rows)


@pytest.mark.parametrize(
    ("answer", "strict", "loose"),
    [
        ('"all"', True, True),
        ('Sure:\n"all"', False, True),
        ('"all"\nAny questions?', False, True),
        ('Sure:\n"all"\nAny questions?', False, True),
        ('*"all"*', False, True),
        ('**Sure:**\n\n*"all"*\n\nBye', False, True),
        ('Sure:\nhere:\n"all"', False, False),
        ("all", False, False),
    ],
    ids=repr,
)
def test_a_loose_check_forgives_a_first_and_a_last_line_and_asterisks(
    answer: str, strict: bool, loose: bool
) -> None:
    prompt = read_row(_row("startend:quotation"), 1)
    assert evaluate_answer(prompt, answer) == InstructionResult((strict,), (loose,))


def test_an_empty_answer_follows_nothing() -> None:
    prompt = read_row(_row("punctuation:no_comma"), 1)
    for answer in ("", " \n"):
        assert evaluate_answer(prompt, answer) == InstructionResult((False,), (False,))
    # Without its only line nothing is left, which would have no comma.
    assert evaluate_answer(prompt, "one, two") == InstructionResult((False,), (False,))
    assert evaluate_answer(prompt, "***") == InstructionResult((True,), (True,))


def test_arguments_are_bound_and_null_ones_are_none() -> None:
    arguments = {"num_words": 3, "relation": "less than", "keywords": None, "letter": None}
    prompt = read_row(_row("length_constraints:number_words", kwargs=[arguments]), 1)
    assert isinstance(prompt, InstructedPrompt)
    assert prompt.prompt == "Why?"
    (check,) = prompt.checks
    assert check("one two")
    assert not check("one two three")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "prompt 7: expected `prompt` .*; found none"),
        ({"text": "x", "id": 1}, "prompt 7: expected .*; found text, id"),
        (_row(), "prompt 7: expected"),
        (_row("punctuation:no_comma", prompt=3, key=1000), r"prompt 7 \(key 1000\): expected"),
        (
            _row("punctuation:no_comma", kwargs=[]),
            r"expected `kwargs` to be a list of 1 objects, one for each instruction, got \[\]",
        ),
        (_row("punctuation:no_comma", kwargs={}), r"expected `kwargs` .* got \{\}"),
        (
            _row("punctuation:no_comma", kwargs=[{"letter": "e"}]),
            "prompt 7: punctuation:no_comma takes no arguments; found letter",
        ),
        (
            _row("length_constraints:number_words", kwargs=[{"num_words": 3}]),
            "length_constraints:number_words takes num_words, relation; found num_words",
        ),
        (
            _row("length_constraints:number_words", kwargs=[None]),
            "length_constraints:number_words takes num_words, relation; found none",
        ),
        (
            _row(
                "length_constraints:number_words",
                kwargs=[{"num_words": "3", "relation": "at least"}],
            ),
            "`num_words` of length_constraints:number_words is '3': Expected `int`, got `str`",
        ),
        (
            _row(
                "length_constraints:number_words", kwargs=[{"num_words": 3, "relation": "at most"}]
            ),
            "`relation` of length_constraints:number_words is 'at most': Invalid enum value",
        ),
        (
            _row("keywords:existence", kwargs=[{"keywords": ["a", 1]}]),
            r"`keywords` of keywords:existence is \['a', 1\]: Expected `str`, got `int`",
        ),
    ],
)
def test_a_row_of_another_form_is_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read_row(row, 7)


@pytest.mark.parametrize("name", ["punctuation:no_dots", 3])
def test_an_unknown_instruction_names_the_known_ones(name: Any) -> None:
    message = rf"prompt 2: unknown instruction {name!r}; known: change_case:.*, startend:quotation"
    with pytest.raises(UnknownName, match=message):
        read_row(_row(name), 2)


def test_scores_and_their_errors_by_hand() -> None:
    followed = ((True, True), (True, False, False), (True,))
    found = scores([InstructionResult(strict=one, loose=(True,) * len(one)) for one in followed])
    strict = found["prompt_strict"]
    assert (strict.value, strict.n) == (2 / 3, 3)
    assert strict.error == pytest.approx(math.sqrt(2 / 3 * 1 / 3 / 3))
    # 4 of 6. Residuals of the ratio 2/3: 2 - 4/3, 1 - 2, 1 - 2/3; their squares sum to 14/9.
    one = found["instruction_strict"]
    assert (one.value, one.n) == (4 / 6, 6)
    assert one.error == pytest.approx(math.sqrt(14 / 9 * 3 / 2) / 6)
    for name in ("prompt_loose", "instruction_loose"):
        assert (found[name].value, found[name].error) == (1, 0)
    assert {score.better for score in found.values()} == {"higher"}


def test_the_error_of_single_instructions_is_that_of_trials() -> None:
    found = scores([InstructionResult((right,), (right,)) for right in [True, False] * 200])
    one, all_of_it = found["instruction_strict"].error, found["prompt_strict"].error
    assert one == pytest.approx(all_of_it, rel=0.01)
