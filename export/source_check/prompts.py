"""A second opinion on chat prompts: the bundle's, against those that transformers renders.

A missing mark or a template that is read otherwise costs answers their quality, and no comparison
of logits shows it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgelm.checkpoint.source import Checkpoint
from edgelm.checkpoint.special_token_names import SPECIAL_TOKENS_FILE
from edgelm.errors import BadCheckpoint, BadInput, GateFailed
from edgelm.library_errors import library_errors
from edgelm.runtime.text.bundle_template import CHAT_TEMPLATE
from edgelm.runtime.text.chat import ChatTemplate, Message
from edgelm.runtime.text.special_tokens import read_special_tokens

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
_Renderer = Callable[[list[Message]], str]


def check_prompts(checkpoint: Checkpoint, bundle: Path) -> None:
    """Compare prompts of a few conversations.

    Args:
        checkpoint: the source.
        bundle: the folder of its bundle; without a chat template there is nothing to compare.

    Raises:
        GateFailed: a prompt differs.
        BadCheckpoint: transformers cannot load the source's tokenizer.
    """
    path = bundle / CHAT_TEMPLATE
    if not path.is_file():
        return
    special = read_special_tokens(bundle / SPECIAL_TOKENS_FILE)
    if special is None:
        return  # the source names no special tokens apart from ids
    template = ChatTemplate(path, special_tokens=special)
    theirs = _transformers_renderer(checkpoint, template, special)
    for turns in _CONVERSATIONS:
        messages = [Message(role=role, content=content) for role, content in turns]
        ours, expected = _ours(template, messages), theirs(messages)
        if ours != expected:
            raise GateFailed(
                f"the chat prompt of {checkpoint.name} differs from what transformers renders: "
                f"{_difference(ours, expected)}; please report it with its tokenizer_config.json "
                "(--gate off exports it anyway)"
            )


def _ours(template: ChatTemplate, messages: list[Message]) -> str:
    try:
        return template.render(messages)
    except BadInput:
        return _REFUSED


def _transformers_renderer(
    checkpoint: Checkpoint, template: ChatTemplate, special: Mapping[str, str]
) -> _Renderer:
    if checkpoint.is_gguf:
        return _from_text(template, special)
    from transformers import AutoTokenizer

    with library_errors(
        lambda why: BadCheckpoint(
            f"transformers cannot load the tokenizer of {checkpoint.name}, so that its chat "
            f"prompts cannot be compared: {why}"
        )
    ):
        tokenizer: Any = AutoTokenizer.from_pretrained(
            checkpoint.path, trust_remote_code=False, local_files_only=True
        )
    return _guarded(
        lambda messages: tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
    )


def _from_text(template: ChatTemplate, special: Mapping[str, str]) -> _Renderer:
    """What transformers renders from a GGUF file's template and special tokens.

    Its own reader of such files would make another tokenizer of them.
    """
    from transformers.utils import chat_template_utils

    renderer: Any = chat_template_utils.render_jinja_template

    def render(messages: list[Message]) -> Any:
        rendered, _ = renderer(
            conversations=[messages],
            chat_template=template.source,
            add_generation_prompt=True,
            **special,
        )
        return rendered[0]

    return _guarded(render)


def _guarded(render: Callable[[list[Message]], Any]) -> _Renderer:
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
