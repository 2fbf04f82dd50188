"""One recipe with several processes: the student of one, also after an interruption."""

import shutil
from pathlib import Path

import pytest
import torch

from edgelm.checkpoint.student import StudentRecord, read_student_record
from edgelm.compress.distillation.metrics import read_metrics
from edgelm.compress.pipeline import compress_model
from tests.checkpoints.models import tiny_model
from tests.compress.recipes import (
    DISTILL,
    EVALUATE,
    PRUNE,
    QAD,
    recipe_of,
    stage,
    weights_of,
    workshop,
)
from tests.compress.shard_processes import FAMILIES, TOKENS
from tests.forks import run_forked

RUN = "tests.compress.run_recipe"
PARTS = (PRUNE, DISTILL, "evaluate_every = 256\n", QAD, EVALUATE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workshop, the student of one process, and a run of two, killed while they train."""
    folder = workshop(tmp_path_factory.mktemp("processes"))
    compress_model(recipe_of(folder, *PARTS), folder / "one")
    arguments = (str(folder / "recipe.toml"), str(folder / "killed"))
    assert run_forked(RUN, *arguments, "--die-at", "distill: step 5/", processes=2) == -9
    return folder


def check(folder: Path, student: Path) -> None:
    ours, one = (read_student_record(path) for path in (student, folder / "one"))
    assert isinstance(ours, StudentRecord)
    assert isinstance(one, StudentRecord)
    assert [each.name for each in ours.stages] == [each.name for each in one.stages]
    runs = [path.with_name(f"{path.name}.run") / "distill" for path in (student, folder / "one")]
    theirs = weights_of(runs[1] / "model")
    for name, tensor in weights_of(runs[0] / "model").items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=2e-5)
    divergences = [
        [row["divergence"] for row in read_metrics(run / "held_out.jsonl")] for run in runs
    ]
    assert divergences[0] == pytest.approx(divergences[1], abs=1e-5)
    for name in ("distill", "qad"):
        loss, expected = (stage(each, name).figures["loss"] for each in (ours, one))
        assert loss == pytest.approx(expected, abs=1e-3)
    for task, figures in one.evaluation.items():
        for who, figure in figures.items():
            assert ours.evaluation[task][who].value == pytest.approx(figure.value, rel=0.02)


@pytest.mark.parametrize("processes", [1, 4])
def test_killed_with_two_and_resumed_with_another_number(
    folder: Path, tmp_path: Path, processes: int
) -> None:
    shutil.copytree(folder / "killed.run", tmp_path / "student.run")
    arguments = (str(folder / "recipe.toml"), str(tmp_path / "student"))
    assert run_forked(RUN, *arguments, processes=processes) == 0
    check(folder, tmp_path / "student")


def test_a_damaged_result_is_made_by_all(folder: Path, tmp_path: Path) -> None:
    """The second process does not take it for good while the main one finds the damage."""
    shutil.copytree(folder / "one.run", tmp_path / "student.run")
    damaged = tmp_path / "student.run" / "distill" / "model" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-8])
    arguments = (str(folder / "recipe.toml"), str(tmp_path / "student"))
    assert run_forked(RUN, *arguments, processes=2) == 0
    check(folder, tmp_path / "student")
    assert (tmp_path / "student.run" / "replaced" / "distill-1").is_dir()


def test_student_and_teacher_in_shards(folder: Path, tmp_path: Path) -> None:
    """As under `accelerate launch --use_fsdp`: a process has half of the layers of both."""
    arguments = (str(folder / "recipe.toml"), str(tmp_path / "student"), "--sharded")
    assert run_forked(RUN, *arguments, processes=2) == 0
    check(folder, tmp_path / "student")


@pytest.mark.parametrize("processes", [2, 3])
def test_layers_are_divided_and_compute_the_same(tmp_path: Path, processes: int) -> None:
    assert run_forked("tests.compress.shard_processes", str(tmp_path), processes=processes) == 0
    for family in FAMILIES:
        model = tiny_model(family)
        with torch.no_grad():
            expected = model(TOKENS).logits
        ranks = [torch.load(tmp_path / f"{family}-{rank}.pt") for rank in range(processes)]
        for one in ranks:
            torch.testing.assert_close(one["logits"], expected, rtol=0, atol=1e-5)
        for name, parameter in model.named_parameters():
            parts = [one["own"][name] for one in ranks]
            whole = parameter.numel()
            is_layer = ".layers." in name
            assert sum(parts) == (whole if is_layer else processes * whole), name
        layers = {name for name, _ in model.named_parameters() if ".layers." in name}
        most = max(sum(one["own"][name] for name in layers) for one in ranks)
        total = sum(dict(model.named_parameters())[name].numel() for name in layers)
        assert most < 0.6 * total
