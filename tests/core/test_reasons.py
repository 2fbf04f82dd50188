"""What a library says is quoted, but never at the length of the input that it refused."""

from pathlib import Path

import pytest

from edgelm.reasons import one_line, reason


def test_a_long_text_is_cut() -> None:
    assert len(reason(ValueError("x" * 5_000_000))) == 503
    assert reason(ValueError("x" * 500)) == "x" * 500


def test_lines_become_one() -> None:
    assert reason(ValueError(" no\n\n  such\tfield ")) == "no such field"
    assert one_line("") == ""


def test_an_error_without_text_is_its_type() -> None:
    assert reason(EOFError()) == "EOFError"
    assert reason(ValueError("  ")) == "ValueError"


def test_an_error_of_the_system_has_no_number() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Path("/no/such/file").read_bytes()
    assert reason(caught.value) == "No such file or directory: '/no/such/file'"
