"""[puzzle] in a recipe: a student whose layers differ, and that plain transformers loads."""

import json
import shlex
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from edgelm.bundle.manifest_file import read_manifest
from edgelm.checkpoint.source import open_checkpoint, read_spec
from edgelm.checkpoint.student import StudentRecord, read_student_record
from edgelm.compress.cli import export_command
from edgelm.compress.model import load_model
from edgelm.compress.pipeline import compress_model
from edgelm.compress.preflight import preflight, puzzle_alternatives
from edgelm.devices.calibration import halves
from edgelm.errors import BadInput, DoesNotFit
from edgelm.export.cli import main as export
from edgelm.export.quantize.weights import Weights
from tests.compress.qad.exported import exported_alike
from tests.compress.recipes import DISTILL, EVALUATE, QAD, recipe_of, stage
from tests.forks import run_forked

pytest.importorskip("scipy")

RUN = "tests.compress.run_recipe"
PUZZLE = """
[target]
parameters = {share}
[importance]
samples = 16
[puzzle]
mlp_ratios = [0.5, 0.0]
kv_heads = [1]
tokens = 512
batch_size = 4
micro_batch = 2
score_rows = 4
"""
HEADS = """
[puzzle]
mlp_ratios = []
leave_out_attention = false
kv_heads = [1]
tokens = 256
batch_size = 4
micro_batch = 2
score_rows = 4
"""


@pytest.fixture(scope="module")
def done(bench: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StudentRecord]:
    folder = tmp_path_factory.mktemp("puzzle")
    recipe = recipe_of(bench, PUZZLE.format(share=0.6), DISTILL, QAD, EVALUATE)
    return folder, compress_model(recipe, folder / "student")


def test_the_student_is_within_the_budget_and_plain_transformers_loads_it(
    done: tuple[Path, StudentRecord],
) -> None:
    folder, record = done
    student = folder / "student"
    spec, teacher = read_spec(student), record.teacher_parameters
    assert spec.has_own_sizes
    full = read_spec(folder / "student.run" / "puzzle" / "model")
    assert full.layers == spec.layers, "training does not change the sizes"
    assert record.parameters == spec.parameters < teacher
    tokens = torch.arange(3, 40)[None]
    with torch.inference_mode():
        plain = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32).eval()
        torch.testing.assert_close(
            plain(tokens).logits, load_model(student)(tokens).logits, rtol=0, atol=1e-5
        )
    chosen = stage(record, "puzzle").figures
    assert chosen["layers"] == json.loads((student / "config.json").read_text())["edgelm_layers"]
    summary = (folder / "student.run" / "summary.html").read_text()
    assert "Layers of the student" in summary
    assert "What each alternative alone costs" in summary


def test_fewer_heads_alone(bench: Path, tmp_path: Path) -> None:
    """Trained further, and on a grid, each layer keeps its heads, and the padding its zeros."""
    recipe = recipe_of(bench, "[target]\nparameters = 0.95\n", HEADS, DISTILL, QAD)
    record = compress_model(recipe, tmp_path / "student")
    layers = json.loads((tmp_path / "student" / "config.json").read_text())["edgelm_layers"]
    assert [one for one in layers if one] == [{"num_key_value_heads": 1}] * sum(map(bool, layers))
    assert 0 < sum(map(bool, layers)) < 4
    assert stage(record, "puzzle").figures["layers"] == layers
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "student", dtype=torch.float32).eval()
    tokens = torch.arange(3, 40)[None]
    with torch.inference_mode():
        ours = load_model(tmp_path / "student")(tokens).logits
        torch.testing.assert_close(plain(tokens).logits, ours, rtol=0, atol=1e-5)


def test_a_grid_for_layers_of_their_own_sizes(
    done: tuple[Path, StudentRecord], bench: Path, tmp_path: Path
) -> None:
    """Trained on a grid and nothing else; export finds the same blocks."""
    model = done[0] / "student.run" / "puzzle" / "model"
    recipe = recipe_of(bench, f"student = '{model}'\n", QAD)
    record = compress_model(recipe, tmp_path / "student")
    assert [one.name for one in record.stages if one.tokens] == ["qad"]
    student = Weights(open_checkpoint(tmp_path / "student"))
    assert student.checkpoint.spec.layers == read_spec(model).layers
    words = shlex.split(export_command(recipe, tmp_path / "student"))
    bundle = tmp_path / "bundle"
    assert export([*words[1:-1], str(bundle), "--kv", "fp32"]) == 0
    manifest = read_manifest(bundle)
    assert manifest.gate is not None
    assert manifest.gate.passed
    assert set(manifest.precision) == set(student.groups())
    for group, alike in exported_alike(bundle, student, manifest.precision).items():
        assert alike.float().mean() >= 0.99, group


def test_measured_costs_stay_with_the_run(
    bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timed once: a resumed run, and one with another budget, choose by the same times."""
    monkeypatch.setattr(halves, "_ENOUGH_S", 0.0)
    monkeypatch.setattr(halves, "_MOST_COPIES", 4)
    puzzle = f'{PUZZLE}costs = "measured"\n'.replace(
        "[target]\n", '[target]\nprecision = "int8"\nprompt = 32\nmin_tokens_per_second = 1.0\n'
    )
    record = compress_model(recipe_of(bench, puzzle.format(share=0.6)), tmp_path / "student")
    costs = stage(record, "puzzle-costs").figures
    kinds = {"attention 4/2 of 16", "attention 2/1 of 16", "MLP 96", "MLP 48", "head 320"}
    assert set(costs["milliseconds"]) == kinds
    milliseconds = [one["decode"] for one in costs["milliseconds"].values()]
    rate = stage(record, "puzzle").figures["tokens_per_second"]
    assert 1e3 / rate > min(milliseconds)
    lines: list[str] = []
    run = tmp_path / "student.run"
    again = recipe_of(bench, puzzle.format(share=0.5))
    other = compress_model(again, tmp_path / "other", run=run, report=lines.append)
    assert "puzzle-costs: unchanged, skipped" in lines
    assert stage(other, "puzzle-costs").figures == costs
    impossible = puzzle.replace("second = 1.0", "second = 1e9").format(share=0.6)
    with pytest.raises(DoesNotFit, match="tokens/s measured, 1000000000"):
        compress_model(recipe_of(bench, impossible), tmp_path / "none", run=run)


def test_another_budget_chooses_again_and_trains_no_alternative_again(
    done: tuple[Path, StudentRecord], bench: Path
) -> None:
    folder, record = done
    lines: list[str] = []
    recipe = recipe_of(bench, PUZZLE.format(share=0.4))
    again = compress_model(
        recipe, folder / "smaller", run=folder / "student.run", report=lines.append
    )
    assert "puzzle-library: unchanged, skipped" in lines
    assert "puzzle-scores: unchanged, skipped" in lines
    assert again.parameters < record.parameters


def test_two_processes_make_the_same_student(
    done: tuple[Path, StudentRecord], bench: Path, tmp_path: Path
) -> None:
    """Killed while alternatives are scored, and resumed by two."""
    recipe_of(bench, PUZZLE.format(share=0.6), DISTILL)
    output = tmp_path / "student"
    arguments = [str(bench / "recipe.toml"), str(output)]
    assert run_forked(RUN, *arguments, "--die-at", "puzzle: scored 5") == -9
    assert run_forked(RUN, *arguments, processes=2) == 0
    record = read_student_record(output)
    assert record is not None
    assert stage(record, "puzzle").figures["layers"] == stage(done[1], "puzzle").figures["layers"]


def test_refusals_before_anything_is_loaded(bench: Path) -> None:
    spec = read_spec(bench / "teacher")
    with pytest.raises(DoesNotFit, match=r"no student of these alternatives meets the budget"):
        preflight(recipe_of(bench, PUZZLE.format(share=0.001)), spec)
    for text, message in (
        ("[puzzle]\n", r"\[puzzle\] needs a budget: give \[target\] parameters"),
        (f"{PUZZLE.format(share=0.5)}[prune]\n", r"\[prune\] and \[puzzle\] both decide"),
        (
            "[target]\nparameters = 0.5\n[puzzle]\nmlp_ratios = []\nleave_out_attention = false\n",
            "has no alternatives",
        ),
        ("[target]\nparameters = 0.5\n[puzzle]\nmlp_ratios = [1.0]\n", "the teacher's own size"),
        ("[target]\nparameters = 0.5\n[puzzle]\nkv_heads = [1, 1]\n", "a number is given twice"),
    ):
        with pytest.raises(BadInput, match=message):
            recipe_of(bench, text)


def test_heads_that_are_refused(bench: Path) -> None:
    recipe = recipe_of(bench, "[target]\nparameters = 0.9\n[puzzle]\nkv_heads = [2]\n")
    message = r"kv_heads: 2 is not fewer than the teacher's 2 key heads; expected 1 to 1"
    with pytest.raises(BadInput, match=message):
        preflight(recipe, read_spec(bench / "teacher"))


@pytest.mark.parametrize("engine", ["onnxruntime-cuda", "tensorrt-rtx"])
def test_every_engine_takes_fewer_heads(bench: Path, engine: str) -> None:
    target = f'[target]\nname = "rtx-4090"\nengine = "{engine}"\nparameters = 0.9\n'
    recipe = recipe_of(bench, f"{target}[puzzle]\nkv_heads = [1]\n")
    preflight(recipe, read_spec(bench / "teacher"))
    found = puzzle_alternatives(recipe, read_spec(bench / "teacher"))
    assert {one.size for one in found if one.half == "attention"} == {0, 1}
