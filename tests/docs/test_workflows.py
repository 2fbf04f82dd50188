"""The workflows run what `.ci/run` runs, on the versions of Python that the metadata names."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgelm.python310 import tomllib

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def commands(workflow: Path) -> list[str]:
    jobs: dict[str, Any] = yaml.safe_load(workflow.read_text())["jobs"]
    return [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]


def test_tests_run_on_every_python_of_the_metadata() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    pythons = []
    for job, script in (("runtime", ".github/python310.sh"), ("test", ".ci/run")):
        assert script in [step.get("run") for step in jobs[job]["steps"]]
        pythons += jobs[job]["strategy"]["matrix"]["python"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [re.search(r":: (3\.\d+)$", one) for one in project["classifiers"]]
    assert pythons == [match[1] for match in named if match]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_scripts_and_targets_exist(workflow: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in commands(workflow):
        word, *rest = command.split()
        if word.startswith("."):
            assert os.access(ROOT / word, os.X_OK), word
        if word == "make":
            assert re.search(rf"^{rest[0]}:", makefile, re.MULTILINE), command


def test_hooks_run_installed_tools() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    tools = {Path(hook["entry"].split()[0]).name for hook in hooks}
    dev = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert tools == {"ruff", "mypy"}
    assert tools <= {re.split(r"[>\[]", requirement)[0] for requirement in dev["dev"]}


@pytest.mark.parametrize("form", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")))
def test_issue_forms_have_what_github_requires(form: Path) -> None:
    read = yaml.safe_load(form.read_text())
    if form.name == "config.yml":
        assert set(read) <= {"blank_issues_enabled", "contact_links"}
        return
    assert {"name", "description", "body"} <= set(read)
    for part in read["body"]:
        needed = "value" if part["type"] == "markdown" else "label"
        assert part["attributes"][needed]
