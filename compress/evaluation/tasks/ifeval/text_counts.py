"""Words and sentences of a text, counted by rules instead of a trained model.

The reference of IFEval counts sentences with NLTK's Punkt, a model that has to be downloaded. Punkt
decides with statistics; here rules decide by what precedes a full stop: a title or an initial never
ends a sentence, another abbreviation does if a typical first word follows, a number does unless a
lower-case letter follows. Line breaks do not end sentences, as in Punkt. Capitalized words are
counted by the Penn Treebank's token convention, which NLTK's `word_tokenize` follows.
"""

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TITLES = _words("adm capt col dr fr gen gov hon lt maj messrs mr mrs ms mt prof rev sen sgt st")
_ABBREVIATIONS = _words("""
    a.m al approx apr assn aug ave bros cf co corp dec dept e.g ed eds est etc feb fig i.e inc jan
    jr jul jun ltd nov oct p.m ph.d pp sep sept sr u.k u.n u.s u.s.a vol vs
""")
_OPENING = _words("""
    a additionally after all although an and another as at because before but by during each even
    finally first for from furthermore he her here his how however i if in instead it its let many
    meanwhile moreover most my next now of on once one our overall perhaps she since so some such
    that the their then there therefore these they this those though thus to today under until we
    what when where while who why with yes yet you your
""")
# A mark, closing quotes, brackets or emphasis after it, then space.
_MARK = re.compile(r"(?P<mark>[.!?]+)[\"'”’)\]}*_]*(?=\s|$)")
_LAST_WORD = re.compile(r"[^\s(\[{\"'“‘*_]*$")
_NEXT_WORD = re.compile(r"\s*[\"'“‘(\[{*_#>-]*\s*(?P<word>[^\W\d_]*)(?P<end>\W?)")

_CONTRACTION = re.compile(r"(?i:n't|'(?:s|m|d|ll|re|ve))\b")
_NO_TOKEN = re.compile(r"[\s\"“”‘’`´«»…;@#$%&?!()\[\]{}<>]+|--+|\.\.+|[,:](?!\d)")


def count_words(text: str) -> int:
    """Runs of letters, digits and underscores: "don't" counts as two, as in the reference."""
    return len(re.findall(r"\w+", text))


def count_sentences(text: str) -> int:
    """Sentences of English text.

    >>> count_sentences("Dr. Bo met J. S. Li at 3.5 km, i.e. far off. Why? It was late...")
    3
    """
    text = text.strip()
    ends = [match.end() for match in _MARK.finditer(text) if _ends_sentence(text, match)]
    starts = [0, *ends]
    return sum(1 for start, end in zip(starts, [*ends, len(text)], strict=True) if text[start:end])


def count_capital_words(text: str) -> int:
    """Words without a lower-case letter; parts of a hyphenated word count as one.

    >>> count_capital_words("I said: COVID-19 is NO joke, DON'T laugh")
    5
    """
    spaced = _CONTRACTION.sub(lambda part: f" {part[0].lstrip(chr(39))} ", text)
    return sum(word.isupper() for word in _NO_TOKEN.split(spaced))


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    mark, after = match["mark"], text[match.end() :]
    if not after or "?" in mark or "!" in mark:
        return True
    following = _NEXT_WORD.match(after)
    assert following is not None  # every part of the pattern may be empty
    word = following["word"]
    if len(mark) > 1:  # an ellipsis
        return word[:1].isupper()
    before = _LAST_WORD.search(text[: match.start()])
    last = before[0].lower() if before else ""
    if last in _TITLES:
        return False
    if last in _ABBREVIATIONS or (len(last) == 1 and last.isalpha() and last != "i"):
        return word[:1].isupper() and word.lower() in _OPENING
    return not (last.isdigit() and word[:1].islower())
