"""Grammars that would exhaust the stack, the memory or anybody's patience are refused."""

import logging
import subprocess
import sys
from pathlib import Path

import llguidance
import numpy as np
import pytest

from edgelm.errors import BadInput
from edgelm.runtime.text.answers.rule_writer import RuleWriter
from edgelm.runtime.text.grammar import trial
from edgelm.runtime.text.grammar.compiler import GrammarCompiler
from edgelm.runtime.text.grammar.response_format import ResponseFormat
from edgelm.runtime.text.grammar.token_mask import TokenMask
from tests.checkpoints.tiny_chat import VOCAB, tiny_tokenizer
from tests.runtime.text.grammar.bombs import CHAIN, MULTIPLES
from tests.runtime.text.grammar.test_compiler import compiler, schema


def test_a_schema_that_overflows_the_stack() -> None:
    with pytest.raises(BadInput, match=r"the JSON schema .* MB, or it is nested too deeply; simpl"):
        compiler().check(schema(CHAIN))


def test_the_parameters_of_a_tool_that_overflow_the_stack() -> None:
    rules = RuleWriter({"<s>": 1})
    text = f"start: {rules.literal('<s>a')} {rules.json(CHAIN)}"
    with pytest.raises(BadInput, match=r"the schema of a tool's parameters .* nested too deeply"):
        compiler().check(ResponseFormat("tool_calls", text))


def test_a_schema_that_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_SECONDS", 0.25)
    with pytest.raises(BadInput, match=r"compiling it takes more than 0\.25 seconds; simplify it"):
        compiler().check(schema(MULTIPLES))


def test_an_expression_that_takes_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_MEGABYTES", 32)
    with pytest.raises(BadInput, match="compiling it takes more than 32 MB"):
        compiler().check(ResponseFormat("regex", r"\w" * 20_000))


def test_nested_repetitions_end_within_the_first_tokens() -> None:
    mask = compiler().start(ResponseFormat("regex", "(a{1000}){1000}"))
    with pytest.raises(BadInput, match=r"cannot be followed: .*too many") as failed:
        generate(mask, 5)
    assert len(str(failed.value)) < 200


def generate(mask: TokenMask, count: int) -> None:
    """The first token that is allowed, each time."""
    for _ in range(count):
        row = mask([], np.zeros(VOCAB, dtype=np.float32))
        mask.advance(int(np.argmax(row)))


def test_a_schema_that_no_text_matches() -> None:
    mask = compiler().start(schema({"$ref": "#"}))
    with pytest.raises(BadInput, match=r"no text of this model's tokens matches it$"):
        mask([], np.zeros(VOCAB, dtype=np.float32))


def test_without_a_process_formats_still_compile(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    trial._warn.cache_clear()
    with caplog.at_level(logging.WARNING):
        compiler().check(ResponseFormat("regex", "[0-2]{1,2}"))
    assert len(caplog.messages) == 1
    assert "cannot be tried in a process of their own" in caplog.messages[0]


def test_a_program_that_cannot_be_read_is_not_the_grammars_fault(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(trial, "_PROGRAM", tmp_path / "missing.py")  # Python ends with code 2
    trial._warn.cache_clear()
    with caplog.at_level(logging.WARNING):
        compiler().check(ResponseFormat("regex", "[0-2]{1,2}"))
    assert "cannot be tried in a process of their own" in caplog.messages[0]


@pytest.mark.parametrize(("name", "value"), [("frozen", True), ("executable", None)])
def test_an_application_that_embeds_python_is_not_started_again(
    monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    monkeypatch.setattr(sys, name, value, raising=False)
    monkeypatch.delattr(subprocess, "run")
    compiler().check(ResponseFormat("regex", "[0-2]{1,2}"))


def test_control_tokens_have_their_ids() -> None:
    """Else the trial would end at one of them, before the rest of the grammar."""
    text = RuleWriter({"<|end|>": 3}).literal("<|end|>")
    compiler().check(ResponseFormat("tool_calls", f"start: <s> {text} A\nA: /[a-z]/"))
    grammars = GrammarCompiler(tiny_tokenizer().to_str, VOCAB, {3})
    bomb = f"start: <s> <|end|> {RuleWriter({}).json(CHAIN)}"
    with pytest.raises(BadInput, match="nested too deeply"):
        grammars.check(ResponseFormat("grammar", bomb))


def test_a_process_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_MAX_SECONDS", 0.001)
    with pytest.raises(BadInput, match=r"more than 0\.001 seconds on this busy machine"):
        compiler().check(ResponseFormat("regex", "[0-2]{1,2}"))


def test_an_error_before_the_grammar_is_read_is_not_its_fault(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trial, "LIMITS", {"unknown": 1})
    trial._warn.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert trial.why_not(llguidance, '{"grammars": []}', {}, VOCAB) is None
    assert "cannot be tried in a process of their own" in caplog.messages[0]
