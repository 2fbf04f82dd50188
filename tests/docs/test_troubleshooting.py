"""docs/troubleshooting.md has a section for every check of the doctor, and for nothing else."""

import re
from pathlib import Path

import pytest

from edgelm.devices.doctor import CHECKS

PAGE = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text()
SECTIONS = dict(re.findall(r"^### (\S+)\n\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))


def test_every_check_has_a_section_and_no_other() -> None:
    assert set(SECTIONS) == set(CHECKS)


@pytest.mark.parametrize("name", CHECKS)
def test_a_section_says_what_it_means_and_how_to_fix_it(name: str) -> None:
    meaning, _, fix = SECTIONS[name].partition("**Fix:**")
    assert len(meaning.split()) >= 8
    assert fix.strip().endswith(".")
