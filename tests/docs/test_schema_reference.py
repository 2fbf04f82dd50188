"""The reference of recipes and profiles is written from the records and must not fall behind."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import schema_reference

FOLDER = Path(__file__).parents[2] / "docs" / "reference"


@pytest.mark.parametrize("page", [schema_reference.recipe, schema_reference.profile])
def test_pages_are_the_records(page: Callable[[], str]) -> None:
    assert (FOLDER / f"{page.__name__}.md").read_text() == page(), "run `make docs`"
