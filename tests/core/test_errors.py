"""The tree drawn in the docstring is the tree of the classes."""

import inspect
import re

import pytest

from edgelm import errors


def test_tree_in_the_docstring() -> None:
    assert errors.__doc__ is not None
    drawn: dict[str, str] = {}
    parents = {-4: "Exception"}
    for line in errors.__doc__.splitlines():
        if match := re.match(r"(    (?:[│ ]   )*(?:[├└]── )?)(\w+)(?:$|   )", line):
            depth = len(match[1])
            parents[depth] = match[2]
            drawn[match[2]] = parents.get(depth - 4, "Exception")
    classes = {
        name: kind.__bases__[0].__name__
        for name, kind in inspect.getmembers(errors, inspect.isclass)
    }
    assert drawn == classes


@pytest.mark.parametrize("count", [1, 5_000, 10_000_000])
def test_long_messages_keep_their_beginning_and_their_end(count: int) -> None:
    text = f"the name {'x' * count} is unknown; give another one"
    message = str(errors.BadInput(text))
    assert message.startswith("the name x")
    assert message.endswith("x is unknown; give another one")
    assert message == text if count <= 5_000 else len(message) < 6_100
