"""The record of a student: `compress.json` next to its weights.

It has the teacher, the stages and the measured quality. compress writes it, export copies it into
the bundle's lineage and model card.
"""

from pathlib import Path
from typing import Any

import msgspec

from edgelm.errors import BadBundle, BadCheckpoint
from edgelm.files.bounded_read import read_bounded
from edgelm.reasons import reason

STUDENT_RECORD = "compress.json"
SCHEMA = 1
_MAX_BYTES = 16 << 20


class Figure(msgspec.Struct, frozen=True):
    """One measured quality, with the standard error of its mean if known.

    is_share: it is a part of a whole, from 0 to 1, which tables show in percent. ratio: to the
    teacher's figure on the same items, and ratio_error: the standard error of that, which is
    smaller than the figures' own errors would make it, since both fail on much the same items.
    """

    value: float
    error: float | None = None
    n: int = 0
    better: str = "lower"
    is_share: bool = False
    ratio: float | None = None
    ratio_error: float | None = None

    @property
    def text(self) -> str:
        """The value with four significant digits, or in percent."""
        return f"{self.value:.1%}" if self.is_share else f"{self.value:.4g}"

    @property
    def ratio_text(self) -> str:
        """The ratio to the teacher's figure with its error; empty without one."""
        if self.ratio is None or self.ratio_error is None:
            return ""
        if self.is_share:
            return f"{self.ratio:.1%} ± {100 * self.ratio_error:.1f} of the teacher's"
        return f"×{self.ratio:.3f} ± {self.ratio_error:.3f} of the teacher's"


class StageRecord(msgspec.Struct, frozen=True):
    """One stage: its settings, the number of training tokens and its results."""

    name: str
    settings: dict[str, Any] = {}
    tokens: int = 0
    seconds: float = 0.0
    figures: dict[str, Any] = {}


class StudentRecord(msgspec.Struct, frozen=True):
    """How a student was made.

    shape and teacher_shape: sizes under Hugging Face's names. evaluation: figures by task, of
    `teacher`, `pruned` and `student`. files: all files of the student's folder; empty in records
    of versions that did not list them.
    """

    teacher: str
    teacher_sha256: str
    teacher_parameters: int
    parameters: int
    teacher_shape: dict[str, int]
    shape: dict[str, int]
    stages: tuple[StageRecord, ...] = ()
    evaluation: dict[str, dict[str, Figure]] = {}
    edgelm_version: str = ""
    schema: int = SCHEMA
    files: tuple[str, ...] = ()


def write_student_record(folder: Path, record: StudentRecord) -> None:
    """Write `compress.json`."""
    text = msgspec.json.format(msgspec.json.encode(record), indent=1)
    (folder / STUDENT_RECORD).write_bytes(text + b"\n")


def read_student_record(folder: Path) -> StudentRecord | None:
    """The record of a student; None for a model without one.

    Raises:
        BadCheckpoint: the record is damaged or of another version.
    """
    path = folder / STUDENT_RECORD
    try:
        record = msgspec.json.decode(read_bounded(path, at_most=_MAX_BYTES), type=StudentRecord)
    except FileNotFoundError:
        return None
    except (BadBundle, ValueError, RecursionError) as error:
        raise BadCheckpoint(
            f"{path} is not a record of a student ({reason(error)}); compress again, or remove it"
        ) from None
    if record.schema != SCHEMA:
        raise BadCheckpoint(
            f"{path} has schema {record.schema}, this version of edgelm reads {SCHEMA}; compress "
            "again or use the version that wrote it"
        )
    return record
