"""docs/reference/cli.md is written from the parsers; it must not fall behind them."""

import ast
import re
import sys
from pathlib import Path

import pytest

from tests.docs.cli_reference import reference

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "reference" / "cli.md"


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="argparse formats help differently in each version"
)
def test_docs_are_the_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert DOCUMENT.read_text() == reference(), "run `make docs`"


@pytest.mark.parametrize(
    ("command", "table", "file"),
    [
        ("edge-export", "PRECISIONS", "core/quantize/precision.py"),
        ("edge-export", "METHODS", "export/quantize/methods.py"),
        ("edge-bench", "PEERS", "bench/peers/engines.py"),
        ("edge-eval", "KINDS", "compress/evaluation/task_names.py"),
    ],
)
def test_help_names_every_entry_of_a_table(command: str, table: str, file: str) -> None:
    section = DOCUMENT.read_text().split(f"\n## {command}\n")[1].split("\n## ")[0]
    # argparse breaks lines after hyphens, too.
    words = set(re.findall(r"[\w.-]+", re.sub(r"-\n +", "-", section)))
    names = _entries(ROOT / file, table)
    assert len(names) >= 4
    assert [name for name in names if name not in words] == []


def _entries(path: Path, table: str) -> list[str]:
    """The keys of a dictionary or the items of a tuple, read without importing torch.

    Names in place of strings are left out.
    """
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Name) and target.id == table:
            value = node.value
            listed = value.keys if isinstance(value, ast.Dict) else getattr(value, "elts", [])
            return [str(one.value) for one in listed if isinstance(one, ast.Constant)]
    raise AssertionError(f"{path} has no {table}")
