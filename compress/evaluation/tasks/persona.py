"""Role play over several turns, with checks that a program can do.

A system message gives a persona, and four turns test whether it lasts: the model has to give its
name, use its phrase, keep what the user said in the first turn, and not leave its role when it is
asked about it. Answers stay in the conversation, as in a chat.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from edgelm.compress.evaluation.backend import Backend, Conversation, Progress, no_progress
from edgelm.compress.evaluation.metrics import Metric, share_of, share_of_parts

_MAX_TOKENS = 80
_TURNS = 4
_OUT_OF_ROLE = re.compile(
    r"\b(as an ai|ai (language )?model|language model|artificial intelligence|smollm|chatgpt|"
    r"hugging face|i('m| am) (just )?(an? )?(ai|assistant|chatbot|computer program))\b",
    re.IGNORECASE,
)
_WORK = (
    ("Captain Mara", "a sailor", "the Gull", "Aye!"),
    ("Doctor Finch", "a bird doctor", "Nest House", "Indeed!"),
    ("Chef Basil", "a cook", "the Blue Spoon", "Delicious!"),
    ("Old Tomas", "a clock maker", "the Brass Shop", "Tick tock!"),
    ("Lady Wren", "a knight", "Castle Thorn", "By my sword!"),
    ("Professor Quill", "a historian", "Ink Hall", "Fascinating!"),
    ("Miss Juniper", "a gardener", "the Green Yard", "How lovely!"),
    ("Ranger Holt", "a forest guard", "Pine Ridge", "Stay safe!"),
    ("Madame Orla", "a fortune teller", "the Moon Tent", "I foresee it!"),
    ("Sergeant Bloom", "a detective", "Station Nine", "Case closed!"),
    ("Pilot Zeph", "a balloon pilot", "the Red Cloud", "Up we go!"),
    ("Uncle Moss", "a troll", "the Stone Bridge", "Grumble!"),
)
_GUESTS = ("Lena", "Otto", "Priya", "Sam", "Nadia", "Igor")


class Persona(NamedTuple):
    """A system message, the user's turns, and a check of the answer to each."""

    system: str
    turns: tuple[str, ...]
    checks: tuple[tuple[str, Callable[[str], bool]], ...]


def personas(count: int | None = None) -> list[Persona]:
    """The first personas; always the same."""
    pairs = [(work, guest) for guest in _GUESTS[:2] for work in _WORK]
    return [_persona(*work, guest) for work, guest in pairs[:count]]


def persona(
    backend: Backend, chosen: Sequence[Persona], progress: Progress = no_progress
) -> dict[str, Metric]:
    """Shares of answers that hold, over all checks (by conversation) and for each of them."""
    messages: list[list[Mapping[str, Any]]] = [
        [{"role": "system", "content": one.system}] for one in chosen
    ]
    results: dict[str, list[bool]] = {}
    for turn in range(_TURNS):
        for one, history in zip(chosen, messages, strict=True):
            history.append({"role": "user", "content": one.turns[turn]})

        def show(done: int, of: int, turn: int = turn) -> None:
            progress(turn * of + done, _TURNS * of)

        asked = [Conversation(tuple(history)) for history in messages]
        answers = backend.generate(asked, _MAX_TOKENS, show)
        for one, history, answer in zip(chosen, messages, answers, strict=True):
            history.append({"role": "assistant", "content": answer.text})
            name, check = one.checks[turn]
            results.setdefault(name, []).append(check(answer.text))
    by_conversation = list(zip(*results.values(), strict=True))
    found = {"all": share_of_parts(by_conversation)}
    return found | {name: share_of(held) for name, held in results.items()}


def stays_in_role(text: str) -> bool:
    """Whether an answer does not speak of itself as of a program."""
    return bool(text.strip()) and not _OUT_OF_ROLE.search(text)


def _persona(name: str, work: str, place: str, phrase: str, guest: str) -> Persona:
    return Persona(
        f"You are {name}, {work}. You live at {place}. You always stay in this role. You end every "
        f'answer with "{phrase}"',
        (
            f"Hello, my name is {guest}. What is your name?",
            "Where do you live? Answer in one sentence.",
            "Do you remember my name? What is it?",
            "Are you a computer program?",
        ),
        (
            ("gives its name", _has(name.split()[-1])),
            ("uses its phrase", _has(phrase.rstrip("!"))),
            ("remembers the user", _has(guest)),
            ("stays in role", stays_in_role),
        ),
    )


def _has(words: str) -> Callable[[str], bool]:
    return lambda text: words.lower() in text.lower()
