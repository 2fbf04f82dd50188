"""Function calling, in the row format of BFCL and with its matching of calls (Patil et al. 2025).

A row has `question` (a list of conversations, the first of which is used), `function` (schemas) and
`ground_truth`: the calls, each argument with the values that are accepted, "" where it may be left
out. Calls are read by the runtime's own parser. A row without right calls is one of irrelevance:
nothing may be called. The rules of comparison are those of BFCL's AST checker: types must fit, text
is compared without case, spaces and punctuation, parallel calls in any order.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.compress.data.jsonl import read_jsonl
from edgelm.compress.evaluation.backend import Backend, Call, Conversation, Progress, no_progress
from edgelm.compress.evaluation.encoding import loglikelihood
from edgelm.compress.evaluation.metrics import Metric, perplexity_of, share_of
from edgelm.compress.evaluation.tasks.function_calls.call_matching import (
    Expected,
    calls_match,
    first_accepted,
    function_name,
)
from edgelm.errors import BadInput

_MAX_TOKENS = 160  # of calls
# BFCL's names of types; OpenAI's and JSON schema's are others.
_TYPES = {
    "dict": "object",
    "float": "number",
    "tuple": "array",
    "any": "string",
    "String": "string",
    "hashmap": "object",
    "HashMap": "object",
    "double": "number",
    "long": "integer",
    "char": "string",
    "ArrayList": "array",
    "Array": "array",
    "Boolean": "boolean",
    "bool": "boolean",
}


@dataclass(frozen=True, slots=True)
class FunctionRow:
    """A request, the functions that are offered, and the right calls.

    `wrong` are calls that are not right, as (name, arguments), for comparison by likelihood.
    `any_call`: any call is right (BFCL's relevance).
    """

    category: str
    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...]
    expected: tuple[Expected, ...]
    wrong: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    any_call: bool = False


def read_rows(path: Path, limit: int | None) -> list[FunctionRow]:
    """Rows of one of BFCL's files; answers may lie in its `possible_answer/` folder.

    Raises:
        BadInput: a row of another form.
    """
    answers = _possible_answers(path)
    category = path.name.split(".")[0].removeprefix("BFCL_").partition("_")[2] or path.stem
    found = []
    for where, row in read_jsonl(path):
        named = str(row.get("category", category))
        # BFCL states no calls where none is right, or any.
        without: list[Any] | None = [] if named.endswith("relevance") else None
        truth = row.get("ground_truth", answers.get(str(row.get("id")), without))
        if not _is_row(row, truth):
            raise BadInput(
                f"{where}: expected BFCL's fields `question` (conversations), `function` (schemas "
                "with `name` and `parameters`) and `ground_truth` (calls; an empty list where none "
                "is right)"
            )
        question = row["question"]
        found.append(
            FunctionRow(
                category=named,
                messages=tuple(question[0] if isinstance(question[0], list) else question),
                tools=tuple(openai_tool(one) for one in row["function"]),
                expected=tuple(truth or ()),
                any_call=named.endswith("relevance") and not named.endswith("irrelevance"),
            )
        )
        if len(found) == limit:
            break
    if not found:
        raise BadInput(f"{path} holds no rows; expected one JSON object per line")
    return found


def _is_row(row: Mapping[str, Any], truth: Any) -> bool:
    question, offered = row.get("question"), row.get("function")
    if not (isinstance(question, list) and question and isinstance(offered, list)):
        return False
    messages = question[0] if isinstance(question[0], list) else question
    return (
        bool(messages)
        and all(isinstance(one, dict) and {"role", "content"} <= set(one) for one in messages)
        and all(isinstance(one, dict) and {"name", "parameters"} <= set(one) for one in offered)
        and isinstance(truth, list)
        and all(isinstance(one, dict) and len(one) == 1 for one in truth)
    )


def openai_tool(function: Mapping[str, Any]) -> dict[str, Any]:
    """A function's schema as OpenAI has it."""
    schema = {**function, "name": function_name(function["name"])}
    schema["parameters"] = _schema(function["parameters"])
    return {"type": "function", "function": schema}


def functions(
    backend: Backend, rows: Sequence[FunctionRow], progress: Progress = no_progress
) -> dict[str, Metric]:
    """Shares of rows with the right calls: `accuracy`, and by category; `called`, with any call."""
    asked = [Conversation(row.messages, row.tools) for row in rows]
    answers = backend.generate(asked, _MAX_TOKENS, progress)
    right = [matches(answer.calls, row) for answer, row in zip(answers, rows, strict=True)]
    needed = [bool(one.calls) for one, row in zip(answers, rows, strict=True) if row.expected]
    found = {"accuracy": share_of(right)}
    if needed:
        found["called"] = share_of(needed)
    for category in dict.fromkeys(row.category for row in rows):
        chosen = [one for one, row in zip(right, rows, strict=True) if row.category == category]
        found[category] = share_of(chosen)
    return found


def function_choice(
    backend: Backend, rows: Sequence[FunctionRow], progress: Progress = no_progress
) -> dict[str, Metric]:
    """By likelihood: whether the right call is likelier than wrong ones.

    Sensitive where a small model seldom writes a call at all.

    Raises:
        BadInput: no row has wrong calls.
    """
    chosen = [row for row in rows if len(row.expected) == 1 and row.wrong]
    if not chosen:
        raise BadInput("no row has one right call and `wrong` ones; function_choice needs both")
    texts = [
        [call_text(*one) for one in (first_accepted(row.expected[0]), *row.wrong)] for row in chosen
    ]
    pairs = [
        (plain_prompt(row), f" {text}")
        for row, calls in zip(chosen, texts, strict=True)
        for text in calls
    ]
    found = iter(loglikelihood(backend, pairs, progress))
    right, losses = [], []
    for calls in texts:
        scores = [(one := next(found)).log_probability / one.tokens for _ in calls]
        right.append(scores.index(max(scores)) == 0)
        losses.append(-scores[0])
    return {"accuracy": share_of(right), "call_perplexity": perplexity_of(losses)}


def plain_prompt(row: FunctionRow) -> str:
    """The functions and the request as a text to continue with a call."""
    schemas = "\n".join(json.dumps(tool["function"], sort_keys=True) for tool in row.tools)
    return f"Functions:\n{schemas}\n\nRequest: {row.messages[-1]['content']}\nCall:"


def call_text(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as JSON."""
    return json.dumps({"name": name, "arguments": arguments})


def matches(calls: Sequence[Call], row: FunctionRow) -> bool:
    """Whether the calls are the right ones.

    Without right calls, whether none is made; of a row of relevance, whether any is.
    """
    if row.any_call:
        return bool(calls)
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in row.tools}
    return calls_match(calls, row.expected, schemas)


def _schema(schema: Any) -> Any:
    if isinstance(schema, dict):
        found = {key: _schema(value) for key, value in schema.items()}
        if isinstance(kind := found.get("type"), str):
            found["type"] = _TYPES.get(kind, kind)
        return found
    return [_schema(one) for one in schema] if isinstance(schema, list) else schema


def _possible_answers(path: Path) -> dict[str, list[Any]]:
    answers = path.parent / "possible_answer" / path.name
    if not answers.is_file():
        return {}
    return {str(row.get("id")): row.get("ground_truth", []) for _, row in read_jsonl(answers)}
