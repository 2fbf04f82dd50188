"""Training killed and resumed, and shared by two processes: the result of one uninterrupted run.

Starting a process costs more than its training, so what need not die runs here, and one start of
two processes does several jobs.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from edgelm.errors import BadInput
from tests.compress.run_training import Job, run_job
from tests.compress.training import same, teacher_and_student
from tests.forks import run_forked


def run_elsewhere(*jobs: str, processes: int = 1) -> int:
    """Run jobs in processes of their own; returns their exit code."""
    return run_forked("tests.compress.run_training", *jobs, processes=processes)


def run_here(folder: Path, **options: Any) -> dict[str, Any]:
    """Run a job in this process; returns its result."""
    folder.mkdir(exist_ok=True)
    run_job(Job(folder, **options))
    return result(folder)


def result(folder: Path) -> dict[str, Any]:
    return {"folder": folder, **torch.load(folder / "result.pt", weights_only=False)}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_here(tmp_path_factory.mktemp("uninterrupted"), watched=True)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Jobs of two processes: one uninterrupted, two sharded, killed after step 5 and resumed."""
    folder = tmp_path_factory.mktemp("two")
    whole, shards, quantized = (folder / name for name in ("whole", "shards", "quantized"))
    for each in (whole, shards, quantized):
        each.mkdir()
    jobs = [
        f"{shards},micro_batch=2,sharded,watched",
        f"{quantized},micro_batch=2,sharded,quantized",
    ]
    uneven, halves = folder / "uneven", folder / "halves"
    uneven.mkdir()
    halves.mkdir()
    first = [
        f"{whole},micro_batch=2,watched",
        f"{uneven},batch_size=3,micro_batch=2",
        f"{halves},micro_batch=2,sharded,bf16",
        f"{jobs[0]},stop_at=5",
        f"{jobs[1]},die_at=5",
    ]
    assert run_elsewhere(*first, processes=2) != 0
    assert not (shards / "result.pt").exists()
    saved = shards / "checkpoints" / "step-00000004"
    assert len(list(saved.glob("pytorch_model_fsdp_0/*.distcp"))) == 2, "one file per process"
    assert run_elsewhere(*jobs, processes=2) == 0
    return folder


@pytest.mark.parametrize("how", ["die_at=5", "die_saving=6"])
def test_kill_9_and_resume(tmp_path: Path, uninterrupted: dict[str, Any], how: str) -> None:
    assert run_elsewhere(f"{tmp_path},{how}") == -9
    resumed = run_here(tmp_path)
    assert resumed["losses"] == [one for one in uninterrupted["losses"] if one[0] > 4]
    assert same(resumed["weights"], uninterrupted["weights"])
    names = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert sorted(names) == ["settings.json", "step-00000008"]


def test_sigterm_writes_a_checkpoint_first(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    assert run_elsewhere(f"{tmp_path},sigterm_at=5") == -15
    assert (tmp_path / "checkpoints" / "step-00000005").is_dir()
    resumed = run_here(tmp_path)
    assert resumed["losses"] == [one for one in uninterrupted["losses"] if one[0] > 5]
    assert same(resumed["weights"], uninterrupted["weights"])


def test_sigterm_to_one_process_ends_all_after_the_same_step(tmp_path: Path) -> None:
    assert run_elsewhere(f"{tmp_path},micro_batch=2,sharded,sigterm_at=2", processes=2) == -15
    saved = tmp_path / "checkpoints" / "step-00000003"
    assert len(list(saved.glob("pytorch_model_fsdp_0/*.distcp"))) == 2, "one file per process"


def measured(folder: Path) -> dict[int, float]:
    lines = (folder / "held_out.jsonl").read_text().splitlines()
    return {row["step"]: row["divergence"] for row in map(json.loads, lines)}


@pytest.mark.slow
def test_held_out_rows_and_milestones_of_any_number_of_processes(
    two: Path, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    """Also after an interruption, which repeats steps; one of ten rows is a part of its own."""
    expected = measured(uninterrupted["folder"])
    assert list(expected) == [3, 6, 8]
    milestone = torch.load(uninterrupted["folder"] / "milestones" / "256")
    for name in ("whole", "shards"):
        assert measured(two / name) == pytest.approx(expected, abs=1e-5)
        for key, tensor in torch.load(two / name / "milestones" / "256").items():
            torch.testing.assert_close(tensor, milestone[key], rtol=0, atol=2e-5)
    assert not same(milestone, uninterrupted["weights"])
    assert run_elsewhere(f"{tmp_path},watched,die_at=7") == -9
    run_here(tmp_path, watched=True)
    assert measured(tmp_path) == expected
    assert same(torch.load(tmp_path / "milestones" / "256"), milestone)


def check_near(
    folder: Path, uninterrupted: dict[str, Any], first: int = 0, *, within: float = 2e-5
) -> None:
    both = result(folder)
    expected = uninterrupted["losses"][first:]
    assert [step for step, _ in both["losses"]] == [step for step, _ in expected]
    for (_, ours), (_, theirs) in zip(both["losses"], expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    for key, tensor in uninterrupted["weights"].items():
        torch.testing.assert_close(both["weights"][key], tensor, rtol=0, atol=within)


def test_two_processes_equal_one(two: Path, uninterrupted: dict[str, Any]) -> None:
    check_near(two / "whole", uninterrupted)


def test_an_uneven_batch_of_two_processes(two: Path, tmp_path: Path) -> None:
    # Rows are added in another order, which Adam enlarges where a gradient is near zero.
    whole = run_here(tmp_path, batch_size=3, micro_batch=3)
    check_near(two / "uneven", whole, within=1e-4)


def test_two_shards_equal_one_and_resume(two: Path, uninterrupted: dict[str, Any]) -> None:
    check_near(two / "shards", uninterrupted, first=4)


def test_shards_resume_on_another_number_of_processes(
    uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    """But not without FSDP2, whose checkpoints are other files."""
    job = f"{tmp_path},micro_batch=2,sharded"
    assert run_elsewhere(f"{job},die_at=5", processes=2) != 0
    with pytest.raises(BadInput, match=r"sharded by FSDP2.*accelerate launch --use_fsdp"):
        run_here(tmp_path)
    assert run_elsewhere(job, processes=4) == 0
    check_near(tmp_path, uninterrupted, first=4)


def test_a_whole_checkpoint_does_not_continue_in_shards(tmp_path: Path) -> None:
    assert run_elsewhere(f"{tmp_path},micro_batch=2,die_at=5") == -9
    assert run_elsewhere(f"{tmp_path},micro_batch=2,sharded,refused", processes=2) == 0
    assert "was not written by FSDP2" in (tmp_path / "error-0").read_text()


def test_two_shards_quantize_as_one_and_resume(two: Path, tmp_path: Path) -> None:
    check_near(two / "quantized", run_here(tmp_path, quantized=True), first=4)


@pytest.mark.slow
def test_two_shards_quantize_experts_as_one(tmp_path: Path) -> None:
    """Each process has half of the experts, and their part of the grid."""
    shards = tmp_path / "shards"
    shards.mkdir()
    job = f"{shards},micro_batch=2,sharded,quantized,mixture"
    assert run_elsewhere(job, processes=2) == 0
    ours, whole = result(shards), run_here(tmp_path / "one", quantized=True, mixture=True)
    for (_, loss), (_, expected) in zip(ours["losses"], whole["losses"], strict=True):
        assert loss == pytest.approx(expected, abs=1e-4)
    for one, other in _pairs(whole, ours):
        close = torch.isclose(one, other, rtol=0, atol=1e-4)
        assert close.float().mean() > 0.99, "few weights are between two levels"


def test_shards_are_gathered_in_bf16_and_reduced_in_fp32(two: Path, tmp_path: Path) -> None:
    shards, whole = result(two / "halves"), run_here(tmp_path, bf16=True)
    assert shards["types"] == {"torch.bfloat16"}
    assert whole["types"] == {"torch.float32"}, "one process casts in autocast"
    assert all(one.dtype == torch.float32 for one in shards["weights"].values())
    for (_, ours), (_, theirs) in zip(shards["losses"], whole["losses"], strict=True):
        assert ours == pytest.approx(theirs, rel=2e-2)
    moved = [one - other for one, other in _pairs(whole, run_start())]
    apart = [one - other for one, other in _pairs(whole, shards)]
    assert _norm(apart) < 0.2 * _norm(moved), "rounding is small beside what training changes"


def run_start() -> dict[str, Any]:
    """The weights before training."""
    return {"weights": dict(teacher_and_student()[1].named_parameters())}


def _pairs(one: dict[str, Any], other: dict[str, Any]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(one["weights"][name], other["weights"][name]) for name in one["weights"]]


def _norm(tensors: list[torch.Tensor]) -> float:
    return float(torch.cat([one.detach().flatten() for one in tensors]).norm())


def test_a_full_disk_of_one_process_ends_both(
    tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    """The others would wait for it until the network's timeout, half an hour later."""
    assert run_elsewhere(f"{tmp_path},micro_batch=2,full_at=4", processes=2) == 0
    own, others = ((tmp_path / f"error-{rank}").read_text() for rank in (1, 0))
    assert own == others, "the main process prints it"
    assert "no room for a checkpoint" in own
    assert "No space left on device" in own
    assert "the next start resumes from the checkpoint of step 2" in own
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["settings.json", "step-00000002"]
    # With one process instead of two.
    resumed = run_here(tmp_path)
    assert [step for step, _ in resumed["losses"]] == [3, 4, 5, 6, 7, 8]
    check_near(tmp_path, uninterrupted, first=2)
