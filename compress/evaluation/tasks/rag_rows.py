"""Rows for `rag` made by templates: invented facts, so that no model knows the answers.

Each row has three documents of one kind, so that the right one has to be found; a sixth of the
questions ask for what no document says, and a quarter come as the second turn of a conversation.
"""

import random
from typing import NamedTuple

from edgelm.compress.evaluation.tasks.rag import RagRow

ROWS = 240
_SEED = 20
_DOCUMENTS = 3
_WRONG = 3


class _Fact(NamedTuple):
    """A sentence of a document, a question that it answers, and the answers that are possible."""

    sentence: str
    question: str
    follow_up: str
    values: tuple[str, ...]


class _Kind(NamedTuple):
    names: tuple[str, ...]
    facts: tuple[_Fact, ...]


def _numbers(first: int, last: int, step: int) -> tuple[str, ...]:
    return tuple(map(str, range(first, last, step)))


_PEOPLE = (
    "Mira Halden", "Tomas Quell", "Ines Varga", "Oskar Lindqvist", "Paula Tennant",
    "Jonas Reimer", "Dalia Brandt", "Felix Aduba", "Carmen Ostrow", "Henrik Maas",
)  # fmt: skip
_TOWNS = (
    "Elmstead", "Norvik", "Castellar", "Brunswell", "Tarnow", "Lisle", "Okanda", "Verris",
    "Holmgate", "Sundby",
)  # fmt: skip
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_COLORS = ("green", "white", "dark blue", "red", "yellow", "gray", "orange", "brown")

_KINDS = (
    _Kind(
        ("the Larch Museum", "the Tidewater Museum", "the Copper Museum", "the Ashford Museum",
         "the Pell Museum", "the Riverside Museum"),
        (
            _Fact("{Name} opened in {value}.", "In which year did {name} open?",
                  "In which year did it open?", _numbers(1871, 1999, 7)),
            _Fact("The architect of {name} was {value}.", "Who was the architect of {name}?",
                  "Who was its architect?", _PEOPLE),
            _Fact("{Name} is closed on {value}.", "On which day is {name} closed?",
                  "On which day is it closed?", _DAYS),
            _Fact("{Name} stands in {value}.", "In which town is {name}?",
                  "In which town is it?", _TOWNS),
            _Fact("A ticket to {name} costs {value} crowns.",
                  "How many crowns does a ticket to {name} cost?",
                  "How many crowns does a ticket cost?", _numbers(11, 60, 3)),
        ),
    ),
    _Kind(
        ("the Avalon ferry", "the Merlin ferry", "the Cormorant ferry", "the Juno ferry",
         "the Petrel ferry", "the Saga ferry"),
        (
            _Fact("{Name} sails from pier {value}.", "From which pier does {name} sail?",
                  "From which pier does it sail?", _numbers(2, 30, 1)),
            _Fact("The captain of {name} is {value}.", "Who is the captain of {name}?",
                  "Who is its captain?", _PEOPLE),
            _Fact("{Name} carries {value} passengers.", "How many passengers does {name} carry?",
                  "How many passengers does it carry?", _numbers(120, 900, 35)),
            _Fact("{Name} goes to {value}.", "To which town does {name} go?",
                  "To which town does it go?", _TOWNS),
            _Fact("The hull of {name} is {value}.", "What color is the hull of {name}?",
                  "What color is its hull?", _COLORS),
        ),
    ),
    _Kind(
        ("the Kestrel pump", "the Otter pump", "the Badger pump", "the Heron pump",
         "the Lynx pump", "the Marten pump"),
        (
            _Fact("{Name} weighs {value} kilograms.", "How many kilograms does {name} weigh?",
                  "How many kilograms does it weigh?", _numbers(14, 95, 4)),
            _Fact("{Name} was designed by {value}.", "Who designed {name}?",
                  "Who designed it?", _PEOPLE),
            _Fact("{Name} is built in {value}.", "In which town is {name} built?",
                  "In which town is it built?", _TOWNS),
            _Fact("{Name} has a warranty of {value} months.",
                  "How many months of warranty does {name} have?",
                  "How many months of warranty does it have?", _numbers(13, 70, 5)),
            _Fact("The cover of {name} is {value}.", "What color is the cover of {name}?",
                  "What color is its cover?", _COLORS),
        ),
    ),
    _Kind(
        ("the Hollow Lake festival", "the Lantern festival", "the Plum festival",
         "the Old Mill festival", "the Harbor festival", "the Juniper festival"),
        (
            _Fact("{Name} begins on a {value}.", "On which day of the week does {name} begin?",
                  "On which day of the week does it begin?", _DAYS),
            _Fact("{Name} is led by {value}.", "Who leads {name}?", "Who leads it?", _PEOPLE),
            _Fact("{Name} takes place in {value}.", "In which town does {name} take place?",
                  "In which town does it take place?", _TOWNS),
            _Fact("Last year, {value} people came to {name}.",
                  "How many people came to {name} last year?",
                  "How many people came last year?", _numbers(1150, 9800, 410)),
            _Fact("{Name} was first held in {value}.", "In which year was {name} first held?",
                  "In which year was it first held?", _numbers(1903, 2012, 6)),
        ),
    ),
)  # fmt: skip


def rag_rows(count: int = ROWS) -> list[RagRow]:
    """The first rows; always the same."""
    rng = random.Random(_SEED)
    return [_row(rng, number) for number in range(count)]


def _row(rng: random.Random, number: int) -> RagRow:
    kind = _KINDS[number % len(_KINDS)]
    names = rng.sample(kind.names, _DOCUMENTS)
    values = [[rng.choice(fact.values) for fact in kind.facts] for _ in names]
    asked, at = rng.randrange(_DOCUMENTS), rng.randrange(len(kind.facts))
    answerable = number % 6 != 5
    documents = []
    for document, name in enumerate(names):
        order = [fact for fact in range(len(kind.facts)) if answerable or fact != at]
        rng.shuffle(order)
        sentences = [_said(kind.facts[fact], name, values[document][fact]) for fact in order]
        documents.append(" ".join(sentences))
    messages = [_question(kind.facts[at].question, names[asked])]
    if number % 4 == 3:
        other = (at + 1) % len(kind.facts)
        messages = [
            _question(kind.facts[other].question, names[asked]),
            {"role": "assistant", "content": values[asked][other]},
            {"role": "user", "content": kind.facts[at].follow_up},
        ]
    right = values[asked][at]
    if not answerable:
        return RagRow(tuple(documents), tuple(messages), ())
    wrong = [value for value in kind.facts[at].values if value != right]
    # What the other documents say is the likeliest mistake.
    near = {row[at] for row in values} - {right}
    rest = rng.sample([value for value in wrong if value not in near], _WRONG - len(near))
    return RagRow(tuple(documents), tuple(messages), (right,), (*sorted(near), *rest))


def _said(fact: _Fact, name: str, value: str) -> str:
    upper = name[0].upper() + name[1:]
    return fact.sentence.format(name=name, Name=upper, value=value)


def _question(text: str, name: str) -> dict[str, str]:
    return {"role": "user", "content": text.format(name=name)}
