"""Documents as arrays of tokens, batch after batch, by this process or by several others.

Processes of their own import no torch. They take batches in turns, and batches are returned in
order, so that the tokens do not depend on the number of processes.
"""

import os
import pickle
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from typing import Any

import numpy as np
import numpy.typing as npt

from edgelm.compress.data.documents import Document, tokenized
from edgelm.compress.data.text_ends import TextEnds
from edgelm.compress.data.token_bytes import token_bytes

Tokens = npt.NDArray[np.integer[Any]]
_BATCH = 256  # documents that are tokenized at a time
_BATCH_CHARACTERS = 1 << 20
_AHEAD = 2  # batches for each process that are tokenized before they are needed


@dataclass(frozen=True)
class TokenBatch:
    """Tokens of some documents, each between what a text begins and ends with.

    lengths: tokens of each document, 0 of an empty one.
    """

    tokens: Tokens
    lengths: npt.NDArray[np.int64]


class Encoder:
    """Turns documents into tokens: uint16 for vocabularies of up to 65,536 tokens, else int32."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ends = TextEnds.of(tokenizer)
        self.dtype = np.dtype(np.uint16 if token_bytes(len(tokenizer)) == 2 else np.int32)

    def __call__(self, documents: list[Document]) -> TokenBatch:
        """The tokens of one batch."""
        parts = [
            np.array(self.ends.around(ids, starts=starts), self.dtype)
            for ids, starts in tokenized(documents, self.tokenizer)
        ]
        return TokenBatch(np.concatenate(parts), np.array([len(part) for part in parts], np.int64))


def token_batches(
    documents: Iterable[Document], encoder: Encoder, *, processes: int = 1
) -> Generator[TokenBatch, None, None]:
    """Batches of tokens, in the order of the documents; memory is that of a few batches.

    Args:
        documents: to tokenize.
        encoder: of the tokenizer.
        processes: that tokenize; 1 is this process alone, with the tokenizer's own threads.
    """
    if processes == 1:
        yield from map(encoder, _batches(documents))
        return
    batches = _batches(documents)
    with ProcessPoolExecutor(
        processes,
        get_context("spawn"),  # a fork would lose the threads of the tokenizer
        _start,
        (pickle.dumps(encoder),),
    ) as pool:
        pending: deque[Future[TokenBatch]] = deque()
        try:
            for batch in islice(batches, processes * _AHEAD):
                pending.append(pool.submit(_encode, batch))
            while pending:
                yield pending.popleft().result()
                for batch in islice(batches, 1):
                    pending.append(pool.submit(_encode, batch))
        finally:
            pool.shutdown(cancel_futures=True)


class _Worker:
    """What a process of its own tokenizes with."""

    encoder: Encoder | None = None


def _start(pickled: bytes) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are parallel already
    _Worker.encoder = pickle.loads(pickled)


def _encode(batch: list[Document]) -> TokenBatch:
    assert _Worker.encoder is not None
    return _Worker.encoder(batch)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Batches of documents, limited in characters too: a document may be a whole book."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += document.characters
        if len(batch) == _BATCH or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
