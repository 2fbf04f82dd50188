"""What else a chat template is given, besides the messages, such as `enable_thinking`."""

from collections.abc import Mapping
from typing import Any

from edgelm.errors import BadInput

# `messages` has a place of its own, Jinja has `self`, and what decides whether control tokens in a
# message are text is not for the author of a message or of a saved session.
RESERVED = frozenset({"messages", "self", "allow_special"})


def check_template_arguments(given: object, name: str = "chat_template_kwargs") -> dict[str, Any]:
    """The arguments, if a chat template may be given them.

    Raises:
        BadInput: not names with values, or a name that is reserved.
    """
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise BadInput(f"{name} is {given!r:.80}, expected values by name")
    if reserved := sorted(RESERVED & given.keys()):
        raise BadInput(f"{name} may not have {reserved[0]}; leave it out")
    return dict(given)
