"""docs/reference/cli.md is written from the parsers; it must not fall behind them."""

import sys
from pathlib import Path

import pytest

from tests.docs.cli_reference import reference

DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="argparse formats help differently in each version"
)
def test_docs_are_the_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert DOCUMENT.read_text() == reference(), "run `make docs`"
