"""The methods of a model that makes vectors of texts."""

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgelm.bundle import Manifest
from edgelm.errors import BadInput
from edgelm.runtime.embedding.embedder import Embedder
from edgelm.runtime.embedding.encoding import Text
from edgelm.runtime.sequences import Sequences
from edgelm.runtime.text.tokenizer import Tokenizer


def embedder_of(sequences: Sequences, tokenizer: Tokenizer, manifest: Manifest) -> Embedder | None:
    """The embedder of an embedding model; None for a language model."""
    return Embedder(sequences, tokenizer, manifest) if manifest.embedding else None


class EmbeddingMethods:
    """`embed`, for bundles of embedding models."""

    folder: Path
    manifest: Manifest
    _embedder: Embedder | None

    @property
    def embeds(self) -> bool:
        """Whether this is an embedding model: it has `embed`, and generates nothing."""
        return self._embedder is not None

    @property
    def embedder(self) -> Embedder:
        """What `embed` consists of: tokens of texts, and vectors of tokens.

        Raises:
            BadInput: this is not an embedding model.
        """
        if self._embedder is None:
            raise BadInput(
                f"{self.folder} is a language model, which has no vectors of texts: export an "
                "embedding model, such as Qwen/Qwen3-Embedding-0.6B"
            )
        return self._embedder

    def embed(
        self,
        texts: str | Sequence[Text],
        *,
        prompt: str | None = None,
        dimensions: int | None = None,
        truncate: bool = False,
    ) -> npt.NDArray[np.float32]:
        """Vectors float32 [n, dimensions] of n texts, as the model's authors pool them.

        Args:
            texts: a text, or several; a list of token ids stands for a text, and is used as it is.
            prompt: the name of the model's prompt that is put before each text, such as "query";
                None: the model's default one, if it has one; "": none.
            dimensions: how many numbers of each vector are returned, the first ones, normalized
                again; all by default. Only models that are trained for it keep their quality.
            truncate: cut the end of a text that is too long, in place of an error.

        Raises:
            BadInput: no texts, an empty one, an invalid option, a model that is not an embedding
                model, or a closed one.
            ContextFull: a text that is too long.
            UnknownName: the model has no such prompt.
            BadBundle: the vectors are not numbers.
        """
        embedder = self.embedder
        embedder.check_dimensions(dimensions)
        return embedder.vectors(
            embedder.encode(texts, prompt=prompt, truncate=truncate), dimensions
        )

    async def aembed(
        self,
        texts: str | Sequence[Text],
        *,
        prompt: str | None = None,
        dimensions: int | None = None,
        truncate: bool = False,
    ) -> npt.NDArray[np.float32]:
        """`embed` for asyncio; cancelling the task stops it at the next chunk."""
        embedder, stop = self.embedder, threading.Event()
        embedder.check_dimensions(dimensions)
        tokens = embedder.encode(texts, prompt=prompt, truncate=truncate)
        try:
            return await asyncio.to_thread(embedder.vectors, tokens, dimensions, stop.is_set)
        finally:
            stop.set()

    def check_generates(self) -> None:
        """Raise BadInput for an embedding model: it has no head that gives the next token."""
        if self.embeds:
            raise BadInput(
                f"{self.folder} is an embedding model, which generates no text; use "
                "lm.embed(texts), or /v1/embeddings of edge-serve"
            )
