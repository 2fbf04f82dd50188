"""Values that readers trip over, and mutations of trees of values."""

import json
from collections.abc import Iterator
from copy import deepcopy
from random import Random
from typing import Any

NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 2, 3, 7, -5, 64, 100, 1000, 10**6, 10**9, 10**12, 10**18, 10**30, 10**400),
    *(2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64),
    *(-(2**31), -(2**63), 0.0, -0.0, 0.5, 1.0, 1.5, -0.5, 1e-6, 1e-320, 1e300, 3.4e38, -1e300),
    *(float("nan"), float("inf"), float("-inf"), True, False),
)
TEXTS: tuple[str, ...] = (
    *("", " ", "\n", "a", "x" * 10_000, "0", "1", "-1", "1e999", "nan", "true", "null", "auto"),
    *("..", ".", "/", "../x", "../../etc/passwd", "/etc/passwd", "a/b", "a\\b", "C:\\x", "~"),
    *("file:///etc/passwd", "http://x/y", "\x00", "a\x00b", "é", "e\u0301", "\u202e", "\ufeff"),
    *("\ud800", "🦙", "%s%n%d", "{0}", "{{ 7 * 7 }}", "${x}", "`id`", "model.onnx", "con"),
    *("int8", "fp32", "default", "linear", "sliding_attention", "onnxruntime", "<s>"),
)
_DEEP = {
    "@deep-list": ("[" * 100_000, "]" * 100_000),
    "@less-deep": ("[" * 900, "]" * 900),
    "@deep-object": ('{"a":' * 5_000, "1" + "}" * 5_000),
    "@long-integer": ("1" * 5_000, ""),
    "@long-list": ("[" + "0," * 100_000 + "0]", ""),
    "@long-text": ('"' + "x" * 5_000_000 + '"', ""),
}
_COMPOUND: tuple[Any, ...] = (
    None,
    *([], {}, [None], [[]], [1, 2, 3], [0] * 1000, ["a"], [1, "a", None], [-1], [2**40]),
    *({"a": 1}, {"type": "x"}, {"": ""}, [{}], {"a": {"b": {"c": []}}}),
)
Path = tuple[Any, ...]
_DEEPEST = 50


def strange(rng: Random) -> Any:
    """One value that a reader may not expect."""
    kind = rng.random()
    if kind < 0.45:
        return rng.choice(NUMBERS)
    if kind < 0.75:
        return rng.choice(TEXTS)
    if kind < 0.95:
        return rng.choice(_COMPOUND)
    return rng.choice(list(_DEEP))


def strange_flat(rng: Random) -> Any:
    """One value that TOML has too."""
    return rng.choice((rng.choice(NUMBERS), rng.choice(TEXTS), [], [1], ["a"], {}, {"a": 1}))


def paths(tree: Any, at: Path = ()) -> Iterator[Path]:
    """The path of every value in a tree of objects and lists, the whole tree's excluded.

    Not below `_DEEPEST`: some mutations nest values thousands deep.
    """
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield (*at, key)
        if isinstance(value, dict | list) and len(at) < _DEEPEST:
            yield from paths(value, (*at, key))


def look_up(tree: Any, path: Path) -> Any:
    """The value at a path."""
    for key in path:
        tree = tree[key]
    return tree


def mutate(rng: Random, tree: Any, *, value: Any = strange, among: list[Path] | None = None) -> str:
    """Change one thing in a tree in place; returns what."""
    known = among or list(paths(tree))
    path = rng.choice(known)
    parent, key = look_up(tree, path[:-1]), path[-1]
    old = parent[key]
    way = rng.choice(("set", "set", "set", "nudge", "drop", "add", "swap", "copy", "wrap", "text"))
    if way == "nudge" and isinstance(old, int | float) and not isinstance(old, bool):
        parent[key] = rng.choice((old + 1, old - 1, -old, old * 2, old * 10, old // 2, float(old)))
    elif way == "drop":
        parent.pop(key)
    elif way == "add" and isinstance(parent, list):
        parent.insert(key, deepcopy(old) if rng.random() < 0.5 else value(rng))
    elif way == "add":
        parent[rng.choice((*TEXTS[:4], "x", f"{key}_"))] = value(rng)
    elif way in ("swap", "copy"):
        other = rng.choice(known)
        theirs = look_up(tree, other[:-1])
        if not _inside(path, other):
            parent[key] = deepcopy(theirs[other[-1]])
            if way == "swap" and not _inside(other, path):
                theirs[other[-1]] = deepcopy(old)  # a tree may hold one list twice
    elif way == "wrap":
        parent[key] = [old]
    elif way == "text" and isinstance(old, int | float | bool):
        parent[key] = str(old)
    else:
        way, parent[key] = "set", value(rng)
    new = parent[key] if way not in ("drop", "add") else ""
    return f"{way} {_dotted(path)} {_short(new)}".rstrip()


def mutate_number(rng: Random, tree: Any) -> str:
    """Put another number of its kind in place of one; returns what."""
    known = [path for path in paths(tree) if _is_number(look_up(tree, path))]
    path = rng.choice(known)
    parent, key = look_up(tree, path[:-1]), path[-1]
    real = isinstance(parent[key], float)
    parent[key] = rng.choice([n for n in NUMBERS if isinstance(n, float) is real and _is_number(n)])
    return f"set {_dotted(path)} {_short(parent[key])}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _inside(outer: Path, inner: Path) -> bool:
    """Whether one path leads into or is the other: a tree must not hold itself."""
    shorter = min(len(outer), len(inner))
    return outer[:shorter] == inner[:shorter]


def _dotted(path: Path) -> str:
    return ".".join(str(key) for key in path)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def dump(rng: Random, tree: Any) -> tuple[bytes, str]:
    """JSON of a tree, now and then not quite JSON; and what is odd about it."""
    text = json.dumps(tree, indent=rng.choice((None, 1)))
    for name, (opening, closing) in _DEEP.items():
        text = text.replace(f'"{name}"', opening + closing)
    if rng.random() < 0.9:
        return text.encode(), ""
    return _odd(rng, text)


def _odd(rng: Random, text: str) -> tuple[bytes, str]:
    way = rng.choice(("bom", "utf-16", "latin-1", "cut", "tail", "twice", "comma", "flip", "empty"))
    if way == "bom":
        return b"\xef\xbb\xbf" + text.encode(), way
    if way == "utf-16":
        return text.encode("utf-16"), way
    if way == "latin-1":
        return text.replace("a", "\xe9", 1).encode("latin-1", "replace"), way
    if way == "cut":
        return text[: rng.randrange(len(text))].encode(), way
    if way == "tail":
        return (text + rng.choice(("x", "{}", "\x00", "}", "]"))).encode(), way
    if way == "twice" and text.startswith("{") and len(text) > 2:
        key = text.split('"')[1]
        return f'{{"{key}": {json.dumps(rng.choice(NUMBERS))}, {text[1:]}'.encode(), way
    if way == "comma":
        return text.replace(",", ",,", 1).encode(), way
    if way == "flip":
        return flipped(rng, text.encode()), way
    return b"", "empty"


def flipped(rng: Random, data: bytes) -> bytes:
    """The same bytes with one bit changed."""
    changed = bytearray(data or b"\x00")
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)
