"""Conversations that a chat template rejects are named with their file and line."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgelm.compress.data.chat_template import render_chat
from edgelm.compress.data.documents import read_documents
from edgelm.compress.data.packing import pack
from edgelm.compress.evaluation.backend import Conversation
from edgelm.compress.evaluation.backends.student_generation import prompt_ids
from edgelm.errors import BadInput
from tests.checkpoints.tiny_chat import TEMPLATE
from tests.compress.tokenizers import tiny_fast_tokenizer

TALK = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "Because."},
]
# As in Gemma 2's.
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
)


@pytest.fixture
def tokenizer() -> Any:
    found = tiny_fast_tokenizer()
    found.chat_template = NO_SYSTEM + TEMPLATE
    return found


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_data_names_the_line(tokenizer: Any, tmp_path: Path, processes: int) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps({"messages": one}) + "\n" for one in (TALK[1:], TALK)))
    message = (
        r"chat\.jsonl:2: the chat template rejects the conversation \(system, user, assistant\): "
        "System role not supported"
    )
    with pytest.raises(BadInput, match=message):
        pack(read_documents(path), tokenizer, 8, tmp_path / "t.npy", processes=processes)


def test_a_task_says_so(tokenizer: Any) -> None:
    with pytest.raises(BadInput, match=r"a conversation of the task: .* \(system, user\): System"):
        prompt_ids(tokenizer, Conversation(tuple(TALK[:2])), None)


def test_a_template_that_adds_a_text_to_nothing(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ 'a' + m.name }}{% endfor %}"
    with pytest.raises(BadInput, match=r"here: the chat template rejects .* \(user, user"):
        render_chat(tokenizer, [{"role": "user", "content": "Why?", "name": None}] * 9, "here")


def test_what_is_accepted_is_the_templates_own(tokenizer: Any) -> None:
    text = render_chat(tokenizer, TALK[1:], "here")
    assert text == "<s>user: Why?<|end|><s>assistant: Because.<|end|>"
