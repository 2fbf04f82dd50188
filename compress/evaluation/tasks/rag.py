"""Answers from given documents, in the form of ChatRAG-Bench (Liu et al. 2024, arXiv 2401.10225).

A row has documents (`ctxs`), a conversation that ends with a question (`messages`) and `answers`,
or none where the documents do not say. Answers are compared as SQuAD does: exact match and F1 of
words, without case, articles and punctuation.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgelm.compress.evaluation.backend import Backend, Conversation, Progress, no_progress
from edgelm.compress.evaluation.encoding import loglikelihood
from edgelm.compress.evaluation.metrics import Metric, fraction_of, perplexity_of, share_of
from edgelm.errors import BadInput

# ChatRAG-Bench's own words.
_SYSTEM = (
    "This is a chat between a user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions based on the context. The "
    "assistant should also indicate when the answer cannot be found in the context."
)
_SHORT = (
    "Answer the following question with a short span. The answer needs to be just in a few words."
)
_REFUSAL = re.compile(
    r"\b(can(no|')?t (find|answer|determine|be (found|determined))|cannot (find|be found|answer)|"
    r"not (mentioned|provided|stated|specified|given|available|found|in the context)|"
    r"no (information|mention|answer)|(does|do)(n't| not) (say|mention|state|provide|specify|"
    r"contain)|unknown|i(')?m sorry|^sorry|unable to)\b",
    re.IGNORECASE,
)
_MAX_TOKENS = 48  # of a short answer


@dataclass(frozen=True, slots=True)
class RagRow:
    """Documents, a conversation, and the right answers; none where the documents do not say.

    `wrong` are answers of the same kind that are not right, for comparison by likelihood.
    """

    documents: tuple[str, ...]
    messages: tuple[Mapping[str, Any], ...]
    answers: tuple[str, ...]
    wrong: tuple[str, ...] = ()


def read_row(row: Mapping[str, Any], where: str) -> RagRow:
    """A row of a file in ChatRAG-Bench's form.

    Raises:
        BadInput: it has another form.
    """
    documents: list[Any] = [
        one.get("text") if isinstance(one, dict) else one for one in row["ctxs"]
    ]
    messages, answers = row["messages"], row["answers"]
    turns = all(isinstance(one, dict) and {"role", "content"} <= set(one) for one in messages)
    texts = all(isinstance(one, str) for one in (*documents, *answers))
    if not turns or not texts or not messages or messages[-1]["role"] != "user":
        raise BadInput(
            f"{where}: expected `ctxs` (texts, or objects with `text`), `messages` that end with "
            "the user's question, and `answers` (texts)"
        )
    known = tuple(answer for answer in answers if not is_refusal(answer))
    return RagRow(tuple(documents), tuple(messages), known, tuple(row.get("wrong", ())))


def rag(
    backend: Backend, rows: Sequence[RagRow], progress: Progress = no_progress
) -> dict[str, Metric]:
    """`f1`, `exact_match`, `contains` where there is an answer, and both kinds of refusals.

    `contains` is whether an answer stands in what the model wrote; `refused_unanswerable` and
    `refused_answerable` are shares of refusals where the documents do not say and where they do.
    """
    texts = [answer.text for answer in backend.generate(conversations(rows), _MAX_TOKENS, progress)]
    known = [(text, row) for text, row in zip(texts, rows, strict=True) if row.answers]
    unknown = [text for text, row in zip(texts, rows, strict=True) if not row.answers]
    found: dict[str, Metric] = {}
    if known:
        found |= {
            "f1": fraction_of([max(f1(text, one) for one in row.answers) for text, row in known]),
            "exact_match": share_of([_matches(text, row) for text, row in known]),
            "contains": share_of([contains(text, row.answers) for text, row in known]),
            "refused_answerable": share_of([is_refusal(text) for text, _ in known], "lower"),
        }
    if unknown:
        found["refused_unanswerable"] = share_of([is_refusal(text) for text in unknown])
    return found


def rag_choice(
    backend: Backend, rows: Sequence[RagRow], progress: Progress = no_progress
) -> dict[str, Metric]:
    """By likelihood: whether the right answer is likelier than wrong ones of the same kind.

    Sensitive where a small model's own answers are seldom right.

    Raises:
        BadInput: no row has wrong answers.
    """
    chosen = [row for row in rows if row.answers and row.wrong]
    if not chosen:
        raise BadInput("no row has an answer and `wrong` ones; rag_choice needs both")
    pairs = [
        (plain_prompt(row), f" {answer}")
        for row in chosen
        for answer in (row.answers[0], *row.wrong)
    ]
    found = iter(loglikelihood(backend, pairs, progress))
    right, losses = [], []
    for row in chosen:
        scores = [next(found).log_probability for _ in (row.answers[0], *row.wrong)]
        right.append(scores.index(max(scores)) == 0)
        losses.append(-scores[0])
    return {"accuracy": share_of(right), "answer_perplexity": perplexity_of(losses)}


def conversations(rows: Sequence[RagRow]) -> list[Conversation]:
    """What a model is given: the documents in the system message, and the conversation."""
    found = []
    for row in rows:
        context = "\n\n".join(row.documents)
        *before, question = row.messages
        last = {"role": "user", "content": f"{_SHORT} {question['content']}"}
        system = {"role": "system", "content": f"{_SYSTEM}\n\n{context}"}
        found.append(Conversation((system, *before, last)))
    return found


def plain_prompt(row: RagRow) -> str:
    """The same as a text to continue, for models that do not chat."""
    names = {"user": "Question", "assistant": "Answer"}
    turns = [f"{names.get(one['role'], one['role'])}: {one['content']}" for one in row.messages]
    return "\n\n".join([*row.documents, "\n".join([*turns, "Answer:"])])


def normalized(text: str) -> str:
    """As SQuAD's evaluation: lower case, no punctuation, no articles, single spaces."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def f1(text: str, answer: str) -> float:
    """Harmonic mean of precision and recall of words.

    >>> f1("It opened in 1912.", "1912")
    0.4
    """
    ours, theirs = normalized(text).split(), normalized(answer).split()
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def contains(text: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers stands in a text as whole words."""
    padded = f" {normalized(text)} "
    return any(f" {normalized(answer)} " in padded for answer in answers)


def is_refusal(text: str) -> bool:
    """Whether an answer says that it does not know.

    >>> is_refusal("Sorry. I cannot find the answer based on the context.")
    True
    """
    return _REFUSAL.search(text.strip()) is not None


def _matches(text: str, row: RagRow) -> bool:
    return any(normalized(text) == normalized(answer) for answer in row.answers)
