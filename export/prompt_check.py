"""A second opinion on chat prompts: the bundle's, against those that transformers renders.

A missing mark or a template that is read otherwise costs answers their quality, and no comparison
of logits shows it.
"""

from collections.abc import Callable
from typing import Any

from edgelm.checkpoint import Checkpoint
from edgelm.errors import BadInput, GateFailed
from edgelm.runtime.chat import ChatTemplate, Message

_CONVERSATIONS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("user", "Why is the sky blue?"),),
    (("system", "Be brief."), ("user", "Why is the sky blue?")),
    (("user", "One?"), ("assistant", "Two."), ("user", "  Three?\n")),
    (
        ("system", "You are a pilot."),
        ("user", "Größe? 你好 🙂"),
        ("assistant", "<think>\nhm\n</think>\n\nYes."),
        ("user", "Steps:\n\n1. Mix"),
        ("assistant", "No."),
        ("user", ""),
    ),
)
_REFUSED = "(refused)"


def check_prompts(checkpoint: Checkpoint, template: ChatTemplate) -> int:
    """Compare prompts of a few conversations; returns how many there were.

    Args:
        checkpoint: the source.
        template: the bundle's, with the special tokens that the runtime gives it.

    Raises:
        GateFailed: a prompt differs.
    """
    theirs = _transformers_renderer(checkpoint, template)
    for turns in _CONVERSATIONS:
        messages = [Message(role=role, content=content) for role, content in turns]
        ours, expected = _ours(template, messages), theirs(messages)
        if ours != expected:
            raise GateFailed(
                f"the chat prompt of {checkpoint.name} is not what transformers makes of it: "
                f"{_difference(ours, expected)}; please report it with its tokenizer_config.json "
                "(--gate off exports it all the same)"
            )
    return len(_CONVERSATIONS)


def _ours(template: ChatTemplate, messages: list[Message]) -> str:
    try:
        return template.render(messages)
    except BadInput:
        return _REFUSED


def _transformers_renderer(
    checkpoint: Checkpoint, template: ChatTemplate
) -> Callable[[list[Message]], str]:
    if checkpoint.is_gguf:
        return _from_text(template)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        checkpoint.path, trust_remote_code=False, local_files_only=True
    )
    return _guarded(
        lambda messages: tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
    )


def _from_text(template: ChatTemplate) -> Callable[[list[Message]], str]:
    """What transformers renders from a GGUF file's template and special tokens.

    Its own reader of such files would make another tokenizer of them.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    def render(messages: list[Message]) -> str:
        rendered, _ = render_jinja_template(
            conversations=[messages],
            chat_template=template.source,
            add_generation_prompt=True,
            **template.special_tokens,
        )
        return str(rendered[0])

    return _guarded(render)


def _guarded(render: Callable[[list[Message]], Any]) -> Callable[[list[Message]], str]:
    def guarded(messages: list[Message]) -> str:
        try:
            return str(render(messages))
        except Exception:  # a template is a program: it can refuse in any way
            return _REFUSED

    return guarded


def _difference(ours: str, expected: str) -> str:
    pairs = zip(ours, expected, strict=False)
    at = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(expected)))
    around = slice(max(0, at - 20), at + 40)
    return f"{ours[around]!r} where {expected[around]!r} is expected, at character {at}"
