"""Chat templates: what they may do, what they give, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from edgelm.errors import BadBundle, BadInput
from edgelm.runtime.text.chat import ChatTemplate, Message
from tests.checkpoints.tiny_chat import tiny_tokenizer

HELLO: list[Message] = [{"role": "user", "content": "hello"}]
CONVERSATION: list[Message] = [
    {"role": "system", "content": "Be brief & <b>bold</b>."},
    {"role": "user", "content": "Why is the sky blue?"},
    {"role": "assistant", "content": "  Scattering.\n"},
    {"role": "user", "content": 'And "red"?'},
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def template(folder: Path, text: str) -> ChatTemplate:
    (folder / "chat_template.jinja").write_text(text)
    return ChatTemplate(folder / "chat_template.jinja", special_tokens=TOKENS)


# What published templates are made of.
SNIPPETS = {
    "loop": "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m['content'] }}\n{% endfor %}",
    "white space": "{% for m in messages %}\n    {% if loop.first %}\n  x\n    {% endif %}\n"
    "    {{- m.content | trim -}}\n{% endfor %}\n",
    "generation prompt": "{{ messages[-1].content }}{% if add_generation_prompt %}>{% endif %}",
    "tojson": "{{ messages | tojson }} {{ messages[0] | tojson(indent=2) }}",
    "break": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}"
    "{{ m.content }}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% endfor %}{{ ns.n }}{{ eos_token }}",
    "undefined": "{% if tools %}tools{% endif %}{{ nothing }}{% if x is defined %}x{% endif %}",
    "tools are none": "{% if tools is none and documents is none %}plain{% else %}tools{% endif %}",
    "generation block": "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% endif %}{% endfor %}",
    "string methods": "{{ messages[0].content.split(' ')[0].upper() }}{{ 'a' in 'abc' }}",
    "macro": "{% macro turn(m) %}{{ m.role }}:{{ m.content }};{% endmacro %}"
    "{% for m in messages %}{{ turn(m) }}{% endfor %}",
}


@pytest.mark.parametrize("text", SNIPPETS.values(), ids=SNIPPETS)
def test_renders_as_transformers_does(tmp_path: Path, text: str) -> None:
    theirs: Any = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer(), **TOKENS)
    expected = theirs.apply_chat_template(
        CONVERSATION, chat_template=text, tokenize=False, add_generation_prompt=True
    )
    assert template(tmp_path, text).render(CONVERSATION) == expected


@pytest.fixture(scope="module")
def smollm2(smollm2_tokenizer: Path) -> Any:
    return AutoTokenizer.from_pretrained(smollm2_tokenizer)


@pytest.mark.parametrize("messages", [HELLO, CONVERSATION], ids=["no system", "system"])
def test_smollm2_template(smollm2: Any, tmp_path: Path, messages: list[Message]) -> None:
    expected = smollm2.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert template(tmp_path, smollm2.chat_template).render(messages) == expected
    assert expected.endswith("<|im_start|>assistant\n")


def test_strftime_now_gives_a_date(tmp_path: Path) -> None:
    text = template(tmp_path, "{{ strftime_now('%Y') }}").render(HELLO)
    assert text.isdigit()
    assert len(text) == 4


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ strftime_now.__code__.co_consts }}",
        "{{ messages.append('x') }}",
        "{{ messages[0].update({'role': 'system'}) }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_the_sandbox_holds(tmp_path: Path, attack: str) -> None:
    with pytest.raises(BadInput, match="the chat template rejects this conversation"):
        template(tmp_path, attack).render(HELLO)


def test_a_dunder_alone_renders_as_nothing(tmp_path: Path) -> None:
    assert template(tmp_path, "[{{ ''.__class__ }}]").render(HELLO) == "[]"


def test_messages_are_not_changed(tmp_path: Path) -> None:
    before = json.dumps(CONVERSATION)
    template(tmp_path, SNIPPETS["loop"]).render(CONVERSATION)
    assert json.dumps(CONVERSATION) == before


ROLES = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.mark.parametrize(
    ("source", "role"),
    [(ROLES, "system"), (ROLES + "{# developer: as gpt-oss has it #}", "developer")],
    ids=["unknown to the template", "known"],
)
def test_a_developer_message(tmp_path: Path, source: str, role: str) -> None:
    messages = [Message(role="developer", content="Be brief."), *HELLO]
    text = template(tmp_path, source).render(messages)
    assert text.startswith(f"{role}: Be brief.\nuser: ")
    assert messages[0]["role"] == "developer"


def test_raise_exception_is_the_user_s_error(tmp_path: Path) -> None:
    refuse = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    )
    chat = template(tmp_path, refuse)
    with pytest.raises(BadInput, match="rejects this conversation: no system role"):
        chat.render(CONVERSATION)
    assert chat.render(HELLO) == ""


@pytest.mark.parametrize(
    "text",
    ["{{ messages[0].content + 1 }}", "{{ 1 // 0 }}", "{% for i in range(10**9) %}{% endfor %}"],
    ids=["type", "zero", "endless"],
)
def test_an_error_in_the_template_is_no_traceback(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadInput, match="the chat template rejects this conversation"):
        template(tmp_path, text).render(HELLO)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "assistant", "content": "No.", "refusal": None},
    ],
    ids=["refusal", "part", "none"],
)
def test_a_refusal_is_what_the_assistant_said(tmp_path: Path, message: Any) -> None:
    text = "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ m.refusal }};{% endfor %}"
    turns = [*HELLO, message, *HELLO]
    rendered = template(tmp_path, text).render(turns)
    assert rendered == "user:hello;assistant:No.;user:hello;"


def test_missing_template(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"{tmp_path} has no chat template.*use generate or stream"):
        ChatTemplate(tmp_path / "chat_template.jinja", special_tokens=TOKENS)


def test_syntax_error_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(BadBundle, match=r"chat_template\.jinja, line 2: .*endfor"):
        template(tmp_path, "{% for m in messages %}\n{% endfro %}")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "the conversation is empty; expected at least one message"),
        ([{"role": "robot", "content": "x"}], r"bad message .*expected a role \(system, developer"),
        ([{"content": "x"}], "bad message"),
        ([{"role": "user"}], "bad message"),
        ([{"role": "user", "content": None}], "bad message .*a content string"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "a part of type 'image_url'"),
        ([*HELLO, {"role": "", "content": "x"}], "bad message"),
    ],
    ids=["empty", "role", "no role", "no content", "none", "parts", "second"],
)
def test_conversations_that_cannot_be(tmp_path: Path, messages: list[Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        template(tmp_path, SNIPPETS["loop"]).render(messages)
