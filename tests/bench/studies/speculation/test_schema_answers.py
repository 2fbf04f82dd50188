"""Schemas of reference answers, and the measurement under them."""

import json
import sys
from pathlib import Path

import pytest

from bench.studies.speculation import schema_answers
from bench.studies.speculation.schema_answers import schema_of
from edgelm.bench.speculation.extraction import EXTRACTION
from edgelm.bench.speculation.task import Task
from tests.schemas.json_check import is_valid


@pytest.mark.parametrize("task", EXTRACTION, ids=lambda task: task.prompt[:20])
def test_a_reference_matches_its_schema_and_no_other_keys_do(task: Task) -> None:
    value = json.loads(task.reference)
    schema = schema_of(value)
    assert is_valid(value, schema)
    record = value[0] if isinstance(value, list) else value
    changed = {**record, "more": 1}
    assert not is_valid([changed] if isinstance(value, list) else changed, schema)


def test_both_modes_give_the_same_answers(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task("Ada is 36.", '{"name": "Ada", "age": 36}')
    monkeypatch.setattr(schema_answers, "EXTRACTION", (task,))
    monkeypatch.setattr(sys, "argv", ["study", str(bundle), "--rounds", "1", "--threads", "1"])
    schema_answers.main()
    printed = capsys.readouterr().out
    assert "; 0 answers differ; others used " in printed
