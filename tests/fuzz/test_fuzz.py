"""A few hundred cases of every kind; `python -m tests.fuzz --campaign` runs more."""

from pathlib import Path

import pytest

from tests.fuzz.kinds import KINDS
from tests.fuzz.session import prepared, run

_SEED = 1
_MOST_FAILURES = 10  # enough to see; a hang costs seconds


@pytest.mark.parametrize("name", list(KINDS))
def test_every_case_is_refused_or_right(name: str, tmp_path: Path) -> None:
    failures = []
    with prepared(KINDS[name], tmp_path) as kind:
        for outcome in run(kind, _SEED, range(kind.tested)):
            if outcome.failed:
                failures.append(f"{outcome}\n  {outcome.replay}")
            if len(failures) == _MOST_FAILURES:
                break
    assert not failures, "\n".join(failures)
