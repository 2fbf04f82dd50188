"""deploy/runtime.txt lists what running a bundle imports, no more and no less."""

import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from edgelm.python310 import tomllib

ROOT = Path(__file__).resolve().parents[2]
LISTED = [
    Requirement(line)
    for line in (ROOT / "deploy/runtime.txt").read_text().splitlines()
    if not line.startswith("#")
]
RUN = """
import sys
import edgelm
reply = edgelm.load(sys.argv[1]).generate("a b c", max_tokens=3)
assert reply.usage.completion_tokens
print(*{name.partition(".")[0] for name in sys.modules})
"""


def listed_here() -> set[str]:
    here = (one for one in LISTED if one.marker is None or one.marker.evaluate())
    return {canonicalize_name(one.name) for one in here}


def imported_distributions(code: str, *arguments: str) -> set[str]:
    """Distributions of the modules that a new process has imported after `code`."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    of_module = packages_distributions()
    names = {name for module in done.stdout.split() for name in of_module.get(module, [])}
    return {canonicalize_name(name) for name in names} - {"edgelm"}


def test_a_generation_imports_what_is_listed(bundle: Path) -> None:
    assert imported_distributions(RUN, str(bundle)) == listed_here()


def test_versions_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["cpu"]]
    declared = {str(Requirement(line)) for line in lines} - {
        str(one) for one in map(Requirement, lines) if one.name == "filelock"
    }
    assert declared == {str(one) for one in LISTED if one.name != "markupsafe"}
