"""What a training reports survives kills and resumes."""

import json
import math
import sys
from pathlib import Path

import msgspec
import pytest

from edgelm.compress.distillation import metrics as module
from edgelm.compress.distillation.metrics import FILE, Metrics, read_metrics
from edgelm.compress.distillation.train import Step


def step_of(number: int, loss: float = 0.5) -> Step:
    return Step(
        step=number,
        steps=9,
        tokens=64 * number,
        loss=loss,
        divergence=loss,
        cross_entropy=0.0,
        hidden=0.0,
        learning_rate=1e-3,
        gradient_norm=1.0,
        tokens_per_second=100.0,
        eta_seconds=1.0,
    )


def write(folder: Path, *steps: Step) -> None:
    with Metrics(folder, 9) as metrics:
        for step in steps:
            metrics.write(step)


def scalars(folder: Path, name: str) -> dict[int, float]:
    """What TensorBoard shows: the last value of each step that was not purged."""
    from tensorboard.backend.event_processing import (  # type: ignore[import-untyped]
        event_accumulator,
    )

    events = event_accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def test_a_line_a_step(tmp_path: Path) -> None:
    write(tmp_path / "run", step_of(1, 0.75), step_of(2, 0.25))
    rows = read_metrics(tmp_path / "run" / FILE)
    assert rows[0] == json.loads(msgspec.json.encode(step_of(1, 0.75)))
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[1]["loss"] == 0.25
    assert (tmp_path / "run" / FILE).read_text().count("\n") == 2
    assert scalars(tmp_path / "run", "loss") == {1: 0.75, 2: 0.25}


def test_a_line_is_on_the_disk_at_once(tmp_path: Path) -> None:
    with Metrics(tmp_path, 9) as metrics:
        metrics.write(step_of(1))
        assert len(read_metrics(tmp_path / FILE)) == 1


def test_steps_after_the_checkpoint_are_overwritten(tmp_path: Path) -> None:
    write(tmp_path, *(step_of(number, 0.5) for number in range(1, 6)))
    write(tmp_path, step_of(4, 0.25), step_of(5, 0.125))
    rows = read_metrics(tmp_path / FILE)
    assert [(row["step"], row["loss"]) for row in rows] == [
        (1, 0.5),
        (2, 0.5),
        (3, 0.5),
        (4, 0.25),
        (5, 0.125),
    ]
    assert scalars(tmp_path, "loss") == {1: 0.5, 2: 0.5, 3: 0.5, 4: 0.25, 5: 0.125}


def test_lines_after_the_last_step_are_removed(tmp_path: Path) -> None:
    """The checkpoint of an interrupted training may be the end of a shorter one."""
    write(tmp_path, *(step_of(number) for number in range(1, 6)))
    with Metrics(tmp_path, 4):
        pass
    assert [row["step"] for row in read_metrics(tmp_path / FILE)] == [1, 2, 3, 4]


def test_a_torn_line(tmp_path: Path) -> None:
    write(tmp_path, step_of(1), step_of(2))
    path = tmp_path / FILE
    path.write_text(path.read_text()[:-20])
    assert [row["step"] for row in read_metrics(path)] == [1]
    write(tmp_path, step_of(3))
    assert [row["step"] for row in read_metrics(path)] == [1, 3]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_loss_that_is_no_number(tmp_path: Path) -> None:
    write(tmp_path, step_of(1, math.nan))
    assert read_metrics(tmp_path / FILE)[0]["loss"] is None


def test_without_a_log(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "nowhere.jsonl") == []
    write(tmp_path / "run")
    assert not (tmp_path / "run").exists(), "a run without steps leaves nothing"


def test_of_several_processes_the_first_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "is_main_process", lambda: False)
    write(tmp_path / "run", step_of(1))
    assert not (tmp_path / "run").exists()


def test_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    write(tmp_path, step_of(1))
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
