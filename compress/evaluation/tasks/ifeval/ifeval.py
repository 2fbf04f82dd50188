"""IFEval: how often a model follows verifiable instructions (arXiv 2311.07911).

Answers are generated greedily for each prompt, through the chat template. The strict
score checks the answer as it is; the loose score also accepts an answer that follows the
instruction without its first line, its last line or both, each with and without Markdown asterisks
("Sure, here it is:" is tolerated). Both are given per prompt (all instructions followed) and per
instruction.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_type_hints

import msgspec

from edgelm.compress.evaluation.backend import (
    MAX_NEW_TOKENS,
    Backend,
    Conversation,
    Progress,
    no_progress,
)
from edgelm.compress.evaluation.metrics import Metric, share_of, share_of_parts
from edgelm.compress.evaluation.tasks.ifeval.checks import CHECKS, NEED_LANGUAGE
from edgelm.compress.evaluation.tasks.ifeval.language import require_language_detection
from edgelm.errors import BadInput, UnknownName

Check = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class InstructedPrompt:
    """A prompt and the checks of its instructions, arguments included."""

    prompt: str
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class InstructionResult:
    """Which instructions of one prompt were followed."""

    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


def ifeval(
    backend: Backend,
    rows: Sequence[Mapping[str, Any]],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: Progress = no_progress,
) -> dict[str, Metric]:
    """`prompt_strict`, `prompt_loose`, `instruction_strict`, `instruction_loose`: shares followed.

    Args:
        backend: a model with a chat template.
        rows: of the data set: `prompt`, `instruction_id_list`, `kwargs`, and `key` to name a row.
        max_new_tokens: limit of an answer; lower where the context ends before.
        progress: called with the number of answers so far and in total.

    Raises:
        BadInput: a row of another form; no chat template; a prompt that fills the context.
        UnknownName: unknown instruction.
        MissingPackage: an instruction is about language, and langdetect is not installed.
    """
    prompts = [read_row(row, number) for number, row in enumerate(rows, 1)]
    if not prompts:
        raise BadInput(
            "ifeval has no rows; expected one JSON object per line with `prompt`, "
            "`instruction_id_list` and `kwargs`"
        )
    if any(NEED_LANGUAGE & set(row["instruction_id_list"]) for row in rows):
        require_language_detection()
    asked = [Conversation.of_user(prompt.prompt) for prompt in prompts]
    answers = backend.generate(asked, max_new_tokens, progress)
    pairs = zip(prompts, answers, strict=True)
    return scores([evaluate_answer(prompt, answer.text) for prompt, answer in pairs])


def read_row(row: Mapping[str, Any], number: int) -> InstructedPrompt:
    """Check a row of the data set and bind its instructions' arguments.

    Raises:
        BadInput: fields that are missing or of a wrong type.
        UnknownName: an unknown instruction.
    """
    where = f"prompt {number}" + (f" (key {row['key']})" if "key" in row else "")
    names, arguments = row.get("instruction_id_list"), row.get("kwargs")
    if not isinstance(row.get("prompt"), str) or not isinstance(names, list) or not names:
        raise BadInput(
            f"{where}: expected `prompt` (a text), `instruction_id_list` and `kwargs` (lists); "
            f"found {', '.join(row) or 'none'}"
        )
    if not isinstance(arguments, list) or len(arguments) != len(names):
        raise BadInput(
            f"{where}: expected `kwargs` to be a list of {len(names)} objects, one for each "
            f"instruction, got {arguments!r}"
        )
    pairs = zip(names, arguments, strict=True)
    return InstructedPrompt(row["prompt"], tuple(_bound(where, *pair) for pair in pairs))


def evaluate_answer(prompt: InstructedPrompt, answer: str) -> InstructionResult:
    """Check an answer; an empty one follows no instruction."""
    variants = _variants(answer)
    return InstructionResult(
        strict=tuple(bool(answer.strip()) and check(answer) for check in prompt.checks),
        loose=tuple(any(map(check, variants)) for check in prompt.checks),
    )


def scores(results: Sequence[InstructionResult]) -> dict[str, Metric]:
    """Shares of prompts with all instructions followed, and of instructions.

    Instructions of one prompt are correlated, so prompts are the items of both.
    """
    found = {}
    for mode in ("strict", "loose"):
        followed = [getattr(result, mode) for result in results]
        found[f"prompt_{mode}"] = share_of([all(one) for one in followed])
        found[f"instruction_{mode}"] = share_of_parts(followed)
    return found


def _bound(where: str, name: Any, arguments: Any) -> Check:
    check = CHECKS.get(name) if isinstance(name, str) else None
    if check is None:
        raise UnknownName(f"{where}: unknown instruction {name!r}; known: {', '.join(CHECKS)}")
    expected = list(inspect.signature(check).parameters)[1:]
    # Some copies of the data set list the arguments of all instructions, null where unused.
    given = {
        key: value
        for key, value in (arguments.items() if isinstance(arguments, dict) else ())
        if value is not None
    }
    if not isinstance(arguments, dict) or set(given) != set(expected):
        raise BadInput(
            f"{where}: {name} takes {', '.join(expected) or 'no arguments'}; found "
            f"{', '.join(given) or 'none'}"
        )
    types = get_type_hints(check)
    for key, value in given.items():
        try:
            msgspec.convert(value, types[key])
        except msgspec.ValidationError as error:
            raise BadInput(f"{where}: `{key}` of {name} is {value!r}: {error}") from None
    return partial(check, **given)


def _variants(answer: str) -> list[str]:
    """The non-empty variants that a loose check accepts."""
    lines = answer.split("\n")
    parts = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    variants = [variant for text in (answer, *parts) for variant in (text, text.replace("*", ""))]
    return [variant for variant in variants if variant.strip()]
