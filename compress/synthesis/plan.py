"""The prompts of each batch: a beginning of sequence, words, or questions."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.compress.data.chat_template import render_chat
from edgelm.compress.data.conversations import ChatPrompt, read_prompts
from edgelm.compress.data.messages import Messages
from edgelm.compress.model import Model, Tokenizer
from edgelm.compress.synthesis.sampling import Sampling
from edgelm.errors import BadInput


@dataclass(frozen=True, slots=True)
class FreeText:
    """Free text, sampled without a question.

    documents: number of texts.
    starts: words to begin with, one drawn per text; by default the beginning of sequence.
    attempts: texts to sample per requested text, before fewer are accepted.
    """

    documents: int
    starts: tuple[str, ...] = ()
    attempts: int = 4


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers to questions: a JSONL file with `prompt` or `messages`, and how many for each."""

    prompts: Path
    per_prompt: int = 1


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids that the teacher continues, and the conversation of a question."""

    ids: tuple[int, ...]
    messages: Messages = ()
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """The prompts of each batch, a function of its number alone.

    batches: at most. target: number of texts. too_long: prompts left out for their length.
    """

    batch: Callable[[int], list[Prompt]]
    batches: int
    target: int
    too_long: int = 0


def make_plan(
    kind: FreeText | Answers, sampling: Sampling, model: Model, tokenizer: Tokenizer
) -> Plan:
    """The prompts of all batches.

    Raises:
        BadInput: settings out of range, prompts that cannot be read, or none that fits.
    """
    for name in ("documents", "attempts", "per_prompt"):
        if getattr(kind, name, 1) < 1:
            raise BadInput(f"{name} is {getattr(kind, name)}, expected 1 or more")
    if _room(model, sampling) < 1:
        raise BadInput(
            f"max_new_tokens is {sampling.max_new_tokens}, the model's context is "
            f"{model.config.max_position_embeddings} tokens with the prompt; lower it"
        )
    if isinstance(kind, FreeText):
        return _plan_free_text(kind, sampling, model, tokenizer)
    return _plan_answers(kind, sampling, model, tokenizer)


def vocabulary_words(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Words of three or more letters that are one token; random ones give varied texts."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    # Byte-level and SentencePiece vocabularies mark a word's beginning with these two.
    first = [index for index, token in enumerate(tokens) if token and token[0] in "\u0120\u2581"]
    words = {tokenizer.decode([index]).strip() for index in first}
    return tuple(sorted(word for word in words if len(word) >= 3 and word.isalpha()))


def _plan_free_text(kind: FreeText, sampling: Sampling, model: Model, tokenizer: Tokenizer) -> Plan:
    starts = [Prompt(tuple(tokenizer(text)["input_ids"])) for text in kind.starts]
    usable = [start for start in starts if 0 < len(start.ids) <= _room(model, sampling)]
    if starts and not usable:
        raise BadInput(
            f"none of {len(starts)} starts fits the context together with "
            f"{sampling.max_new_tokens} new tokens; lower max_new_tokens or use shorter starts"
        )
    usable = usable or [Prompt((_beginning(model, tokenizer),))]

    def batch(index: int) -> list[Prompt]:
        return random.Random(f"{sampling.seed} {index}").choices(usable, k=sampling.batch_size)

    batches = -(-kind.documents * kind.attempts // sampling.batch_size)
    return Plan(batch, batches, kind.documents, len(starts) - len(usable) if starts else 0)


def _beginning(model: Model, tokenizer: Tokenizer) -> int:
    # Models without a beginning-of-sequence token (Qwen) saw documents start after an end token.
    for config in (tokenizer, model.config):
        for name in ("bos_token_id", "eos_token_id"):
            token = getattr(config, name, None)
            if isinstance(token, int):
                return token
    raise BadInput(
        "neither the tokenizer nor config.json defines a beginning- or end-of-sequence token; "
        "give `prompts`, or from Python `starts`, e.g. words of the language"
    )


def _plan_answers(kind: Answers, sampling: Sampling, model: Model, tokenizer: Tokenizer) -> Plan:
    if not tokenizer.chat_template:
        raise BadInput(
            "the tokenizer has no chat template, which answers to prompts need; remove `prompts`, "
            "or use an instruct model as teacher"
        )
    prompts = read_prompts(kind.prompts)
    questions = [
        Prompt(prompt_tokens(tokenizer, prompt), prompt.messages, prompt.tools)
        for prompt in prompts
    ]
    fitting = [one for one in questions if len(one.ids) <= _room(model, sampling)]
    if not fitting:
        raise BadInput(
            f"none of {len(questions)} prompts fits the context together with "
            f"{sampling.max_new_tokens} new tokens; lower max_new_tokens"
        )
    queue = [one for one in fitting for _ in range(kind.per_prompt)]
    size = sampling.batch_size

    def batch(index: int) -> list[Prompt]:
        return queue[index * size : (index + 1) * size]

    return Plan(batch, -(-len(queue) // size), len(queue), len(questions) - len(fitting))


def prompt_tokens(tokenizer: Tokenizer, prompt: ChatPrompt) -> tuple[int, ...]:
    """Token ids of a question through the chat template, up to where its answer begins."""
    text = render_chat(tokenizer, prompt.messages, prompt.where, tools=prompt.tools, answers=True)
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _room(model: Model, sampling: Sampling) -> int:
    return int(model.config.max_position_embeddings) - sampling.max_new_tokens
