"""Training: what it minimizes, that it resumes to the same result, what stops it."""

import errno
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from edgelm.compress.data.packing import PackedTokens
from edgelm.compress.distillation.cache_settings import CacheSettings
from edgelm.compress.distillation.loss.objective import Objective
from edgelm.compress.distillation.settings import Distillation
from edgelm.compress.distillation.student_teacher import Distiller
from edgelm.compress.distillation.teacher_cache import build_cache
from edgelm.compress.distillation.train import distill, rows_of_step
from edgelm.compress.evaluation.held_out import held_out_divergence
from edgelm.errors import BadInput, Diverged, DoesNotFit
from edgelm.quantize.precision import Int4, Int8
from tests.checkpoints.models import REPRESENTATIVE, TINY, tiny_model
from tests.compress.training import SETTINGS, rows, same, teacher_and_student, train, weights
from tests.slow import slow_but

QAD = (Int4(16), Int8(16))


def replaced(**over: Any) -> Distillation:
    return msgspec.structs.replace(SETTINGS, **over)


@pytest.mark.parametrize("over", [{}, {"loss": "jsd"}, {"cross_entropy": 0.2}], ids=str)
def test_distillation_reduces_the_divergence(tmp_path: Path, over: dict[str, Any]) -> None:
    teacher, student = teacher_and_student()
    held_out = rows(seed=1).batch(range(8))
    before = held_out_divergence(student, teacher, held_out)
    # Checkpoints and parts of a batch would take most of the time.
    settings = replaced(
        tokens=60 * 8 * 16, batch_size=8, micro_batch=8, learning_rate=1.5e-3, checkpoint_steps=60
    )
    settings = msgspec.structs.replace(settings, **over)
    steps = list(distill(student, teacher, rows(500), settings, tmp_path))
    assert held_out_divergence(student, teacher, held_out) < 0.8 * before
    assert [step.step for step in steps] == list(range(1, 61))
    assert steps[-1].tokens == 60 * 8 * 16
    assert steps[-1].eta_seconds == 0


@pytest.mark.parametrize("name", slow_but(TINY, REPRESENTATIVE))
def test_nothing_to_learn_from_oneself(name: str) -> None:
    teacher, student = tiny_model(name), tiny_model(name)
    losses = Distiller(student, teacher, Objective())(rows().batch(range(2)))
    losses.total.backward()
    assert abs(float(losses.total.detach())) < 1e-5
    largest = max(float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None)
    assert largest < 1e-4


def test_the_learning_rate_of_a_long_run_with_a_tail() -> None:
    """Stable at the peak until the last fifth; a shorter run is the same until its own tail."""
    settings = Distillation(
        tokens=20 * 8 * 512, warmup=0.1, learning_rate=1.0, final_learning_rate=0.2, schedule="wsd"
    )
    rates = [settings.learning_rate_at(step) for step in range(20)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[2:17] == [1.0] * 15
    assert rates[17:] == pytest.approx([0.8, 0.6, 0.4])
    longer = msgspec.structs.replace(settings, tokens=40 * 8 * 512, warmup=0.05)
    assert [longer.learning_rate_at(step) for step in range(17)] == rates[:17]
    constant = msgspec.structs.replace(settings, schedule="constant")
    assert [constant.learning_rate_at(step) for step in (0, 1, 2, 19)] == [0.5, 1.0, 1.0, 1.0]


def test_the_learning_rate_by_hand() -> None:
    settings = Distillation(
        tokens=10 * 8 * 512, warmup=0.2, learning_rate=1.0, final_learning_rate=0.2
    )
    assert settings.steps == 10
    assert [settings.learning_rate_at(step) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert settings.learning_rate_at(6) == pytest.approx(0.2 + 0.8 * 0.5)
    assert settings.learning_rate_at(10) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("peak", "lowest"), [(5e-4, 1e-5), (7e-5, 1e-5), (1e-5, 2e-6), (1e-6, 2e-7)]
)
def test_a_schedule_never_rises_to_its_end(peak: float, lowest: float) -> None:
    """The default of 1e-5 was above the peak of a careful run, whose rate then rose tenfold."""
    settings = Distillation(tokens=100 * 8 * 512, learning_rate=peak)
    rates = [settings.learning_rate_at(step) for step in range(100)]
    assert max(rates) == pytest.approx(peak)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert settings.learning_rate_at(100) == pytest.approx(lowest)
    with pytest.raises(BadInput, match=r"final_learning_rate .* is above the peak"):
        msgspec.structs.replace(settings, final_learning_rate=2 * peak).check()
    msgspec.structs.replace(settings, final_learning_rate=2 * peak, schedule="constant").check()


@pytest.mark.parametrize(
    ("steps", "warmup", "longer", "hint"),
    [
        (50_000, 0.2469, 100_000, "; warmup = 0.123445 keeps the 12345 steps of the warmup"),
        (16, 0.125, 40, "; warmup = 0.04 keeps the 2 steps of the warmup"),
        (16, 0.0, 40, "; warmup = 0.0 keeps the 0 steps of the warmup"),
        (100, 0.9, 50, ""),  # a warmup that is longer than the training
    ],
)
def test_the_warmup_that_keeps_what_is_done(
    steps: int, warmup: float, longer: int, hint: str
) -> None:
    before = Distillation(
        batch_size=1, sequence_length=1, tokens=steps, warmup=warmup, schedule="wsd"
    )
    after = msgspec.structs.replace(before, tokens=longer, warmup=warmup or 0.1)
    reason = after.why_not_after(before, 10) or ""
    assert reason.startswith("the learning rate of step 1 was ")
    assert reason.partition("; ")[2] == hint.removeprefix("; ")
    if hint:
        share = float(hint.split()[3])
        assert msgspec.structs.replace(after, warmup=share).why_not_after(before, 10) is None


def test_no_warmup_keeps_what_the_schedule_changes() -> None:
    before = Distillation(batch_size=1, sequence_length=1, tokens=20, warmup=0.1)
    after = msgspec.structs.replace(before, tokens=40)
    assert "; warmup = 0.04 keeps" in (after.why_not_after(before, 2) or "")
    assert (after.why_not_after(before, 4) or "warmup").count("warmup") == 0


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
def test_a_stopped_run_resumes_to_the_same_result(
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


def test_a_loss_that_is_not_finite(tmp_path: Path) -> None:
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
    assert "the next start resumes from the checkpoint of step 4" in str(stopped.value)
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
        with pytest.raises(DoesNotFit, match=r"no room .* resumes from the checkpoint of step 4"):
            train(student, teacher, tmp_path, SETTINGS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["settings.json", "step-00000004"]
    assert train(student, teacher, tmp_path, SETTINGS)[-1].step == 8


@pytest.mark.parametrize(
    ("over", "data", "message"),
    [
        ({}, rows(length=8), "packed in rows of 8 tokens, but sequence_length is 16"),
        ({}, rows(3), "has 3 rows of 16 tokens, fewer than the 4 of one step"),
        ({"cross_entropy": 1.5}, rows(), "cross_entropy 1.5: expected a share"),
        ({"temperature": 0.0}, rows(), "temperature 0: expected a number above 0"),
        ({"layer_map": ((7, 0),)}, rows(), "layer map 7:0: the student has layers 0 to 2"),
    ],
)
def test_what_does_not_match(
    tmp_path: Path, over: dict[str, Any], data: PackedTokens, message: str
) -> None:
    teacher, student = teacher_and_student()
    with pytest.raises(BadInput, match=message):
        next(distill(student, teacher, data, replaced(**over), tmp_path))


def test_no_teacher(tmp_path: Path) -> None:
    _, student = teacher_and_student()
    with pytest.raises(BadInput, match="training without one needs cross_entropy = 1"):
        train(student, None, tmp_path, SETTINGS)
    losses = [one.loss for one in train(student, None, tmp_path, replaced(cross_entropy=1.0))]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("over", "count", "message"),
    [
        ({"layer_map": ((-1, -1),)}, 24, "needs a live teacher"),
        ({"loss": "jsd"}, 24, "loss 'jsd' at temperature 1 needs a live teacher"),
        ({"temperature": 2.0}, 24, "at temperature 2 needs a live teacher"),
        ({}, 16, "cache has 16 rows, the data has 24"),
    ],
)
def test_what_a_cached_teacher_does_not_support(
    tmp_path: Path, over: dict[str, Any], count: int, message: str
) -> None:
    teacher, student = teacher_and_student()
    cache = build_cache(teacher, "tiny", rows(count), CacheSettings(size=4), tmp_path / "cache")
    with pytest.raises(BadInput, match=message):
        train(student, cache, tmp_path / "run", replaced(**over))


def test_a_folder_of_another_run(tmp_path: Path) -> None:
    teacher, student = teacher_and_student()
    train(student, teacher, tmp_path, SETTINGS)
    with pytest.raises(BadInput, match=r"other settings \(learning_rate 0.003, now 0.1\)"):
        train(student, teacher, tmp_path, replaced(learning_rate=0.1))


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_the_last_micro_batch_may_be_smaller(tmp_path: Path, micro_batch: int) -> None:
    results = []
    for name, size in (("whole", 4), ("parts", micro_batch)):
        teacher, student = teacher_and_student()
        steps = train(student, teacher, tmp_path / name, replaced(micro_batch=size))
        results.append((steps[-1].loss, weights(student)))
    (loss, whole), (other, parts) = results
    assert other == pytest.approx(loss, rel=1e-5)
    for key, tensor in whole.items():
        # Adam divides by the size of a gradient, so the rounding of small ones grows; a row that
        # counted more than another would differ by a learning rate, 3e-3.
        torch.testing.assert_close(parts[key], tensor, rtol=0, atol=3e-4)


@pytest.mark.parametrize(
    ("batch", "micro", "processes", "refused"),
    [
        (1152, 5, 256, False),  # the paper's batch: some processes have four rows, others five
        (1152, 4, 256, True),
        (1152, 9, 128, False),
        (8, 3, 1, False),
        (4, 1, 8, True),
    ],
)
def test_rows_are_divided_over_processes(
    batch: int, micro: int, processes: int, refused: bool
) -> None:
    settings = replaced(batch_size=batch, micro_batch=micro)
    if not refused:
        settings.check(processes)
        return
    with pytest.raises(BadInput, match=rf"batch_size {batch} cannot be divided over {processes}"):
        settings.check(processes)
