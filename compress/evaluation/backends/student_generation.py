"""Greedy answers of a Hugging Face model to conversations, a batch at a time."""

import logging
from collections.abc import Sequence
from typing import Protocol

import torch

from edgelm.compress.data.chat_template import render_chat
from edgelm.compress.evaluation.backend import Answer, Call, Conversation, Progress
from edgelm.compress.model import Model, Tokenizer, spec_of
from edgelm.compress.synthesis.sampling import Sampling, sample, stop_ids
from edgelm.errors import BadInput

_log = logging.getLogger(__name__)
BATCH = 8
_LARGE_BATCH = 24  # where its cache is small: each step reads all weights once, whatever the batch
_LARGE_BATCH_BYTES = 1 << 30


class ToolFormat(Protocol):
    """How functions are put into a prompt, and how a model's calls are read.

    The runtime has both (edgelm.bench.evaluation passes them); this package does not import it.
    """

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Token ids of a conversation that offers tools, up to where the answer begins."""

    def read(self, ids: Sequence[int], conversation: Conversation) -> tuple[str, tuple[Call, ...]]:
        """The text and the calls of an answer's token ids."""


def respond(
    model: Model,
    tokenizer: Tokenizer,
    conversations: Sequence[Conversation],
    max_new_tokens: int,
    batch_size: int | None,
    progress: Progress,
    tools: ToolFormat | None = None,
) -> list[Answer]:
    """Answers in the conversations' order; similar lengths share a batch, longest first.

    Without a batch size it is 8, or 24 where the cache of 24 answers takes at most 1 GiB.

    Raises:
        BadInput: a prompt that does not fit into the context.
    """
    ids = [prompt_ids(tokenizer, one, tools) for one in conversations]
    room = model.config.max_position_embeddings
    order = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
    if ids and len(ids[order[0]]) >= room:
        raise BadInput(
            f"a prompt has {len(ids[order[0]])} tokens, the model's context {room}; remove longer "
            "prompts"
        )
    if batch_size is None:
        batch_size = _batch_size(model, len(ids[order[0]]) + max_new_tokens) if ids else BATCH
    answers: dict[int, Answer] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        written = sample(
            model,
            [ids[index] for index in batch],
            Sampling(
                temperature=0,
                max_new_tokens=min(max_new_tokens, room - len(ids[batch[0]])),
                batch_size=batch_size,
            ),
            torch.Generator(model.device),  # unused at temperature 0
            stop=stop_ids(model, tokenizer),
            vocab_size=len(tokenizer),
        )
        for index, one in zip(batch, written, strict=True):
            answers[index] = _answer(tokenizer, one.ids, one.ended, conversations[index], tools)
        progress(start + len(batch), len(order))
    truncated = sum(not answer.ended for answer in answers.values())
    if truncated:
        _log.warning("%d of %d answers reached the limit of new tokens", truncated, len(order))
    return [answers[index] for index in range(len(ids))]


def _batch_size(model: Model, tokens: int) -> int:
    """How many answers to generate at a time, each of at most `tokens` with its prompt."""
    per_token = spec_of(model).kv_bytes_per_token(model.dtype.itemsize)
    return _LARGE_BATCH if _LARGE_BATCH * tokens * per_token <= _LARGE_BATCH_BYTES else BATCH


def prompt_ids(
    tokenizer: Tokenizer, conversation: Conversation, tools: ToolFormat | None
) -> list[int]:
    """Token ids of a conversation in the chat template, up to where the answer begins.

    Raises:
        BadInput: no chat template, one that rejects the conversation, or a task that needs the
            runtime.
    """
    if not tokenizer.chat_template:
        raise BadInput(
            "answers need a chat template, and the tokenizer has none; evaluate an "
            "instruction-tuned model"
        )
    if conversation.tools:
        if tools is None:
            raise BadInput(
                "the calls of functions are read by the runtime, which edgelm.compress does not "
                "use; run this task with edge-eval, or a task by likelihood in a recipe"
            )
        return tools.prompt_ids(conversation)
    text = render_chat(tokenizer, conversation.messages, "a conversation of the task", answers=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _answer(
    tokenizer: Tokenizer,
    ids: Sequence[int],
    ended: bool,
    conversation: Conversation,
    tools: ToolFormat | None,
) -> Answer:
    if conversation.tools and tools is not None:
        text, calls = tools.read(ids, conversation)
        return Answer(text, len(ids), ended, calls)
    return Answer(tokenizer.decode(ids, skip_special_tokens=True), len(ids), ended)
