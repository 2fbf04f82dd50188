"""The 25 verifiable instructions of IFEval (Zhou et al. 2023, arXiv 2311.07911).

Each check decides whether a response follows one instruction; its keyword arguments are those of
the data set. The definitions of bullets, placeholders and sections are those of the reference
implementation (google-research/instruction_following_eval), including its quirks: a keyword also
counts within a longer word, a postscript may be anywhere, and a text of undetectable language
counts as correct. Two things differ: sentences are counted by rules (see `text_counts`), and
symbols may be requested as letters (two prompts of the data set request `!` and `#`; the reference
draws a random letter instead).
"""

import json
import re
from collections.abc import Callable
from typing import Literal

from edgelm.compress.evaluation.tasks.ifeval.language import language_of
from edgelm.compress.evaluation.tasks.ifeval.text_counts import (
    count_capital_words,
    count_sentences,
    count_words,
)

Relation = Literal["less than", "at least"]
_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_POSTSCRIPTS = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}


def _holds(count: int, relation: Relation, limit: int) -> bool:
    return count < limit if relation == "less than" else count >= limit


def existence(text: str, *, keywords: list[str]) -> bool:
    """All keywords occur, in any case."""
    return all(keyword.lower() in text.lower() for keyword in keywords)


def frequency(text: str, *, keyword: str, frequency: int, relation: Relation) -> bool:
    """A keyword occurs less often, or at least as often, as a limit."""
    return _holds(text.lower().count(keyword.strip().lower()), relation, frequency)


def forbidden_words(text: str, *, forbidden_words: list[str]) -> bool:
    """None of the words occurs as a whole word."""
    return not any(
        re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in forbidden_words
    )


def letter_frequency(text: str, *, letter: str, let_frequency: int, let_relation: Relation) -> bool:
    """A letter occurs less often, or at least as often, as a limit, in any case."""
    return _holds(text.lower().count(letter.strip().lower()), let_relation, let_frequency)


def response_language(text: str, *, language: str) -> bool:
    """The whole text is in one language, given as an ISO 639-1 code."""
    return language_of(text) in (language, None)


def number_sentences(text: str, *, num_sentences: int, relation: Relation) -> bool:
    """Fewer sentences than a limit, or at least as many."""
    return _holds(count_sentences(text), relation, num_sentences)


def number_words(text: str, *, num_words: int, relation: Relation) -> bool:
    """Fewer words than a limit, or at least as many."""
    return _holds(count_words(text), relation, num_words)


def number_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    """Exactly N paragraphs, separated by `***`; only the first and last part may be empty."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    inner = parts[1:-1]
    return all(inner) and sum(map(bool, parts)) == num_paragraphs


def nth_paragraph_first_word(
    text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    """Exactly N paragraphs, separated by empty lines; the nth starts with a given word."""
    parts = [part.strip() for part in text.split("\n\n")]
    count = sum(map(bool, parts))
    if count != num_paragraphs or nth_paragraph > count or not parts[nth_paragraph - 1]:
        return False
    # Quotes may precede the word; punctuation ends it.
    word = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return re.split(r"[.,?!'\"]", word)[0].lower() == first_word.lower()


def postscript(text: str, *, postscript_marker: str) -> bool:
    """A postscript with the given marker."""
    marker = postscript_marker.strip()
    return bool(re.search(_POSTSCRIPTS.get(marker, re.escape(marker.lower())), text.lower()))


def number_placeholders(text: str, *, num_placeholders: int) -> bool:
    """At least N placeholders such as [address]."""
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def number_bullet_lists(text: str, *, num_bullets: int) -> bool:
    """Exactly N lines that begin with `*` or `-`."""
    stars = re.findall(r"^\s*\*[^\*].*$", text, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", text, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


def constrained_response(text: str) -> bool:
    """One of the three given answers."""
    return any(answer in text for answer in _ANSWERS)


def number_highlighted_sections(text: str, *, num_highlights: int) -> bool:
    """At least N highlights: *one* or **one**."""
    single = re.findall(r"\*([^\n\*]*)\*", text)
    double = re.findall(r"\*\*([^\n\*]*)\*\*", text)
    return sum(1 for inside in single + double if inside.strip()) >= num_highlights


def multiple_sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    """At least N sections, each starting with a word and a number ("Section 1")."""
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", text)) >= num_sections


def json_format(text: str) -> bool:
    """The whole text is JSON, in a Markdown fence or not."""
    text = re.sub(r"^```(?:json|Json|JSON)?", "", text.strip()).removesuffix("```")
    try:
        json.loads(text.strip())
    except ValueError:
        return False
    return True


def title(text: str) -> bool:
    """A title in double angular brackets."""
    return any(found.lstrip("<").rstrip(">").strip() for found in re.findall(r"<<[^\n]+>>", text))


def two_responses(text: str) -> bool:
    """Two different responses separated by `******`; only the first and last part may be empty."""
    parts = [part.strip() for part in text.split("******")]
    given = [part for part in parts if part]
    return all(parts[1:-1]) and len(given) == 2 and given[0] != given[1]


def repeat_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    """The text starts with the request, word for word."""
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(text: str, *, end_phrase: str) -> bool:
    """The text ends with the phrase."""
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(text: str) -> bool:
    """The whole text is in double quotation marks."""
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def no_comma(text: str) -> bool:
    """No comma."""
    return "," not in text


def english_capital(text: str) -> bool:
    """English, in capital letters only."""
    return text.isupper() and response_language(text, language="en")


def english_lowercase(text: str) -> bool:
    """English, in lower-case letters only."""
    return text.islower() and response_language(text, language="en")


def capital_word_frequency(
    text: str, *, capital_frequency: int, capital_relation: Relation
) -> bool:
    """Fewer words in capital letters than a limit, or at least as many."""
    return _holds(count_capital_words(text), capital_relation, capital_frequency)


CHECKS: dict[str, Callable[..., bool]] = {
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "combination:repeat_prompt": repeat_prompt,
    "combination:two_responses": two_responses,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:json_format": json_format,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:title": title,
    "keywords:existence": existence,
    "keywords:forbidden_words": forbidden_words,
    "keywords:frequency": frequency,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_words": number_words,
    "punctuation:no_comma": no_comma,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
}
NEED_LANGUAGE = frozenset(
    ("change_case:english_capital", "change_case:english_lowercase", "language:response_language")
)
