"""Rows for `functions` by templates: simple, multiple, parallel and irrelevance, as in BFCL."""

import random
from typing import Any, NamedTuple

from edgelm.compress.evaluation.tasks.function_calls.call_matching import Expected
from edgelm.compress.evaluation.tasks.function_calls.functions import FunctionRow, openai_tool

ROWS = 120
_SEED = 11
CATEGORIES = ("simple", "multiple", "parallel", "irrelevance")
_CITIES = ("Paris", "Oslo", "Lima", "Cairo", "Tokyo", "Berlin", "Madrid", "Toronto")
_NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Farid", "Grace", "Hugo")
_SMALL_TALK = (
    "Tell me a joke about cats.",
    "What is your favorite color?",
    "Write a haiku about snow.",
    "Who wrote Hamlet?",
    "Why do leaves fall in autumn?",
    "How are you today?",
    "What does 'serendipity' mean?",
    "Name three rivers in Europe.",
)


class _Function(NamedTuple):
    """A function, requests for it, and the values that its arguments can have.

    `optional` are arguments that no request names; they may be left out or have the value given.
    """

    name: str
    description: str
    types: dict[str, str]
    requests: tuple[str, ...]
    again: str  # the second of two parallel requests
    values: dict[str, tuple[Any, ...]]
    optional: tuple[tuple[str, Any], ...] = ()


_FUNCTIONS = (
    _Function(
        "get_weather",
        "Get the current weather of a city.",
        {"city": "string", "unit": "string"},
        ("What is the weather in {city} now?", "Get the weather of {city}."),
        "in {city}",
        {"city": _CITIES},
        (("unit", "celsius"),),
    ),
    _Function(
        "set_timer",
        "Set a timer.",
        {"minutes": "integer"},
        ("Set a timer for {minutes} minutes.", "Start a {minutes} minute timer."),
        "for {minutes} minutes",
        {"minutes": (3, 5, 12, 20, 45, 90)},
    ),
    _Function(
        "send_message",
        "Send a text message to a person.",
        {"recipient": "string", "text": "string"},
        ('Send the message "{text}" to {recipient}.', 'Text {recipient}: "{text}"'),
        '"{text}" to {recipient}',
        {
            "recipient": _NAMES,
            "text": ("I am late", "Happy birthday", "Call me back", "See you soon"),
        },
    ),
    _Function(
        "convert_currency",
        "Convert an amount of money.",
        {"amount": "float", "source": "string", "target": "string"},
        ("Convert {amount} {source} to {target}.", "How much is {amount} {source} in {target}?"),
        "{amount} {source} to {target}",
        {
            "amount": (10.0, 25.5, 120.0, 999.0),
            "source": ("USD", "EUR", "GBP"),
            "target": ("JPY", "CHF", "SEK"),
        },
    ),
    _Function(
        "math.area_of_rectangle",
        "Calculate the area of a rectangle.",
        {"width": "integer", "height": "integer"},
        (
            "What is the area of a rectangle {width} wide and {height} high?",
            "Calculate the area of a {width} by {height} rectangle.",
        ),
        "{width} by {height}",
        {"width": (4, 7, 11, 30), "height": (2, 5, 9, 16)},
    ),
    _Function(
        "play_song",
        "Play a song.",
        {"title": "string", "artist": "string"},
        ("Play {title} by {artist}.", "I want to hear {title} by {artist}."),
        "{title} by {artist}",
        {
            "title": ("Blue Rain", "Winter Road", "Golden Hour", "Paper Boats"),
            "artist": ("The Finches", "Nora Vale", "Low Tide"),
        },
    ),
    _Function(
        "switch_light",
        "Switch the light of a room on or off.",
        {"room": "string", "on": "boolean"},
        ("Switch the light in the {room} on.", "Turn on the {room} light."),
        "in the {room}",
        {"room": ("kitchen", "bedroom", "garage", "office"), "on": (True,)},
    ),
    _Function(
        "add_to_list",
        "Add items to a shopping list.",
        {"items": "array", "list_name": "string"},
        ("Add {items} to the {list_name} list.", "Put {items} on the {list_name} list."),
        "{items} to the {list_name} list",
        {
            "items": (["milk"], ["bread", "eggs"], ["apples", "rice", "tea"]),
            "list_name": ("weekly", "party", "office"),
        },
    ),
)


def function_rows(count: int = ROWS) -> list[FunctionRow]:
    """The first rows; always the same."""
    rng = random.Random(_SEED)
    return [_row(rng, CATEGORIES[number % len(CATEGORIES)]) for number in range(count)]


def _row(rng: random.Random, category: str) -> FunctionRow:
    function = rng.choice(_FUNCTIONS)
    others = rng.sample([one for one in _FUNCTIONS if one is not function], 3)
    if category == "irrelevance":
        return FunctionRow(category, _user(rng.choice(_SMALL_TALK)), _tools([function]), ())
    values = _drawn(rng, function)
    request = rng.choice(function.requests)
    text, expected = request.format(**_shown(values)), [_expected(function, values)]
    if category == "parallel":
        second = _drawn(rng, function)
        while second == values:
            second = _drawn(rng, function)
        text = f"{text[:-1]}, and then also {function.again.format(**_shown(second))}."
        expected.append(_expected(function, second))
    offered = [function] if category == "simple" else [function, *others[:2]]
    rng.shuffle(offered)
    wrong = [_call(one, _drawn(rng, one)) for one in others]
    other = _drawn(rng, function)
    if other != values:
        wrong.append(_call(function, other))
    return FunctionRow(category, _user(text), _tools(offered), tuple(expected), tuple(wrong))


def _drawn(rng: random.Random, function: _Function) -> dict[str, Any]:
    return {name: rng.choice(values) for name, values in function.values.items()}


def _shown(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: " and ".join(value) if isinstance(value, list) else value
        for name, value in values.items()
    }


def _expected(function: _Function, values: dict[str, Any]) -> Expected:
    accepted: dict[str, list[Any]] = {name: [value] for name, value in values.items()}
    accepted |= {name: ["", value] for name, value in function.optional}
    return {function.name: accepted}


def _call(function: _Function, values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return function.name.replace(".", "_"), values


def _user(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


def _tools(offered: list[_Function]) -> tuple[dict[str, Any], ...]:
    return tuple(openai_tool(_described(one)) for one in offered)


def _described(function: _Function) -> dict[str, Any]:
    properties: dict[str, Any] = {
        name: {"type": kind, "description": name.replace("_", " ")}
        for name, kind in function.types.items()
    }
    for schema in properties.values():
        if schema["type"] == "array":
            schema["items"] = {"type": "string"}
    return {
        "name": function.name,
        "description": function.description,
        "parameters": {
            "type": "dict",
            "properties": properties,
            "required": list(function.values),
        },
    }
