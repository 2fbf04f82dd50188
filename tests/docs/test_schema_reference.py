"""The reference of recipes and profiles is written from the records and must not fall behind."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs import schema_reference

FOLDER = Path(__file__).parents[2] / "docs" / "reference"


@pytest.mark.parametrize("page", [schema_reference.recipe, schema_reference.profile])
def test_pages_are_the_records(page: Callable[[], str]) -> None:
    assert (FOLDER / f"{page.__name__}.md").read_text() == page(), "run `make docs`"


def test_every_field_of_a_recipe_and_a_profile_has_a_meaning() -> None:
    missing = [
        f"{page.__name__}: {row}"
        for page in (schema_reference.recipe, schema_reference.profile)
        for row in re.findall(r"^\| `\w+` \|  \|.*", page(), re.MULTILINE)
    ]
    assert not missing, "\n".join(missing)
