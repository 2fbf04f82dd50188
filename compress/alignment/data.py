"""Examples as rows for TRL, each rendered once beforehand.

TRL tokenizes the rows itself; rendering them first reports, with file and line, what would stop it
halfway or be truncated silently: a conversation that the template rejects, answers beyond
`max_length`, tokens without an embedding.

Where tools are offered or called, rows hold tokens and labels instead: a table of messages would
give every call the arguments of all others, with nulls for values.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgelm.compress.data.chat_template import render_chat
from edgelm.compress.data.conversations import Example
from edgelm.compress.data.messages import Messages
from edgelm.compress.model import Tokenizer
from edgelm.errors import BadInput


@dataclass(frozen=True)
class Rows:
    """The rows for TRL.

    every_turn: the rows are whole conversations, and the loss covers all assistant messages.
    truncated: examples cut at `max_length`; dropped: examples without any room for the answer.
    """

    rows: list[dict[str, Any]]
    every_turn: bool
    truncated: int
    dropped: int


def make_rows(
    examples: Sequence[Example], tokenizer: Tokenizer, *, max_length: int, vocab_size: int
) -> Rows:
    """Rows from examples, without those whose prompt alone fills `max_length`.

    Raises:
        BadInput: the chat template rejects a conversation, a token has no embedding, or no row
            remains.
    """
    tools = any(example.has_tools for example in examples)
    every_turn = all(example.every_turn for example in examples) and not tools
    whole = every_turn and masks_answers(tokenizer)
    if not whole:
        examples = [turn for example in examples for turn in _turns(example)]
    kept, truncated = [], 0
    for example in examples:
        prompt, full = _lengths(example, tokenizer, vocab_size)
        if prompt < max_length:
            kept.append(example)
            truncated += full > max_length
    if not kept:
        raise BadInput(
            f"all {len(examples)} prompts fill max_length ({max_length} tokens) alone; raise it"
        )
    if tools:
        rows = [_labeled(example, tokenizer) for example in kept]
    else:
        rows = [_conversation(example) if whole else _sides(example) for example in kept]
    return Rows(rows, whole, truncated, len(examples) - len(kept))


def masks_answers(tokenizer: Tokenizer) -> bool:
    """Whether the chat template marks the assistant's tokens, including the end of turn.

    It does with `{% generation %}` marks, or if TRL knows the template and has a marked copy.
    """
    from trl.chat_template_utils import (
        get_training_chat_template,
        is_chat_template_stop_token_trained,
    )

    if not tokenizer.chat_template:
        return False
    try:
        template = get_training_chat_template(processing_class=tokenizer)
    except ValueError:  # unknown to TRL, or its turns depend on later ones
        return False
    return bool(is_chat_template_stop_token_trained(tokenizer, chat_template=template))


def _turns(example: Example) -> list[Example]:
    """One example for each of the assistant's messages, after all messages before it."""
    if not example.every_turn or isinstance(example.prompt, str):
        return [example]
    messages = example.prompt
    earlier = [
        replace(example, prompt=messages[:index], answer=(message,), every_turn=False)
        for index, message in enumerate(messages)
        if message["role"] == "assistant" and index
    ]
    return [*earlier, replace(example, every_turn=False)]


def _lengths(example: Example, tokenizer: Tokenizer, vocab_size: int) -> tuple[int, int]:
    """Tokens of the prompt, and of the prompt with its longest answer."""
    given = example.prompt
    if example.every_turn and not isinstance(given, str):
        first = next((i for i, m in enumerate(given) if m["role"] == "assistant"), len(given))
        given = given[:first]
    tools = example.tools
    prompt = _ids(example.where, given, tokenizer, tools, prompt=True) if given else []
    full = 0
    for answer in (example.answer, example.rejected):
        if answer is None:
            continue
        ids = _ids(example.where, example.prompt + answer, tokenizer, tools)  # type: ignore[operator]
        if max(ids) >= vocab_size:
            raise BadInput(
                f"{example.where}: the tokenizer produces token {max(ids)}, the model's "
                f"vocabulary has {vocab_size}: tokenizer and model do not match"
            )
        full = max(full, len(ids))
    return len(prompt), full


def _ids(
    where: str,
    content: Messages | str,
    tokenizer: Tokenizer,
    tools: Sequence[dict[str, Any]] = (),
    *,
    prompt: bool = False,
) -> list[int]:
    if isinstance(content, str):
        end = "" if prompt else tokenizer.eos_token
        return tokenizer(content + end)["input_ids"]  # type: ignore[no-any-return]
    text = render_chat(tokenizer, content, where, tools=tools, answers=prompt)
    return tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[no-any-return]


def _labeled(example: Example, tokenizer: Tokenizer) -> dict[str, Any]:
    """Tokens of prompt and answer; labels of the answer's, -100 of the prompt's."""
    prompt = _ids(example.where, example.prompt, tokenizer, example.tools, prompt=True)
    both = example.prompt + example.answer  # type: ignore[operator]
    ids = _ids(example.where, both, tokenizer, example.tools)
    shared = zip(prompt, ids, strict=False)
    given = next((i for i, (one, other) in enumerate(shared) if one != other), len(prompt))
    return {"input_ids": ids, "labels": [-100] * given + ids[given:]}


def _conversation(example: Example) -> dict[str, Any]:
    return {"messages": [*example.prompt, *example.answer]}


def _sides(example: Example) -> dict[str, Any]:
    prompt, answer = _plain(example.prompt), _plain(example.answer)
    if example.rejected is None:
        return {"prompt": prompt, "completion": answer}
    return {"prompt": prompt, "chosen": answer, "rejected": _plain(example.rejected)}


def _plain(side: Messages | str) -> list[dict[str, Any]] | str:
    return side if isinstance(side, str) else list(side)
