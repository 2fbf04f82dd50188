"""No call into transformers may run a stranger's code, or ask whether it may."""

import ast
from collections.abc import Iterator
from pathlib import Path

import edgelm

PACKAGES = ("bench", "compress", "devices", "export", "runtime")
LOADERS = {"from_pretrained", "from_config"}


def sources() -> Iterator[Path]:
    core = Path(edgelm.__file__).resolve().parent
    yield from core.rglob("*.py")
    for package in PACKAGES:
        yield from (core.parent / package).rglob("*.py")


def loading_calls(path: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
            if node.func.attr in LOADERS and name.startswith("Auto"):
                yield node


def forbids_remote_code(call: ast.Call) -> bool:
    return any(
        one.arg == "trust_remote_code"
        and isinstance(one.value, ast.Constant)
        and one.value.value is False
        for one in call.keywords
    )


def test_every_call_forbids_it() -> None:
    found = [(path, call) for path in sources() for call in loading_calls(path)]
    assert len(found) > 4
    allowing = [f"{path}:{call.lineno}" for path, call in found if not forbids_remote_code(call)]
    assert not allowing


def test_nothing_allows_it() -> None:
    for path in sources():
        text = path.read_text(encoding="utf-8")
        assert "trust_remote_code=True" not in text, path
        assert "get_class_from_dynamic_module" not in text, path
