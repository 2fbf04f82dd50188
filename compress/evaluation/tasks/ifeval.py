"""IFEval: how often a model follows verifiable instructions (arXiv 2311.07911).

Answers are generated greedily for each prompt, through the tokenizer's chat template. The strict
score checks the answer as it is; the loose score also accepts an answer that follows the
instruction without its first line, its last line or both, each with and without Markdown asterisks
("Sure, here it is:" is tolerated). Both are given per prompt (all instructions followed) and per
instruction.
"""

import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_type_hints

import msgspec
import torch

from edgelm.compress.evaluation.tasks.ifeval_checks import CHECKS, NEED_LANGUAGE
from edgelm.compress.evaluation.tasks.language import require_language_detection
from edgelm.compress.evaluation.tasks.scores import Score, share
from edgelm.compress.model import Model, Tokenizer
from edgelm.compress.synthesis.sampling import Sampling, sample, stop_ids
from edgelm.errors import BadInput, UnknownName

_log = logging.getLogger(__name__)
MAX_NEW_TOKENS = 1280  # as in lm-evaluation-harness
_BATCH = 8
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
    model: Model,
    tokenizer: Tokenizer,
    rows: Sequence[Mapping[str, Any]],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = _BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Score]:
    """`prompt_strict`, `prompt_loose`, `instruction_strict`, `instruction_loose`: shares followed.

    Args:
        model: in eval mode.
        tokenizer: the model's, with a chat template.
        rows: of the data set: `prompt`, `instruction_id_list`, `kwargs`, and `key` to name a row.
        max_new_tokens: limit of an answer; lower where the context ends before.
        batch_size: answers generated at a time.
        progress: called with the number of answers so far and in total.

    Raises:
        BadInput: a row of another form; no chat template; a prompt that fills the context.
        UnknownName: unknown instruction.
        MissingPackage: an instruction is about language, and langdetect is not installed.
    """
    prompts = [read_row(row, number) for number, row in enumerate(rows, 1)]
    if not prompts:
        raise BadInput("no prompts with instructions to evaluate")
    if any(NEED_LANGUAGE & set(row["instruction_id_list"]) for row in rows):
        require_language_detection()
    texts = [prompt.prompt for prompt in prompts]
    answers = respond(model, tokenizer, texts, max_new_tokens, batch_size, progress)
    return scores([evaluate_answer(*pair) for pair in zip(prompts, answers, strict=True)])


def read_row(row: Mapping[str, Any], number: int) -> InstructedPrompt:
    """Check a row of the data set and bind its instructions' arguments."""
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


def scores(results: Sequence[InstructionResult]) -> dict[str, Score]:
    """Shares of prompts with all instructions followed, and of instructions."""
    found = {}
    for mode in ("strict", "loose"):
        followed = [getattr(result, mode) for result in results]
        found[f"prompt_{mode}"] = share([all(one) for one in followed])
        found[f"instruction_{mode}"] = _share_of_instructions(followed)
    return found


def respond(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int = _BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Greedy answers, in the prompts' order; similar lengths share a batch, longest first."""
    ids = [_prompt_ids(tokenizer, prompt) for prompt in prompts]
    room = model.config.max_position_embeddings
    order = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
    if len(ids[order[0]]) >= room:
        raise BadInput(
            f"a prompt has {len(ids[order[0]])} tokens, the model's context {room}; remove longer "
            "prompts"
        )
    answers, truncated = [""] * len(ids), 0
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        limit = min(max_new_tokens, room - len(ids[batch[0]]))
        written = sample(
            model,
            [ids[index] for index in batch],
            Sampling(temperature=0, max_new_tokens=limit, batch_size=batch_size),
            torch.Generator(model.device),  # unused at temperature 0
            stop=stop_ids(model, tokenizer),
            vocab_size=len(tokenizer),
        )
        for index, one in zip(batch, written, strict=True):
            answers[index] = tokenizer.decode(one.ids, skip_special_tokens=True)
            truncated += not one.ended
        if progress:
            progress(start + len(batch), len(order))
    if truncated:
        _log.warning("%d of %d answers reached the limit of new tokens", truncated, len(order))
    return answers


def _prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    if not tokenizer.chat_template:
        raise BadInput(
            "ifeval needs a chat template, and the tokenizer has none; evaluate an "
            "instruction-tuned model"
        )
    message = {"role": "user", "content": prompt}
    text = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


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


def _share_of_instructions(followed: Sequence[Sequence[bool]]) -> Score:
    """The share over all prompts' instructions.

    Instructions of one prompt are correlated, so the error is that of a ratio of sums over
    prompts, not that of independent trials.
    """
    count = sum(map(len, followed))
    value = sum(map(sum, followed)) / count
    squares = sum((sum(one) - value * len(one)) ** 2 for one in followed)
    spread = squares * len(followed) / max(1, len(followed) - 1)
    return Score(value, math.sqrt(spread) / count, count, "higher")
