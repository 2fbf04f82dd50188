"""The vectors of texts, on the sequences of a model."""

import threading
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from edgelm.bundle import Manifest
from edgelm.errors import BadInput
from edgelm.runtime.embedding.encoding import Text, TextEncoder
from edgelm.runtime.embedding.pooling import Vector, batch_vectors, finish, text_vector
from edgelm.runtime.embedding.text_groups import group_texts
from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.session import Cancelled, Session, TextRuns, Tokens
from edgelm.runtime.sequences import Sequences
from edgelm.runtime.text.tokenizer import Tokenizer


def _never() -> bool:
    return False


class Embedder:
    """Runs the texts of a call, several short ones at once where the engine can.

    The runs of several callers alternate.

    Args:
        sequences: of the model.
        tokenizer: of the model.
        manifest: of a bundle of an embedding model.
    """

    def __init__(self, sequences: Sequences, tokenizer: Tokenizer, manifest: Manifest) -> None:
        assert manifest.embedding is not None
        self.settings = manifest.embedding.settings
        self.dimensions = manifest.embedding.dimensions
        limit = min(self.settings.max_tokens, sequences.capacity)
        self.encoder = TextEncoder(tokenizer, self.settings, limit, manifest.spec.vocab_size)
        self._sequences = sequences

    def encode(
        self, texts: str | Sequence[Text], *, prompt: str | None = None, truncate: bool = False
    ) -> list[Tokens]:
        """Tokens of every text, all of them checked before anything runs.

        Raises:
            BadInput, ContextFull, UnknownName: see LanguageModel.embed.
        """
        if isinstance(texts, str):
            texts = [texts]
        if not isinstance(texts, Sequence) and not isinstance(texts, np.ndarray):
            raise BadInput(f"texts is {type(texts).__name__}, expected a text or a list of texts")
        if not len(texts):
            raise BadInput("there are no texts; expected at least one")
        before = self.encoder.prompt_text(prompt)
        found = []
        for number, text in enumerate(texts):
            try:
                found.append(self.encoder.encode(text, before, truncate=truncate))
            except BadInput as error:
                raise type(error)(f"texts[{number}]: {error}") from None
        return found

    def check_dimensions(self, dimensions: int | None) -> None:
        """Raise BadInput unless vectors can have this many numbers."""
        if dimensions is None:
            return
        whole = isinstance(dimensions, int) and not isinstance(dimensions, bool)
        if not whole or not 1 <= dimensions <= self.dimensions:
            raise BadInput(f"dimensions is {dimensions!r}, expected 1 to {self.dimensions}")

    def vectors(
        self,
        texts: Sequence[Tokens],
        dimensions: int | None = None,
        cancelled: Callable[[], bool] = _never,
    ) -> npt.NDArray[np.float32]:
        """Vectors [n, dimensions] of the tokens of texts.

        Raises:
            Cancelled: `cancelled` returned true.
            BadInput: the model is closed.
        """
        self.check_dimensions(dimensions)
        rows = np.empty((len(texts), self.dimensions), dtype=np.float32)
        lengths = [len(tokens) for tokens in texts]
        for group in group_texts(lengths, self._tokens_together()):
            if cancelled():  # a run of several texts cannot be interrupted
                raise Cancelled
            rows[group] = self._group_vectors([texts[index] for index in group], cancelled)
        return finish(rows, self.settings, dimensions)

    def _tokens_together(self) -> int:
        """Tokens that a run over several texts takes; 0 where each text runs alone."""
        session = self._sequences.slots[0].session
        return session.chunk if self._sequences.batching and _text_runs(session) else 0

    def _group_vectors(self, texts: Sequence[Tokens], cancelled: Callable[[], bool]) -> Vector:
        """The pooled states [n, hidden_size] of texts that run together, or of a single one."""
        owner = threading.Event()  # any object that can be referenced
        try:
            return self._run(owner, texts, cancelled)
        except BaseException as error:
            self._sequences.interrupted(owner, error)
            raise

    def _run(self, owner: object, texts: Sequence[Tokens], cancelled: Callable[[], bool]) -> Vector:
        sequences = self._sequences
        slot, _ = sequences.enter(owner, texts[0].tolist(), cancelled)
        session, pooling = slot.session, self.settings.pooling
        session.cancel_when(cancelled)
        try:
            if len(texts) == 1:
                turn = partial(sequences.turn, cancelled)
                return text_vector(session, texts[0], pooling, turn=turn)[None]
            with sequences.turn(cancelled):
                sequences.check_open()
                runs = _text_runs(session)
                assert runs is not None, "groups are of one text without it"
                return batch_vectors(runs, texts, pooling)
        finally:
            session.cancel_when(None)
            sequences.leave(slot, done=True)


def _text_runs(session: Session) -> TextRuns | None:
    """How a session's engine runs several texts at once; None where it cannot."""
    return session.engine.texts if isinstance(session, EngineSession) else None
