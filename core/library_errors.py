"""Errors of libraries written in Rust as edgelm's own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edgelm.errors import EdgeLMError
from edgelm.reasons import reason


@contextmanager
def library_errors(error: Callable[[str], EdgeLMError]) -> Iterator[None]:
    """Replace what a library raises in this block.

    The tokenizers package raises plain Exception, and where it panics something that is not even
    that.

    Args:
        error: makes the error from the library's reason.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, EdgeLMError):
        raise
    except BaseException as raised:
        raise error(reason(raised)) from None
