"""How close each engine's logits are to the source's, on one text, the same tokens for all."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from edgelm.bench.worker import Worker
from edgelm.bundle.records.gates import Figures
from edgelm.checkpoint.source import Checkpoint
from edgelm.export.gate.divergence import Distance
from edgelm.export.gate.measure import Evaluator
from edgelm.export.source.reference import Reference
from edgelm.export.source.text import read_passage

_ROWS = 256


class Quality:
    """The source model on a text, compared with every engine.

    The text is read at once, so that a wrong one is reported before anything is measured; the
    source is run when the first engine is compared.

    Raises:
        BadInput: the text cannot be used.
    """

    def __init__(self, checkpoint: Checkpoint, tokenizer: Path, text: Path, context: int) -> None:
        self.checkpoint = checkpoint
        self.passage = read_passage(
            text,
            Tokenizer.from_file(str(tokenizer)),
            vocab_size=checkpoint.spec.vocab_size,
            context=context,
        )
        self.evaluator: Evaluator | None = None

    def measure(self, worker: Worker) -> Figures:
        """How far a loaded engine's logits are from the source's."""
        if self.evaluator is None:
            self.evaluator = Evaluator.from_passage(Reference(self.checkpoint), self.passage)
        distance = Distance()
        reference = self.evaluator.reference
        head = reference.head()
        with tempfile.TemporaryDirectory(prefix="edgelm-logits-") as folder:
            path = Path(folder) / "logits.npy"
            for tokens, hidden in zip(self.passage.tokens, self.evaluator.hidden, strict=True):
                worker.ask("logits", tokens=tokens.tolist(), path=str(path))
                rows = np.load(path, mmap_mode="r")
                for at in range(0, len(tokens), _ROWS):
                    ours = torch.from_numpy(np.array(rows[at : at + _ROWS, : head.shape[0]]))
                    source = reference.logits(hidden[at : at + _ROWS], head)
                    distance.add(source, ours, tokens[at + 1 : at + 1 + len(ours)])
        return distance.figures()
