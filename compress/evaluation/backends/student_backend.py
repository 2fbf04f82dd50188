"""A Hugging Face model in memory as a backend of evaluation tasks."""

import copy
import tempfile
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from edgelm.compress.data.documents import Document
from edgelm.compress.data.packing import pack
from edgelm.compress.evaluation.backend import (
    MAX_NEW_TOKENS,
    Answer,
    Continuation,
    Conversation,
    Progress,
    no_progress,
)
from edgelm.compress.evaluation.backends.student_generation import BATCH, ToolFormat, respond
from edgelm.compress.evaluation.likelihood import continuations
from edgelm.compress.evaluation.metrics import Metric
from edgelm.compress.evaluation.tasks.text_quality import agreement_metrics, text_losses
from edgelm.compress.model import Model, Tokenizer
from edgelm.errors import BadInput


class StudentBackend:
    """A model of transformers.

    Args:
        model: in eval mode; evaluated in its own type.
        tokenizer: the model's.
        teacher: what `agreement` compares with.
        tools: how functions are offered and their calls are read.
        batch_size: answers generated at a time; None: as many as `respond` chooses.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        *,
        teacher: Model | None = None,
        tools: ToolFormat | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.teacher = teacher
        self.tools = tools
        self.batch_size = batch_size

    @property
    def context(self) -> int:
        """The model's longest sequence."""
        return int(self.model.config.max_position_embeddings)

    def continuations(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], progress: Progress = no_progress
    ) -> list[Continuation]:
        """See Backend."""
        return continuations(self.model, pairs, progress)

    def text_rows(
        self, documents: Iterable[Document], length: int, limit: int | None
    ) -> list[list[int]]:
        """See Backend."""
        max_tokens = None if limit is None else limit * length
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.npy"
            packed = pack(documents, self.tokenizer, length, path, max_tokens=max_tokens)
            rows: list[list[int]] = packed.batch(range(len(packed))).tolist()
        return rows[:limit]

    def losses(
        self, rows: Sequence[Sequence[int]], progress: Progress = no_progress
    ) -> list[float]:
        """See Backend."""
        return text_losses(self.model, torch.tensor(rows), progress)

    def agreement(
        self, rows: Sequence[Sequence[int]], progress: Progress = no_progress
    ) -> dict[str, Metric]:
        """See Backend."""
        if self.teacher is None:
            return {}
        return agreement_metrics(self.model, self.teacher, torch.tensor(rows), progress)

    def generate(
        self,
        conversations: Sequence[Conversation],
        max_new_tokens: int = MAX_NEW_TOKENS,
        progress: Progress = no_progress,
    ) -> list[Answer]:
        """See Backend."""
        return respond(
            self.model,
            self.tokenizer,
            conversations,
            max_new_tokens,
            self.batch_size,
            progress,
            self.tools,
        )

    def harness_model(self) -> Any:
        """See Backend."""
        if self.tokenizer.bos_token_id is None and self.tokenizer.eos_token_id is None:
            raise BadInput(
                "lm-eval starts requests with the beginning- or end-of-sequence token, and this "
                "tokenizer has neither; set its `bos_token` or `eos_token`"
            )
        # The harness adds a padding token to a tokenizer without one, hence the copy.
        return import_module("lm_eval.models.huggingface").HFLM(
            pretrained=self.model,
            tokenizer=copy.deepcopy(self.tokenizer),
            batch_size=self.batch_size or BATCH,
        )
