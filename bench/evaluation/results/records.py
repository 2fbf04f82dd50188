"""What an evaluation found: written as JSON, read again to resume and to record in a bundle."""

import msgspec

from edgelm.compress.evaluation.metrics import Difference, Metric
from edgelm.compress.evaluation.tasks.scores import Score

SCHEMA_VERSION = 1


class Subject(msgspec.Struct, frozen=True):
    """A model that was evaluated.

    `kind` is bundle or checkpoint, `sha256` that of the bundle's graph or of the checkpoint,
    `engine` with its version what ran it. Of a bundle, `source_sha256` is that of the checkpoint
    that it was exported from, and `calibration_sha256` that of the text that it was calibrated on.
    """

    name: str
    kind: str
    sha256: str
    engine: str
    engine_version: str
    precision: str = ""
    source_sha256: str = ""
    calibration_sha256: str = ""


class TaskResult(msgspec.Struct, frozen=True):
    """The figures of one task; with a source, its figures and the paired differences, too.

    `file_sha256` is that of the task's rows, "" where the task has rows of its own.
    """

    task: str
    file_sha256: str
    seconds: float
    figures: dict[str, Score]
    against: dict[str, Score] = {}
    differences: dict[str, Difference] = {}


class Evaluation(msgspec.Struct, frozen=True):
    """A run of `edge-eval`."""

    schema_version: int
    created: str
    edgelm_version: str
    command: str
    machine: str
    subject: Subject
    limit: int | None
    max_new_tokens: int
    tasks: tuple[TaskResult, ...]
    against: Subject | None = None
    judge: str = ""


class TaskItems(msgspec.Struct, frozen=True):
    """One model's figures on one task item by item; `key` names all that they depend on.

    `dialogs` are answers that a judge compares. `rows_sha256` is of the tokens of a text, which two
    tokenizers divide differently.
    """

    key: str
    seconds: float
    metrics: dict[str, Metric]
    scores: dict[str, Score]
    dialogs: tuple[tuple[str, ...], ...] = ()
    rows_sha256: str = ""

    def all_scores(self) -> dict[str, Score]:
        """Means and standard errors of all figures."""
        return {name: one.score() for name, one in self.metrics.items()} | self.scores
