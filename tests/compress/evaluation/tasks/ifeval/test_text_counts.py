import doctest

import pytest

from edgelm.compress.evaluation.tasks.ifeval import text_counts
from edgelm.compress.evaluation.tasks.ifeval.text_counts import (
    count_capital_words,
    count_sentences,
    count_words,
)


def test_the_examples_of_the_docstrings_hold() -> None:
    assert doctest.testmod(text_counts) == (0, 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        (" \n?!", 0),
        ("one two  three\nfour", 4),
        ("Don't stop", 3),
        ("well-known: 3.5 km", 5),
        ("snake_case stays", 2),
        ("Žluťoučký kůň", 2),
    ],
    ids=repr,
)
def test_words_are_runs_of_letters_digits_and_underscores(text: str, words: int) -> None:
    assert count_words(text) == words


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", 0),
        (" \n ", 0),
        ("No full stop", 1),
        ("One. Two! Three?", 3),
        ("One. Two without end", 2),
        ("What?! Really.", 2),
        ("A list\nof lines\nwithout marks", 1),
        ("First line.\n\nSecond line.", 2),
        # Titles and initials never end a sentence, not even before a capital.
        ("I met Dr. Who and Mrs. Hall.", 1),
        ("J. R. R. Tolkien wrote.", 1),
        ("So did I. Then we left.", 2),
        # Other abbreviations do if what follows opens sentences.
        ("Apples, pears etc. are fruit.", 1),
        ("Apples, pears etc. The rest is nuts.", 2),
        ("He works at Acme Inc. The pay is good.", 2),
        ("He works at Acme Inc. Berlin.", 1),
        ("At 5 p.m. London time it ends.", 1),
        ("It ended at 5 p.m. We left.", 2),
        # A point within a number or a name is none; after a number a small letter goes on.
        ("It is 3.5 km to www.example.com and back.", 1),
        ("She came 2. in the race.", 1),
        ("It was 1969. People watched.", 2),
        # An ellipsis ends one before a capital only.
        ("Well... maybe.", 1),
        ("Well... Maybe.", 2),
        ("It was late...", 1),
        # Quotes, brackets and emphasis close after the mark.
        ('"Go." He went.', 2),
        ("(It rained.) We stayed.", 2),
        ("**Bold.** Then plain.", 2),
        ("He said “stop.” Then he left.", 2),
        ('"Why?" she asked.', 2),
    ],
    ids=repr,
)
def test_sentences(text: str, sentences: int) -> None:
    assert count_sentences(text) == sentences


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        ("Not One Of These", 0),
        ("THREE WORDS, HERE.", 3),
        ("I am A", 2),
        ("COVID-19 and UTF-8", 2),
        ("2024 is no word, 3D is one", 1),
        ("NASA's plan", 1),
        ("DON'T", 2),  # DO and N'T
        ("WE'LL SEE", 3),
        ('(ABC) [DEF] "GHI" -- JKL...', 4),
        ("A/B TEST", 2),
        ("AT&T", 2),
        ("**BIG TIME**", 2),
    ],
    ids=repr,
)
def test_capital_words_are_tokens_of_the_penn_treebank(text: str, words: int) -> None:
    assert count_capital_words(text) == words
