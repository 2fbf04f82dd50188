"""Reference pages of TOML files, from the records that read them: `make docs` writes them."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect as types

from edgelm.compress.recipe import Recipe
from edgelm.devices.profile import Profile

TOP, FIGURE = "", "figure"  # sections that are no table of their own
RECIPE = """# Recipe

`edge-compress` takes a recipe: a TOML file with one table for every stage that is to run, in any
order. `edge-compress MODEL ... --print-recipe` writes one to start from.
[Stages](stages.md) explains how they work; this page lists all tables and fields. Unknown
fields, wrong types and values out of range are rejected with the name of the field.

Written from the source code by `make docs`.
"""
PROFILE = """# Device profile

A profile is a TOML file of facts about one device. `edge-devices list` names all profiles,
`edge-devices show NAME` prints one with the source of every number, and
[Plan and inspect devices](../how-to/devices.md#profiles) explains how to add your own. A figure is
a table: its value, the key of its source in `[sources]`, and, unless it was simply given, a status.

```toml
bandwidth_gb_s = { value = 102.4, source = "rule", status = "derived" }
```

| status | meaning |
|---|---|
| `given` | stated by the source |
| `derived` | computed from given numbers |
| `measured` | measured on the device, by the source or by `edge-devices calibrate` |
| `assumed` | our estimate: what the system and an engine's libraries take |
| `unverified` | contradictory, or without a source that we could read |

Written from the source code by `make docs`.
"""


def recipe() -> str:
    """Markdown of docs/reference/recipe.md."""
    return RECIPE + "".join(_sections(Recipe, TOP, {}))


def profile() -> str:
    """Markdown of docs/reference/profile.md."""
    return PROFILE + "".join(_sections(Profile, TOP, {}))


def _sections(record: Any, title: str, done: dict[Any, str]) -> Iterator[str]:
    """A section for a record, then for each record that its fields hold."""
    done[record] = title
    fields = types.type_info(record).fields  # type: ignore[attr-defined]
    meanings = field_meanings(record)
    yield f"\n## {_heading(title)}\n\n{_description(record)}\n\n"
    yield "| field | meaning | type | default |\n|---|---|---|---|\n"
    for field in fields:
        meaning = meanings.get(field.name, "")
        yield f"| `{field.name}` | {meaning} | {_type(field.type)} | {_default(field)} |\n"
    for field in fields:
        for inner in _records(field.type):
            if inner not in done:
                below = field.name if title == TOP else f"{title}.{field.name}"
                below = FIGURE if inner.__name__ == "Figure" else below
                yield from _sections(inner, below, done)


def _heading(title: str) -> str:
    return {TOP: "Top level", FIGURE: "Figures"}.get(title, f"[{title}]")


# `name: meaning`, further lines indented.
_MEANING = re.compile(r"^(\w+): (.+(?:\n    .+)*)\n?", re.MULTILINE)


def field_meanings(record: Any) -> dict[str, str]:
    """What each field of a record means, from its docstring and those of its bases."""
    names, found = set(record.__struct_fields__), {}
    for base in reversed(record.__mro__):
        for name, meaning in _MEANING.findall(inspect.cleandoc(base.__doc__ or "")):
            if name in names:
                found[name] = " ".join(meaning.split())
    return found


def _description(record: Any) -> str:
    """The docstring without the meanings of fields."""
    names = record.__struct_fields__
    text = inspect.getdoc(record) or ""
    return _MEANING.sub(lambda entry: "" if entry[1] in names else entry[0], text).strip()


def _records(kind: Any) -> Iterator[Any]:
    if isinstance(kind, types.StructType):
        yield kind.cls
    for name in ("types", "item_types"):
        for inner in getattr(kind, name, ()):
            yield from _records(inner)
    for name in ("item_type", "value_type", "type"):
        if isinstance(inner := getattr(kind, name, None), types.Type):
            yield from _records(inner)


_PLAIN: dict[Any, str] = {types.BoolType: "true or false", types.StrType: "string"}


def _type(kind: Any) -> str:
    """A type as a reader of TOML knows it, with its range."""
    if type(kind) in _PLAIN:
        return _PLAIN[type(kind)]
    if isinstance(kind, types.IntType | types.FloatType):
        return ("integer" if isinstance(kind, types.IntType) else "number") + _range(kind)
    if isinstance(kind, types.LiteralType):
        return "one of " + ", ".join(f"`{value}`" for value in kind.values)
    if isinstance(kind, types.UnionType):
        return " or ".join(_type(one) for one in kind.types if not isinstance(one, types.NoneType))
    if isinstance(kind, types.DictType):
        return f"table of {_type(kind.value_type)}"
    if isinstance(kind, types.TupleType):
        return "[" + ", ".join(_type(one) for one in kind.item_types) + "]"
    if isinstance(kind, types.StructType):
        return "figure" if kind.cls.__name__ == "Figure" else "table"
    return f"list of {_type(kind.item_type)}"


def _range(kind: Any) -> str:
    """The bounds of a number that a reader could run into."""
    low = f"above {kind.gt}" if kind.gt is not None else f"at least {kind.ge}"
    parts = [low] if kind.gt is not None or kind.ge is not None else []
    parts += [f"at most {kind.le}"] if kind.le is not None and kind.le < 2**33 else []
    return f" ({', '.join(parts)})" if parts else ""


def _default(field: types.Field) -> str:
    if field.required:
        return "required"
    if field.default_factory is not msgspec.NODEFAULT or isinstance(field.default, msgspec.Struct):
        return "see its table" if any(_records(field.type)) else "empty"
    if field.default is None or field.default in ((), ""):
        return "none"
    value = field.default
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    import sys
    from pathlib import Path

    for page, text in (("recipe", recipe()), ("profile", profile())):
        Path(sys.argv[1], f"{page}.md").write_text(text)
