"""deploy/runtime.txt lists what running a bundle needs, no more and no less."""

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
# A process in which only the modules of the first argument can be imported, besides Python's own.
RUN = """
import sys
from importlib.abc import MetaPathFinder

there = {*sys.argv[1].split(","), *sys.stdlib_module_names, "edgelm"}

class OnlyListed(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in there:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, OnlyListed())
import edgelm
from edgelm.runtime import cli
with edgelm.load(sys.argv[2]) as lm:
    assert lm.generate("The miller", max_tokens=3).usage.completion_tokens
    for chunk in lm.chat(system="Be brief.").send("The miller", max_tokens=3):
        pass
assert cli.main([sys.argv[2], "The miller", "-n", "3"]) == 0
"""


def modules_listed() -> dict[str, set[str]]:
    """Top-level modules of each listed package that this Python needs."""
    here = (one for one in LISTED if one.marker is None or one.marker.evaluate())
    modules: dict[str, set[str]] = {canonicalize_name(one.name): set() for one in here}
    for module, distributions in packages_distributions().items():
        for name in map(canonicalize_name, distributions):
            if name in modules:
                modules[name].add(module)
    return modules


def run(bundle: Path, modules: dict[str, set[str]]) -> subprocess.CompletedProcess[str]:
    names = ",".join(sorted(set().union(*modules.values())))
    return subprocess.run(
        [sys.executable, "-c", RUN, names, str(bundle)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_a_bundle_runs_with_the_listed_packages_alone(bundle: Path) -> None:
    done = run(bundle, modules_listed())
    assert done.returncode == 0, done.stderr


def test_the_test_sees_a_missing_package(bundle: Path) -> None:
    modules = modules_listed()
    del modules["tokenizers"]
    assert "No module named 'tokenizers'" in run(bundle, modules).stderr


def test_versions_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["cpu"]]
    declared = {str(Requirement(line)) for line in lines if not line.startswith("filelock")}
    assert declared == {str(one) for one in LISTED if one.name != "markupsafe"}
