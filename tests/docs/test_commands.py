"""Every command of ours on a page has options that exist, and every import a name that exists."""

import argparse
import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgelm.bench.cli import parser as bench
from edgelm.bench.evaluation.cli import parser as evaluate
from edgelm.compress.cli import parser as compress
from edgelm.devices.cli import parser as devices
from edgelm.export.cli import parser as export
from edgelm.runtime.cli import parser as run
from edgelm.runtime.server.cli import parser as serve
from tests.docs.pages import PAGES, ROOT, blocks, name

PARSERS: dict[str, argparse.ArgumentParser] = {
    "edge-bench": bench(),
    "edge-compress": compress(),
    "edge-devices": devices(),
    "edge-eval": evaluate(),
    "edge-export": export(),
    "edge-run": run(),
    "edge-serve": serve(),
}
SHELL = ("", "sh", "bash", "shell", "console")
# Written from --help, whose usage lines are no commands; dated records of what was run then.
SKIPPED = [ROOT / "docs/reference/cli.md", *(ROOT / "docs/results").glob("*.md")]


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command line of ours, the program first."""
    for language, text in blocks(page):
        if language not in SHELL:
            continue
        joined = re.sub(r"\\\n\s*", " ", text)
        for line in joined.splitlines():
            if not re.search(r"(^|[ /])edge-\w+ ", line):
                continue
            words = shlex.split(line, comments=True)
            starts = [i for i, word in enumerate(words) if word in PARSERS]
            for start in starts:
                rest = words[start:]
                ends = [i for i, word in enumerate(rest) if word in ("&&", "|", ">", ";", "||")]
                yield rest[: ends[0]] if ends else rest


@pytest.mark.parametrize("page", [p for p in PAGES if p not in SKIPPED], ids=name)
def test_commands_have_options_that_exist(page: Path) -> None:
    wrong = []
    for program, *arguments in commands(page):
        try:
            PARSERS[program].parse_args(arguments)
        except SystemExit as left:
            if left.code:  # 0: --help
                wrong.append(shlex.join([program, *arguments]))
    assert not wrong


def test_pages_have_commands() -> None:
    assert sum(1 for page in PAGES for _ in commands(page)) > 50


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_imports_in_python_blocks_work(page: Path) -> None:
    for language, text in blocks(page):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("edgelm"):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "edgelm":
                assert hasattr(importlib.import_module("edgelm"), node.attr)
