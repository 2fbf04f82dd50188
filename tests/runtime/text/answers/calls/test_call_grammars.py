"""Forced calls: whatever random logits choose, the family's parser reads a valid call."""

import json
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as RawTokenizer

from edgelm.errors import BadInput
from edgelm.runtime.generation.sampling.logits_processor import Constraint
from edgelm.runtime.text.answers.answering import Answering
from edgelm.runtime.text.answers.tool_choice import ToolChoice, read_tool_choice
from edgelm.runtime.text.grammar.compiler import GrammarCompiler
from edgelm.runtime.text.grammar.response_format import read_response_format
from edgelm.runtime.text.tokenizer import Detokenizer, Tokenizer
from tests.checkpoints.tiny_chat import VOCAB, tiny_tokenizer
from tests.runtime.text.answers.test_parser import (
    CODER,
    FUNCTION_GEMMA,
    GEMMA4,
    GLM,
    GPT_OSS,
    GRANITE,
    HERMES,
    LFM2,
    LLAMA3,
    MISTRAL,
    NEMOTRON,
    OLMO3,
    PHI4,
)
from tests.schemas.json_check import is_valid

PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "unit": {"type": "string", "enum": ["C", "F"]},
        "exact": {"type": "boolean"},
    },
    "required": ["city", "unit"],
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "stop"}},
]
# Template, the control tokens that its family's tokenizers have.
FAMILIES = {
    "hermes": (HERMES, []),
    "hermes, control tokens": (HERMES, ["<tool_call>", "</tool_call>", "<think>", "</think>"]),
    "qwen3-coder": (CODER, []),
    "glm": (GLM, ["<tool_call>", "</tool_call>"]),
    "llama3": (LLAMA3, ["<|python_tag|>"]),
    "mistral": (MISTRAL, ["[TOOL_CALLS]", "[THINK]", "[/THINK]"]),
    "mistral-args": (MISTRAL + "[ARGS]", ["[TOOL_CALLS]", "[ARGS]"]),
    "gemma4": (GEMMA4, ["<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>"]),
    "functiongemma": (
        FUNCTION_GEMMA,
        ["<start_function_call>", "<end_function_call>", "<escape>"],
    ),
    "lfm2": (LFM2, ["<|tool_call_start|>", "<|tool_call_end|>"]),
    "olmo3": (OLMO3, []),
    "granite": (GRANITE, ["<|tool_call|>"]),
    "phi4": (PHI4, ["<|tool_call|>", "<|/tool_call|>"]),
    "nemotron": (NEMOTRON, []),
    "plain": ("{{ messages }}", []),
    "harmony": (
        GPT_OSS,
        ["<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>"],
    ),
}
END = 2


class Model:
    """Random logits under a constraint."""

    def __init__(self, template: str, control: list[str], tmp_path: Any) -> None:
        raw: RawTokenizer = tiny_tokenizer()
        raw.add_special_tokens(control)
        raw.save(str(tmp_path / "tokenizer.json"))
        self.tokenizer = Tokenizer(tmp_path / "tokenizer.json")
        self.size = raw.get_vocab_size()
        compiler = GrammarCompiler(self.tokenizer.to_json, self.size, {END})
        self.answering = Answering(template, self.tokenizer, compiler, frozenset({END}))

    def answer(
        self, constraint: Constraint, tools: ToolChoice, seed: int, prompt: str = ""
    ) -> tuple[str, str, list[Any]]:
        """Reasoning, content and calls of a random answer."""
        rng = np.random.default_rng(seed)
        detokenizer = Detokenizer(self.tokenizer, self.answering.shown)
        make = self.answering.parser(tools, prompt)
        assert make is not None
        parser, parts = make(), []
        bias = np.zeros(self.size, dtype=np.float32)
        # Texts end soon.
        for text in ('"', "\n", "<", ")", "{", "}", "[", "]"):
            bias[[int(i) for i in self.tokenizer.encode(text)]] = 4.0
        bias[VOCAB:] = 4.0
        bias[END] = 6.0
        written, forced = "", list[tuple[int, str]]()
        for _ in range(2000):
            row = rng.normal(size=self.size).astype(np.float32) + bias
            token = int(constraint([], row).argmax())
            forced.append((len(written), constraint.forced()))
            constraint.advance(token)
            if token == END:
                break
            text = detokenizer.push(token)
            written += text
            parts.append(parser.push(text))
            if constraint.complete:
                break
        else:
            raise AssertionError("no end")
        for start, text in forced:
            assert written[start : start + len(text)] == text[: len(written) - start]
        assert any(text for _, text in forced) or not tools.required
        parts += [parser.push(detokenizer.flush()), parser.finish()]
        return (
            "".join(part.reasoning for part in parts),
            "".join(part.content for part in parts),
            [(c.name, json.loads(c.arguments)) for part in parts for c in part.tool_calls],
        )


def check(calls: list[Any]) -> None:
    for name, arguments in calls:
        assert name in ("get_weather", "stop")
        if name == "get_weather":
            assert is_valid(arguments, PARAMETERS), arguments


@pytest.mark.parametrize("family", FAMILIES)
def test_a_call_is_required(family: str, tmp_path: Any) -> None:
    model = Model(*FAMILIES[family], tmp_path)
    assert model.answering.format.name == family.partition(",")[0]
    tools = read_tool_choice(TOOLS, "required", None)
    make = model.answering.constraint(tools, None, 0, "")
    assert make is not None
    for seed in range(4):
        reasoning, content, calls = model.answer(make(), tools, seed)
        assert (reasoning, content) == ("", "")
        assert calls
        check(calls)


@pytest.mark.parametrize("family", ["hermes", "lfm2", "gemma4", "harmony", "mistral"])
def test_a_named_function_is_called_once(family: str, tmp_path: Any) -> None:
    model = Model(*FAMILIES[family], tmp_path)
    choice = {"type": "function", "function": {"name": "get_weather"}}
    tools = read_tool_choice(TOOLS, choice, None)
    make = model.answering.constraint(tools, None, 0, "")
    assert make is not None
    for seed in range(3):
        calls = model.answer(make(), tools, seed)[2]
        assert [name for name, _ in calls] == ["get_weather"]
        check(calls)


@pytest.mark.parametrize("family", ["hermes", "llama3", "harmony", "mistral-args"])
def test_a_call_or_an_answer_of_a_form(family: str, tmp_path: Any) -> None:
    model = Model(*FAMILIES[family], tmp_path)
    tools = read_tool_choice(TOOLS, "auto", None)
    schema = {"type": "json_schema", "schema": {"type": "array", "items": {"type": "integer"}}}
    make = model.answering.constraint(tools, read_response_format(schema), 0, "")
    assert make is not None
    kinds = set()
    for seed in range(12):
        _, content, calls = model.answer(make(), tools, seed)
        kinds.add(bool(calls))
        check(calls)
        if not calls:
            assert isinstance(json.loads(content), list)
    assert kinds == {True, False}


def test_a_constraint_begins_behind_the_reasoning(tmp_path: Any) -> None:
    model = Model(HERMES, ["<think>", "</think>"], tmp_path)
    tools = read_tool_choice(TOOLS, "required", None)
    make = model.answering.constraint(tools, None, 5, "<think>\n")
    assert make is not None
    reasoning, content, calls = model.answer(make(), tools, 1, "<think>\n")
    assert reasoning
    assert content == ""
    check(calls)
    assert calls


def test_harmony_reasons_before_a_required_call(tmp_path: Any) -> None:
    model = Model(*FAMILIES["harmony"], tmp_path)
    tools = read_tool_choice(TOOLS, "required", None)
    make = model.answering.constraint(tools, None, 6, "<|start|>assistant")
    assert make is not None
    reasoning, content, calls = model.answer(make(), tools, 1)
    assert reasoning
    assert content == ""
    assert calls


@pytest.mark.parametrize(
    ("tools", "choice", "parallel", "message"),
    [
        ("x", None, None, "expected a list of functions"),
        ([{"type": "function"}], None, None, "bad tool"),
        ([{"name": "a b"}], None, None, "bad tool"),
        ([{"name": "a", "parameters": []}], None, None, "expected a JSON schema"),
        (None, "required", None, "there are no tools"),
        (TOOLS, "always", None, "expected none, auto, required or"),
        (TOOLS, {"type": "function", "function": {"name": "x"}}, None, "tools are: get_weather"),
        (TOOLS, None, 1, "expected true or false"),
    ],
)
def test_choices_that_are_refused(tools: Any, choice: Any, parallel: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read_tool_choice(tools, choice, parallel)


def test_a_schema_that_cannot_be_enforced_names_the_tool(tmp_path: Any) -> None:
    model = Model(HERMES, [], tmp_path)
    bad = [{"name": "f", "parameters": {"properties": {"a": {"type": "string", "pattern": "("}}}}]
    with pytest.raises(BadInput, match="the schema of a tool's parameters cannot be used"):
        model.answering.constraint(read_tool_choice(bad, "required", None), None, None, "")
