"""A bundle's tokenizer as evaluation tasks call it, and documents encoded with it."""

from collections.abc import Iterable, Iterator, Mapping

from edgelm.bundle import bundle_file
from edgelm.checkpoint.special_token_names import SPECIAL_TOKENS_FILE
from edgelm.compress.data.documents import Document
from edgelm.compress.data.text_ends import TextEnds
from edgelm.errors import BadInput
from edgelm.runtime.model import LanguageModel
from edgelm.runtime.text.special_tokens import read_special_tokens


class BundleTokenizer:
    """The tokenizer of a loaded bundle, spelled as transformers does."""

    def __init__(self, model: LanguageModel) -> None:
        self._tokenizer = model.tokenizer
        self.eos_token_id = _named(model, "eos_token")
        self.bos_token_id = _named(model, "bos_token")

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Mapping[str, list[int]]:
        """`input_ids` of a text."""
        ids = self._tokenizer.encode(text, special=add_special_tokens)
        return {"input_ids": ids.tolist()}


def text_rows(
    tokenizer: BundleTokenizer,
    documents: Iterable[Document],
    length: int,
    limit: int | None,
) -> list[list[int]]:
    """Documents between their ends, joined and cut into at most `limit` rows of `length` tokens.

    Raises:
        BadInput: too little text for one row, or conversations in place of texts.
    """
    rows, rest, seen = list[list[int]](), list[int](), 0
    for ids in _encoded(tokenizer, documents):
        rest += ids
        seen += 1
        while len(rest) >= length:
            rows.append(rest[:length])
            rest = rest[length:]
            if len(rows) == limit:
                return rows
    if not rows:
        raise BadInput(
            f"too little data: {seen:,} documents with {len(rest):,} tokens make no row of "
            f"{length:,}; add text"
        )
    return rows


def _encoded(tokenizer: BundleTokenizer, documents: Iterable[Document]) -> Iterator[list[int]]:
    ends = TextEnds.of(tokenizer)
    for document in documents:
        if document.messages:
            raise BadInput(
                "the data holds conversations (`messages`), and a bundle's perplexity is measured "
                "on text; use documents with a field `text`"
            )
        ids = tokenizer(document.text, add_special_tokens=False)["input_ids"]
        yield ends.around(ids)


def _named(model: LanguageModel, name: str) -> int | None:
    """The id of a named special token; None where the source names none, as transformers has it."""
    names = read_special_tokens(bundle_file(model.folder, model.manifest, SPECIAL_TOKENS_FILE))
    text = (names or {}).get(name)
    ids = model.tokenizer.encode(text, special=False).tolist() if text else []
    return int(ids[0]) if len(ids) == 1 else None
