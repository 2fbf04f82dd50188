"""Training: what it minimizes, that it resumes to the same result, what stops it."""

import errno
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from edgelm.compress.data.packing import PackedTokens
from edgelm.compress.distillation.head_loss import Objective
from edgelm.compress.distillation.settings import Distillation
from edgelm.compress.distillation.student_teacher import Distiller
from edgelm.compress.distillation.teacher_cache import CacheSettings, build_cache
from edgelm.compress.distillation.train import distill, rows_of_step
from edgelm.compress.evaluation.held_out import held_out_divergence
from edgelm.errors import BadInput, Diverged, DoesNotFit
from edgelm.quantize.precision import Int4, Int8
from tests.compress.training import SETTINGS, rows, same, teacher_and_student, train, weights
from tests.models import TINY, tiny_model

QAD = (Int4(16), Int8(16))


def replaced(**over: Any) -> Distillation:
    return msgspec.structs.replace(SETTINGS, **over)


@pytest.mark.parametrize("over", [{}, {"loss": "jsd"}, {"cross_entropy": 0.2}], ids=str)
def test_the_student_comes_nearer(tmp_path: Path, over: dict[str, Any]) -> None:
    teacher, student = teacher_and_student()
    held_out = rows(seed=1).batch(range(8))
    before = held_out_divergence(student, teacher, held_out)
    settings = replaced(tokens=100 * 8 * 16, batch_size=8, learning_rate=1e-3, **over)
    steps = list(distill(student, teacher, rows(1000), settings, tmp_path))
    assert held_out_divergence(student, teacher, held_out) < 0.7 * before
    assert [step.step for step in steps] == list(range(1, 101))
    assert steps[-1].tokens == 100 * 8 * 16
    assert steps[-1].eta_seconds == 0


@pytest.mark.parametrize("name", TINY)
def test_nothing_to_learn_from_oneself(name: str) -> None:
    teacher, student = tiny_model(name), tiny_model(name)
    losses = Distiller(student, teacher, Objective())(rows().batch(range(2)))
    losses.total.backward()
    assert abs(float(losses.total.detach())) < 1e-5
    largest = max(float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None)
    assert largest < 1e-4


def test_rate_by_hand() -> None:
    settings = Distillation(
        tokens=10 * 8 * 512, warmup=0.2, learning_rate=1.0, final_learning_rate=0.2
    )
    assert settings.steps == 10
    assert [settings.learning_rate_at(step) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert settings.learning_rate_at(6) == pytest.approx(0.2 + 0.8 * 0.5)
    assert settings.learning_rate_at(10) == pytest.approx(0.2)


def test_every_row_once_an_epoch() -> None:
    found = np.concatenate([rows_of_step(step, 10, 4, seed=3) for step in range(5)])
    assert sorted(found[:10].tolist()) == list(range(10))
    assert sorted(found[10:].tolist()) == list(range(10))
    assert found[:10].tolist() != found[10:].tolist()
    assert np.array_equal(rows_of_step(4, 10, 4, seed=3), found[16:])


def test_parts_of_a_batch_add_up(tmp_path: Path) -> None:
    results = []
    for part in (4, 2, 1):
        teacher, student = teacher_and_student()
        train(student, teacher, tmp_path / str(part), replaced(micro_batch=part))
        results.append(weights(student))
    for other in results[1:]:
        for key, tensor in results[0].items():
            torch.testing.assert_close(other[key], tensor, rtol=0, atol=2e-5)


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    results = []
    for checkpointing in (False, True):
        teacher, student = teacher_and_student()
        settings = replaced(gradient_checkpointing=checkpointing)
        train(student, teacher, tmp_path / str(checkpointing), settings)
        results.append(weights(student))
    for key, tensor in results[0].items():
        torch.testing.assert_close(results[1][key], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("precision", [None, QAD], ids=["kd", "qad"])
@pytest.mark.parametrize("over", [{}, {"layer_map": ((-1, -1), (1, 2))}], ids=["logits", "hidden"])
def test_a_stopped_run_goes_on_to_the_same_result(
    tmp_path: Path, over: dict[str, Any], precision: Any
) -> None:
    teacher, student = teacher_and_student()
    settings = replaced(**over)
    whole = train(student, teacher, tmp_path / "whole", settings, precision=precision)
    expected = weights(student)

    teacher, student = teacher_and_student()
    begun = distill(student, teacher, rows(), settings, tmp_path / "parts", precision=precision)
    first = [next(begun) for _ in range(5)]  # the last checkpoint is of step 4
    begun.close()
    teacher, student = teacher_and_student()
    rest = train(student, teacher, tmp_path / "parts", settings, precision=precision)
    assert [step.step for step in rest] == [5, 6, 7, 8]
    losses = [step.loss for step in first[:4]] + [step.loss for step in rest]
    assert losses == [step.loss for step in whole]
    assert same(weights(student), expected)


def run(folder: Path, *options: str, launcher: tuple[str, ...] = ()) -> int:
    command = [
        sys.executable,
        "-m",
        *launcher,
        "tests.compress.run_training",
        str(folder),
        *options,
    ]
    if launcher:
        command = [sys.executable, "-m", *launcher, "-m", *command[len(launcher) + 2 :]]
    return subprocess.run(command, capture_output=True, check=False, timeout=300).returncode


def result(folder: Path) -> dict[str, Any]:
    return dict(torch.load(folder / "result.pt", weights_only=False))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run(folder) == 0
    return result(folder)


@pytest.mark.parametrize("how", [("--die-at", "5"), ("--die-saving", "6")], ids=["step", "saving"])
def test_kill_9_and_start_again(
    tmp_path: Path, undisturbed: dict[str, Any], how: tuple[str, str]
) -> None:
    assert run(tmp_path, *how) == -9
    assert run(tmp_path) == 0
    again = result(tmp_path)
    assert again["losses"] == [one for one in undisturbed["losses"] if one[0] > 4]
    assert same(again["weights"], undisturbed["weights"])
    names = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert sorted(names) == ["settings.json", "step-00000008"]


TWO = ("torch.distributed.run", "--standalone", "--nproc_per_node=2")


def check_near(folder: Path, undisturbed: dict[str, Any], first: int = 0) -> None:
    both = result(folder)
    expected = undisturbed["losses"][first:]
    assert [step for step, _ in both["losses"]] == [step for step, _ in expected]
    for (_, ours), (_, theirs) in zip(both["losses"], expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    for key, tensor in undisturbed["weights"].items():
        torch.testing.assert_close(both["weights"][key], tensor, rtol=0, atol=2e-5)


def test_two_processes_equal_one(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    assert run(tmp_path, "--micro-batch", "2", launcher=TWO) == 0
    check_near(tmp_path, undisturbed)


def test_two_shards_equal_one_and_resume(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    sharded = ("--micro-batch", "2", "--sharded")
    assert run(tmp_path, *sharded, "--die-at", "5", launcher=TWO) != 0
    saved = tmp_path / "checkpoints" / "step-00000004"
    assert len(list(saved.glob("pytorch_model_fsdp_0/*.distcp"))) == 2, "a file a process"
    assert run(tmp_path, *sharded, launcher=TWO) == 0
    check_near(tmp_path, undisturbed, first=4)


def test_two_shards_round_as_one_and_resume(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    assert run(one, "--rounded") == 0
    sharded = ("--rounded", "--micro-batch", "2", "--sharded")
    assert run(two, *sharded, "--die-at", "5", launcher=TWO) != 0
    assert run(two, *sharded, launcher=TWO) == 0
    check_near(two, result(one), first=4)


def test_loss_that_is_no_number(tmp_path: Path) -> None:
    teacher, student = teacher_and_student()
    train(student, teacher, tmp_path, replaced(stop_after=4 * 64))
    kept = weights(student)
    with torch.no_grad():
        teacher.model.norm.weight.fill_(math.nan)
    with pytest.raises(Diverged) as stopped:
        train(student, teacher, tmp_path, SETTINGS)
    batch = sorted(rows_of_step(4, 24, 4, 0).tolist())
    assert "the loss of step 5 is nan" in str(stopped.value)
    assert f"on rows {batch} of the data" in str(stopped.value)
    assert "the checkpoint of step 4 is kept" in str(stopped.value)
    assert (tmp_path / "step-00000004").is_dir()
    assert same(weights(student), kept), "nothing was updated"


def test_disk_full_at_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import Accelerator

    teacher, student = teacher_and_student()
    train(student, teacher, tmp_path, replaced(stop_after=4 * 64))

    def full(self: Any, folder: str, **_: Any) -> None:
        Path(folder).mkdir()
        (Path(folder) / "half").write_bytes(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "save_state", full)
        with pytest.raises(DoesNotFit, match=r"no room for a checkpoint .* step 4 is kept"):
            train(student, teacher, tmp_path, SETTINGS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["settings.json", "step-00000004"]
    assert train(student, teacher, tmp_path, SETTINGS)[-1].step == 8


@pytest.mark.parametrize(
    ("over", "data", "message"),
    [
        ({}, rows(length=8), "packed in rows of 8 tokens, the run asks for 16"),
        ({}, rows(3), "has 3 rows of 16 tokens, fewer than the 4 of one step"),
        ({"batch_size": 6}, rows(), "batch_size 6 is not a multiple of micro_batch 4"),
        ({"cross_entropy": 1.5}, rows(), "cross_entropy 1.5: expected a share"),
        ({"temperature": 0.0}, rows(), "temperature 0: expected a number above zero"),
        ({"layer_map": ((7, 0),)}, rows(), "layer map 7:0: the student has layers 0 to 2"),
    ],
)
def test_what_does_not_go_together(
    tmp_path: Path, over: dict[str, Any], data: PackedTokens, message: str
) -> None:
    teacher, student = teacher_and_student()
    with pytest.raises(BadInput, match=message):
        next(distill(student, teacher, data, replaced(**over), tmp_path))


def test_no_teacher(tmp_path: Path) -> None:
    _, student = teacher_and_student()
    with pytest.raises(BadInput, match="only cross_entropy = 1 can train without one"):
        train(student, None, tmp_path, SETTINGS)
    losses = [one.loss for one in train(student, None, tmp_path, replaced(cross_entropy=1.0))]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("over", "count", "message"),
    [
        ({"layer_map": ((-1, -1),)}, 24, "only a live teacher has"),
        ({"loss": "jsd"}, 24, "loss 'jsd' at temperature 1 needs a live teacher"),
        ({"temperature": 2.0}, 24, "at temperature 2 needs a live teacher"),
        ({}, 16, "cache is of 16 rows, the data has 24"),
    ],
)
def test_what_a_cached_teacher_cannot_serve(
    tmp_path: Path, over: dict[str, Any], count: int, message: str
) -> None:
    teacher, student = teacher_and_student()
    cache = build_cache(teacher, "tiny", rows(count), CacheSettings(size=4), tmp_path / "cache")
    with pytest.raises(BadInput, match=message):
        train(student, cache, tmp_path / "run", replaced(**over))


def test_a_folder_of_another_run(tmp_path: Path) -> None:
    teacher, student = teacher_and_student()
    train(student, teacher, tmp_path, SETTINGS)
    with pytest.raises(BadInput, match=r"another run|learning_rate 0.003, now 0.1"):
        train(student, teacher, tmp_path, replaced(learning_rate=0.1))
