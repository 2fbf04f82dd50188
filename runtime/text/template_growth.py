"""The operations of a template that make much out of little, and what they would make.

Each is estimated before it runs: `'a' * 10**9` must not be tried. What makes no more than it was
given needs no estimate here: its result is counted.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from edgelm.runtime.text.template_budget import Budget, OutOfBudget

_MAX_INT_BITS = 4096
_MAX_COUNT = 100_000  # as jinja2's own limit of range
_MAX_PRODUCT = 1_000_000_000  # characters compared, of searches that compare all with all
_MAX_SLOW_TEXT = 100_000  # characters, for what is quadratic
_WIDE = re.compile(r"\d{5,}|\*")
_NESTED = re.compile(r"\{[^{}]*\{")


def check_operation(budget: Budget, operator: str, left: Any, right: Any) -> None:
    """Estimate `left operator right`."""
    if operator == "*":
        for sequence, count in ((left, right), (right, left)):
            if isinstance(sequence, (Sequence, bytes)) and isinstance(count, int):
                budget.reserve(_bytes_each(budget, sequence) * max(0, count))
    if operator == "%" and isinstance(left, (str, bytes)):
        check_percent(budget, left, right)
    if operator == "**" and isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * max(0, right))
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())


def check_percent(budget: Budget, template: str | bytes, values: Any) -> None:
    """Estimate printf-style formatting."""
    text = template if isinstance(template, str) else template.decode("latin-1")
    if _WIDE.search(text):
        raise OutOfBudget("it formats with a width or a precision that is too large")
    budget.reserve(len(text) + text.count("%") * (budget.size(values) + 64))


def check_format(budget: Budget, template: str, args: Any, kwargs: Any) -> None:
    """Estimate `str.format`."""
    if _WIDE.search(template) or _NESTED.search(template.replace("{{", "").replace("}}", "")):
        raise OutOfBudget("it formats with a width or a precision that is too large")
    given = budget.size(args) + budget.size(kwargs)
    budget.reserve(len(template) + template.count("{") * (given + 64))


def check_method(budget: Budget, method: Any, args: Sequence[Any], kwargs: Any) -> None:
    """Estimate a call of a method of a text, or of a number."""
    owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
    given = [*args, *kwargs.values()]
    if isinstance(owner, int) and name == "to_bytes":
        _check_counts(budget, owner, *given)
    elif isinstance(owner, (str, bytes)) and name in _METHODS:
        _METHODS[name](budget, owner, *given)


def check_filter(budget: Budget, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Estimate a call of a filter."""
    if name in _FILTERS:
        _FILTERS[name](budget, *args, *kwargs.values())


def _check_bits(bits: int) -> None:
    if bits > _MAX_INT_BITS:
        raise OutOfBudget("it computes with numbers that are too large")


def _check_counts(budget: Budget, _: Any, *args: Any) -> None:
    """What pads or repeats by a number: to that many characters, or by that many."""
    for count in args:
        if isinstance(count, int) and abs(count) > _MAX_COUNT:
            raise OutOfBudget(f"it pads, cuts or indents by more than {_MAX_COUNT}")


def _expand_tabs(budget: Budget, text: Any, *args: Any) -> None:
    _check_counts(budget, text, *args)
    size = next((a for a in args if isinstance(a, int)), 8)
    budget.reserve(4 * (len(text) + _count(text, "\t") * size))


def _replace(budget: Budget, text: Any, *args: Any) -> None:
    # Either way round: named arguments come in any order.
    words = [word for word in args if isinstance(word, (str, bytes))][:2]
    if isinstance(text, (str, bytes)) and len(words) == 2:
        for old, new in (words, words[::-1]):
            budget.reserve(budget.size(text) + _count(text, old) * 4 * len(new))


def _join(budget: Budget, items: Any, *args: Any) -> None:
    if isinstance(items, Iterable) and not isinstance(items, Iterator):
        each = max((_bytes_each(budget, separator) for separator in args), default=0)
        budget.reserve(budget.size(items) + each * sum(1 for _ in items))


def _split(budget: Budget, text: Any, *args: Any) -> None:
    separators = [word for word in args if isinstance(word, (str, bytes)) and word]
    if separators:
        pieces = _count(text, separators[0])
        _search_back(budget, text, *separators)
    else:
        pieces = sum(_count(text, blank) for blank in (" ", "\t", "\n", "\r", "\v", "\f")) + 1
    budget.reserve(budget.size(text) + 64 * pieces)


def _search_back(budget: Budget, text: Any, *args: Any) -> None:
    """What searches from the end, or strips, compares all with all."""
    for sought in args:
        if isinstance(sought, (str, bytes)) and len(sought) * len(text) > _MAX_PRODUCT:
            raise OutOfBudget("it searches a long text for a long one")


def _translate(budget: Budget, text: Any, *args: Any) -> None:
    longest = (
        max((len(v) for v in args[0].values() if isinstance(v, str)), default=1)
        if (args and isinstance(args[0], Mapping))
        else 1
    )
    budget.reserve(4 * len(text) * max(1, longest))


def _trim(budget: Budget, text: Any, *args: Any) -> None:
    _search_back(budget, str(text), *args)


def _indent(budget: Budget, text: Any, *args: Any) -> None:
    _check_counts(budget, text, *args)
    width = max((len(a) if isinstance(a, str) else int(a) for a in args), default=4)
    lines = str(text).count("\n") + 1
    budget.reserve(budget.size(text) + 4 * lines * width)


def _slow(budget: Budget, text: Any, *args: Any) -> None:
    if len(str(text)) > _MAX_SLOW_TEXT or any(len(str(a)) > 1000 for a in args):
        raise OutOfBudget("it formats a text that is too long for that")
    _check_counts(budget, text, *args)


def _round(budget: Budget, value: Any, *args: Any) -> None:
    if any(isinstance(a, int) and abs(a) > 300 for a in args):
        raise OutOfBudget("it rounds to more digits than a number has")


def _sum(budget: Budget, value: Any, *args: Any) -> None:
    if any(isinstance(a, (list, tuple)) for a in args):
        raise OutOfBudget("it adds up lists; join them with a loop")


def _to_json(budget: Budget, value: Any, *args: Any) -> None:
    indents = [len(a) if isinstance(a, str) else a for a in args if isinstance(a, (str, int))]
    separators = [len(str(s)) for a in args if isinstance(a, (list, tuple)) for s in a]
    if max([*indents, *separators], default=0) > 100:
        raise OutOfBudget("it indents JSON by more than 100 characters")
    widest = 1 + max(indents, default=0) * _depth(value) + sum(separators)
    budget.reserve(budget.size(value) + budget.size(value) // 16 * widest)


def _depth(value: Any) -> int:
    deepest, pending = 0, [(value, 1)]
    while pending:
        item, level = pending.pop()
        deepest = max(deepest, level)
        if isinstance(item, (list, tuple, Mapping)):
            inner = item.values() if isinstance(item, Mapping) else item
            pending += [(part, level + 1) for part in inner]
    return deepest


def _percent(budget: Budget, template: Any, *args: Any) -> None:
    check_percent(budget, str(template), args)


def _bytes_each(budget: Budget, value: Any) -> int:
    """Bytes of a value that is repeated; characters have up to four each."""
    return 4 * len(value) if isinstance(value, (str, bytes)) else budget.size(value)


def _count(text: str | bytes, sought: str | bytes) -> int:
    if isinstance(text, str):
        return text.count(sought if isinstance(sought, str) else sought.decode("latin-1"))
    return text.count(sought if isinstance(sought, bytes) else sought.encode())


_Check = Callable[..., None]
_METHODS: dict[str, _Check] = {
    **dict.fromkeys(("ljust", "rjust", "center", "zfill"), _check_counts),
    **dict.fromkeys(("split", "rsplit", "splitlines"), _split),
    **dict.fromkeys(("strip", "lstrip", "rstrip"), _search_back),
    **dict.fromkeys(("rfind", "rindex", "rpartition"), _search_back),
    "expandtabs": _expand_tabs,
    "replace": _replace,
    "join": lambda budget, separator, items=(), *_: _join(budget, items, separator),
    "translate": _translate,
}
_FILTERS: dict[str, _Check] = {
    **dict.fromkeys(("center", "batch", "slice", "truncate"), _check_counts),
    **dict.fromkeys(("wordwrap", "striptags", "urlize", "pprint", "title"), _slow),
    "indent": _indent,
    "replace": _replace,
    "join": _join,
    "format": _percent,
    "round": _round,
    "sum": _sum,
    "tojson": _to_json,
    "trim": _trim,
}
