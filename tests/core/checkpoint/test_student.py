"""The record of a student is what was written, or is refused by name."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgelm.checkpoint.student import (
    STUDENT_RECORD,
    Figure,
    StageRecord,
    StudentRecord,
    read_student_record,
    write_student_record,
)
from edgelm.errors import BadCheckpoint

RECORD = StudentRecord(
    teacher="org/teacher",
    teacher_sha256="aa",
    teacher_parameters=134_515_008,
    parameters=98_000_000,
    teacher_shape={"num_hidden_layers": 30, "hidden_size": 576},
    shape={"num_hidden_layers": 24, "hidden_size": 576},
    stages=(
        StageRecord("prune", {"layers": [0, 1]}, seconds=1.5),
        StageRecord("distill", {"loss": "forward-kl"}, tokens=10**8, figures={"kl": 0.1}),
    ),
    evaluation={
        "perplexity:valid.jsonl": {
            "teacher": Figure(12.5, 0.25, 100),
            "student": Figure(14.0, None, 100),
        },
        "choice:arc.jsonl": {"student": Figure(0.4, n=50, better="higher")},
    },
    edgelm_version="0.1.0",
)


def test_round_trip(tmp_path: Path) -> None:
    write_student_record(tmp_path, RECORD)
    assert [path.name for path in tmp_path.iterdir()] == [STUDENT_RECORD] == ["compress.json"]
    assert read_student_record(tmp_path) == RECORD


def test_shares_are_shown_in_percent() -> None:
    assert Figure(0.0, is_share=True).text == "0.0%"
    assert Figure(0.4261, is_share=True).text == "42.6%"
    assert (Figure(12.5).text, Figure(0.0).text, Figure(1234.56).text) == ("12.5", "0", "1235")


def test_the_file_is_for_people_and_tools(tmp_path: Path) -> None:
    write_student_record(tmp_path, RECORD)
    text = (tmp_path / STUDENT_RECORD).read_text()
    values = json.loads(text)
    assert values["schema"] == 1
    assert values["shape"] == RECORD.shape
    assert values["stages"][1]["figures"] == {"kl": 0.1}
    assert values["evaluation"]["perplexity:valid.jsonl"]["teacher"]["error"] == 0.25
    assert text.count("\n") > 30
    assert text.endswith("}\n")


def test_a_model_that_is_no_student(tmp_path: Path) -> None:
    assert read_student_record(tmp_path) is None
    assert read_student_record(tmp_path / "nowhere") is None


def test_what_a_record_may_leave_out(tmp_path: Path) -> None:
    """Records of this schema that are younger have more fields, older ones fewer."""
    values: dict[str, Any] = msgspec.to_builtins(RECORD)
    for field in ("stages", "evaluation", "edgelm_version"):
        del values[field]
    (tmp_path / STUDENT_RECORD).write_text(json.dumps(values | {"added_later": 1}))
    assert read_student_record(tmp_path) == msgspec.structs.replace(
        RECORD, stages=(), evaluation={}, edgelm_version=""
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"parameters": "many"},
            r"is not a record of a student \(.*parameters.*\); compress again",
        ),
        ({"teacher": None}, r"is not a record of a student \(.*teacher.*\); compress again"),
        (
            {"schema": 2},
            r"has schema 2, this version of edgelm reads 1; compress again or use the version that",
        ),
    ],
    ids=["type", "null", "schema"],
)
def test_wrong_records(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / STUDENT_RECORD).write_text(json.dumps(msgspec.to_builtins(RECORD) | change))
    with pytest.raises(BadCheckpoint, match=rf"compress\.json {message}"):
        read_student_record(tmp_path)


@pytest.mark.parametrize("content", [b"", b'{"teacher": "or', b"\xff\xfe", b"[]"], ids=repr)
def test_damaged_records(tmp_path: Path, content: bytes) -> None:
    (tmp_path / STUDENT_RECORD).write_bytes(content)
    with pytest.raises(BadCheckpoint, match=r"compress\.json is not a record of a student"):
        read_student_record(tmp_path)


def test_a_field_is_missing(tmp_path: Path) -> None:
    values: dict[str, Any] = msgspec.to_builtins(RECORD)
    del values["teacher_sha256"]
    (tmp_path / STUDENT_RECORD).write_text(json.dumps(values))
    with pytest.raises(BadCheckpoint, match=r"missing required field `teacher_sha256`"):
        read_student_record(tmp_path)
