"""How often edgelm's matching of calls differs from BFCL's own AST checker.

    python -m bench.studies.agreement.bfcl FOLDER [--show 3]

FOLDER holds `bfcl_eval`, unpacked from its wheel (pip download --no-deps bfcl-eval; unzip): data
and checker are in it. Each row's right calls are compared, and calls that are changed in one place.
The checker's modules for models and for Java and JavaScript are replaced by empty ones, because
they import the clients of many providers; only rows of Python are compared.
"""

import argparse
import copy
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from edgelm.compress.data.jsonl import read_jsonl
from edgelm.compress.evaluation.backend import Call
from edgelm.compress.evaluation.tasks.function_calls.call_matching import first_accepted
from edgelm.compress.evaluation.tasks.function_calls.functions import (
    FunctionRow,
    matches,
    read_rows,
)

_CATEGORIES = (
    *("simple_python", "multiple", "parallel", "parallel_multiple"),
    *("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple"),
)
_CONVERTERS = "bfcl_eval.eval_checker.ast_eval.type_convertor"
Calls = list[tuple[str, dict[str, Any]]]


class Checker:
    """BFCL's AST checker for rows of Python."""

    def __init__(self, folder: Path) -> None:
        sys.path.insert(0, str(folder))
        _replace(
            "bfcl_eval.constants.model_config",
            MODEL_CONFIG_MAPPING=defaultdict(lambda: SimpleNamespace(underscore_to_dot=True)),
        )
        _replace(f"{_CONVERTERS}.java_type_converter", java_type_converter=None)
        _replace(f"{_CONVERTERS}.js_type_converter", js_type_converter=None)
        self._check: Any = import_module("bfcl_eval.eval_checker.ast_eval.ast_checker").ast_checker
        self._python: Any = import_module("bfcl_eval.constants.enums").Language.PYTHON

    def __call__(self, row: Any, truth: Sequence[Any], calls: Calls, category: str) -> bool | None:
        """Whether it accepts the calls; None where it fails."""
        made = [{name: arguments} for name, arguments in copy.deepcopy(calls)]
        try:
            found = self._check(row["function"], made, truth, self._python, category, "any")
        except (KeyError, TypeError, IndexError, AttributeError):
            return None
        return bool(found["valid"])


def _replace(name: str, **members: Any) -> None:
    module = ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module


def variants(row: FunctionRow) -> Iterator[tuple[str, Calls]]:
    """The right calls, and calls that differ from them in one place."""
    right = [first_accepted(one) for one in row.expected]
    yield "right", right
    yield "one call less", right[1:]
    yield "one call twice", [*right, right[0]]
    if len(right) > 1:
        yield "calls in another order", right[::-1]
    for at, (name, arguments) in enumerate(right):

        def changed(given: dict[str, Any], other: str = name, here: int = at) -> Calls:
            return [*right[:here], (other, given), *right[here + 1 :]]

        yield "another name", changed(arguments, f"{name}_2")
        yield "an argument more", changed({**arguments, "surplus": 1})
        ((_, accepted),) = row.expected[at].items()
        for key, value in arguments.items():
            rest = {one: given for one, given in arguments.items() if one != key}
            optional = "" in accepted[key]
            yield f"{'optional' if optional else 'needed'} argument left out", changed(rest)
            for kind, other in values(value):
                yield kind, changed({**arguments, key: other})
            for other in accepted[key]:
                yield "another accepted value", changed({**arguments, key: other})


def values(value: Any) -> Iterator[tuple[str, Any]]:
    """Other values in place of one."""
    if isinstance(value, bool):
        yield from (("wrong value", not value), ("wrong type", str(value)), ("wrong type", 1))
    elif isinstance(value, int | float):
        yield from (("wrong value", value + 1), ("wrong type", str(value)))
        yield (
            "integer as float or float as integer",
            float(value) if type(value) is int else round(value),
        )
    elif isinstance(value, str):
        yield from (("wrong value", f"{value} x"), ("wrong type", 7), ("wrong type", [value]))
        yield "text in other letters", f" {value.upper()}."
        yield "text in quotes", f"'{value}'"
        yield "text in parentheses", f"({value})"
    elif isinstance(value, list):
        yield from (("wrong value", value[1:]), ("wrong type", str(value)), ("wrong value", []))
        yield "list in another order", value[::-1]
        for kind, other in values(value[0]) if value else ():
            yield f"first item: {kind}", [other, *value[1:]]
    elif isinstance(value, dict):
        yield from (("wrong value", {}), ("wrong type", [value]))
        yield "a field more", {**value, "surplus": 1}
        for key in value:
            rest = {one: given for one, given in value.items() if one != key}
            yield "a field less", rest
            for kind, other in values(value[key]):
                yield f"a field: {kind}", {**value, key: other}


def compare(folder: Path, show: int) -> None:
    """Print the disagreements by what was changed."""
    checker = Checker(folder)
    checked, accepted, failed = Counter[str](), Counter[str](), Counter[str]()
    stricter, looser = Counter[str](), Counter[str]()
    data = folder / "bfcl_eval" / "data"
    for category in _CATEGORIES:
        path = data / f"BFCL_v4_{category}.json"
        raw = [row for _, row in read_jsonl(path)]
        for source, row in zip(raw, read_rows(path, None), strict=True):
            for kind, calls in variants(row):
                theirs = checker(source, row.expected, calls, category)
                ours = matches([Call(*one) for one in calls], row)
                checked[kind] += 1
                accepted[kind] += theirs is True
                failed[kind] += theirs is None
                differs = theirs is not None and ours != theirs
                (looser if ours else stricter)[kind] += differs
                if differs and (looser if ours else stricter)[kind] <= show:
                    print(f"{kind}: ours {ours}, {source['id']}\n  {calls}\n  {row.expected}")
    counts = (checked, accepted, failed, looser, stricter)
    print("| change | calls | accepted by BFCL | BFCL fails | only ours accepts | only BFCL's |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in [*sorted(checked), None]:
        parts = [one.total() if name is None else one[name] for one in counts]
        print(f"| {name or 'all'} | {' | '.join(f'{part:,}' for part in parts)} |")


def main() -> None:
    """Compare on BFCL's rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where bfcl_eval was unpacked")
    parser.add_argument("--show", type=int, default=0, help="disagreements to print per change")
    arguments = parser.parse_args()
    compare(arguments.folder, arguments.show)


if __name__ == "__main__":
    main()
