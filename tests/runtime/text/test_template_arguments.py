"""What a chat template is not given: the messages again, and a say over control tokens."""

from typing import Any

import pytest

from edgelm.errors import BadInput
from edgelm.runtime import LanguageModel

MESSAGES: Any = [{"role": "user", "content": "Why?"}]
REFUSED: list[tuple[Any, str]] = [
    ({"messages": []}, "may not have messages"),
    ({"allow_special": True}, "may not have allow_special"),
    ({"self": 1}, "may not have self"),
    ("thinking", "expected values by name"),
    ({1: 2}, "expected values by name"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_refused(lm: LanguageModel, arguments: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        lm.generate(MESSAGES, max_tokens=1, chat_template_kwargs=arguments)


def test_a_chat_is_given_none_of_them_either(lm: LanguageModel) -> None:
    with pytest.raises(BadInput, match="may not have allow_special"):
        lm.chat(allow_special=True)


def test_others_are_given(lm: LanguageModel) -> None:
    reply = lm.generate(MESSAGES, max_tokens=1, chat_template_kwargs={"enable_thinking": False})
    assert reply.usage.completion_tokens == 1
