"""Which rows are held out, and for what."""

from pathlib import Path

import numpy as np
import pytest

from edgelm.compress.data.packing import PackedTokens
from edgelm.compress.pipeline import compress_model
from edgelm.compress.recipe import read_recipe
from edgelm.compress.run.run_folder import RunFolder
from edgelm.compress.stages.state import DATA_FILE, HELD_OUT_FILE, State, held_out_indices
from tests.compress.recipes import DISTILL, PRUNE, TEACHER, stage, write_recipe

ALONE = TEACHER.replace('held_out = "valid.jsonl"\n', "")


@pytest.mark.parametrize("rows", [1, 2, 49, 50, 99, 10_000, 11_500_000])
def test_two_percent_spread_over_the_data(rows: int) -> None:
    held = held_out_indices(rows)
    assert len(held) == min(512, max(1, rows // 50))
    assert len(set(held.tolist())) == len(held)
    assert 0 <= held[0] <= held[-1] < rows
    if len(held) > 1:
        gaps = np.diff(held)
        assert gaps.max() - gaps.min() <= 1
        assert held[0] >= gaps.min() // 2 - 1, "not the first documents of the first file"


def state_with(bench: Path, run: Path, rows: int, *, held_out: int | None) -> State:
    recipe = read_recipe(write_recipe(bench, TEACHER if held_out else ALONE, DISTILL))
    state = State(recipe, RunFolder(run, print), print)
    state.data_folder = run
    run.mkdir(exist_ok=True)
    numbers = np.arange(rows, dtype=np.int32)[:, None].repeat(4, 1)
    np.save(run / DATA_FILE, numbers)
    if held_out:
        np.save(run / HELD_OUT_FILE, np.arange(held_out, dtype=np.int32)[:, None].repeat(4, 1))
    return state


@pytest.mark.parametrize("held_out", [None, 40])
def test_what_decides_is_not_what_is_reported(
    bench: Path, tmp_path: Path, held_out: int | None
) -> None:
    state = state_with(bench, tmp_path / "run", 3000, held_out=held_out)
    deciding = set(state.selection_rows(16)[:, 0].tolist())
    reported = set(state.held_out()[:, 0].tolist())
    assert len(deciding) == 16
    assert len(reported) == (20 if held_out else 30)
    assert not deciding & reported
    if held_out is None:
        training = set(state.data().batch(range(len(state.data())))[:, 0].tolist())
        assert len(training) == 3000 - 60
        assert not training & (deciding | reported)


def test_a_single_row_serves_for_both(bench: Path, tmp_path: Path) -> None:
    state = state_with(bench, tmp_path / "run", 3, held_out=None)
    assert state.held_out().tolist() == state.selection_rows(16).tolist() == [[1] * 4]
    assert len(state.data()) == 2


def test_a_recipe_without_held_out_text(bench: Path, tmp_path: Path) -> None:
    recipe = read_recipe(write_recipe(bench, ALONE, PRUNE, DISTILL, "[evaluate]\n", name="alone"))
    record = compress_model(recipe, tmp_path / "student")
    rows = stage(record, "data").figures["rows"]
    packed = PackedTokens.load(tmp_path / "student.run" / "data" / DATA_FILE)
    assert len(packed) == rows
    assert record.evaluation["held-out kl"]["student"].n == len(held_out_indices(rows)) // 2
