"""IFEval: how often a model follows instructions that a program can check (arXiv 2311.07911).

Answers are the greedy ones to each prompt, through the tokenizer's chat template. A strict score
takes the answer as it is; a loose one is also content if the answer follows the instruction
without its first line, its last line or both, each with and without Markdown's asterisks: "Sure,
here it is:" is forgiven. Both count prompts whose instructions are all followed, and instructions.
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
MAX_NEW_TOKENS = 1280  # as lm-evaluation-harness has it
_BATCH = 8
Check = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Instructed:
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
        tokenizer: its own, with a chat template.
        rows: of the data set: `prompt`, `instruction_id_list`, `kwargs`, and `key` to name a row.
        max_new_tokens: at which an answer is cut off; less where the context ends before.
        batch_size: answers written at a time.
        progress: called with the number of answers, and of all.

    Raises:
        BadInput: a row of another form; no chat template; a prompt that fills the context.
        UnknownName: an instruction that there is not.
        MissingPackage: an instruction is about language, and langdetect is not installed.
    """
    prompts = [read_row(row, number) for number, row in enumerate(rows, 1)]
    if not prompts:
        raise BadInput("no prompts with instructions to evaluate")
    if any(NEED_LANGUAGE & set(row["instruction_id_list"]) for row in rows):
        require_language_detection()
    texts = [prompt.prompt for prompt in prompts]
    answers = respond(model, tokenizer, texts, max_new_tokens, batch_size, progress)
    return scores([judge(*pair) for pair in zip(prompts, answers, strict=True)])


def read_row(row: Mapping[str, Any], number: int) -> Instructed:
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
    return Instructed(row["prompt"], tuple(_bound(where, *pair) for pair in pairs))


def judge(prompt: Instructed, answer: str) -> InstructionResult:
    """Check an answer; an empty one follows nothing."""
    variants = _variants(answer)
    return InstructionResult(
        strict=tuple(bool(answer.strip()) and check(answer) for check in prompt.checks),
        loose=tuple(any(map(check, variants)) for check in prompt.checks),
    )


def scores(judgements: Sequence[InstructionResult]) -> dict[str, Score]:
    """Shares of prompts with all instructions followed, and of instructions."""
    found = {}
    for way in ("strict", "loose"):
        followed = [getattr(judgement, way) for judgement in judgements]
        found[f"prompt_{way}"] = share([all(one) for one in followed])
        found[f"instruction_{way}"] = _share_of_instructions(followed)
    return found


def respond(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int = _BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Greedy answers, in the prompts' order; like lengths are written together, longest first."""
    ids = [_prompt_ids(tokenizer, prompt) for prompt in prompts]
    room = model.config.max_position_embeddings
    order = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
    if len(ids[order[0]]) >= room:
        raise BadInput(
            f"a prompt has {len(ids[order[0]])} tokens, the model's context {room}; leave out "
            "longer prompts"
        )
    answers, cut = [""] * len(ids), 0
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        most = min(max_new_tokens, room - len(ids[batch[0]]))
        written = sample(
            model,
            [ids[index] for index in batch],
            Sampling(temperature=0, max_new_tokens=most, batch_size=batch_size),
            torch.Generator(model.device),  # nothing is drawn at temperature 0
            stop=stop_ids(model, tokenizer),
            vocab_size=len(tokenizer),
        )
        for index, one in zip(batch, written, strict=True):
            answers[index] = tokenizer.decode(one.ids, skip_special_tokens=True)
            cut += not one.ended
        if progress:
            progress(start + len(batch), len(order))
    if cut:
        _log.warning("%d of %d answers reached the limit of new tokens", cut, len(order))
    return answers


def _prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    if not tokenizer.chat_template:
        raise BadInput(
            "ifeval asks questions, and the tokenizer has no chat template to render them; "
            "evaluate an instruction-tuned model"
        )
    message = {"role": "user", "content": prompt}
    text = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _bound(where: str, name: Any, arguments: Any) -> Check:
    check = CHECKS.get(name) if isinstance(name, str) else None
    if check is None:
        raise UnknownName(f"{where}: unknown instruction {name!r}; known: {', '.join(CHECKS)}")
    wanted = list(inspect.signature(check).parameters)[1:]
    # Some copies of the data set hold all arguments of all instructions, null where they are none.
    given = {
        key: value
        for key, value in (arguments.items() if isinstance(arguments, dict) else ())
        if value is not None
    }
    if not isinstance(arguments, dict) or set(given) != set(wanted):
        raise BadInput(
            f"{where}: {name} takes {', '.join(wanted) or 'no arguments'}; found "
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
    """What a loose check looks at, without what is empty."""
    lines = answer.split("\n")
    parts = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    variants = [variant for text in (answer, *parts) for variant in (text, text.replace("*", ""))]
    return [variant for variant in variants if variant.strip()]


def _share_of_instructions(followed: Sequence[Sequence[bool]]) -> Score:
    """The share over all prompts' instructions.

    Instructions of one prompt are followed or not together, so that the error is that of a ratio
    of sums over prompts, not that of independent trials.
    """
    count = sum(map(len, followed))
    value = sum(map(sum, followed)) / count
    squares = sum((sum(one) - value * len(one)) ** 2 for one in followed)
    spread = squares * len(followed) / max(1, len(followed) - 1)
    return Score(value, math.sqrt(spread) / count, count, "higher")
