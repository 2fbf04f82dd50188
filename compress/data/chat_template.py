"""Conversations as text, by the chat template of a tokenizer."""

from collections.abc import Mapping, Sequence
from typing import Any

from edgelm.errors import BadInput
from edgelm.reasons import reason

Tokenizer = Any  # of transformers, which ships no types


def render_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    where: str,
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    answers: bool = False,
) -> str:
    """A conversation as the tokenizer's chat template writes it.

    Args:
        tokenizer: with a template.
        messages: with role and content.
        where: what the conversation is, e.g. file and line; for errors.
        tools: that are offered, as JSON schemas.
        answers: end with what the assistant's answer begins with.

    Raises:
        BadInput: the template rejects the conversation. Those of Gemma and Mistral know no system
            message, and require that the user and the assistant take turns.
    """
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(
            list(messages), tools=list(tools) or None, tokenize=False, add_generation_prompt=answers
        )
    except (TemplateError, TypeError) as error:  # templates add texts to what is none
        roles = ", ".join(str(one.get("role")) for one in messages[:6])
        raise BadInput(
            f"{where or 'a conversation'}: the chat template rejects the conversation ({roles}"
            f"{', ...' if len(messages) > 6 else ''}): {reason(error)}"
        ) from None
    return str(text)
