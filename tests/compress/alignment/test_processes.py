"""[align] with a student that FSDP2 shards over two processes."""

import json
from pathlib import Path

import pytest
import torch

from edgelm.compress.pipeline import compress_model
from edgelm.compress.recipe import read_recipe
from tests.compress.recipes import TEACHER, weights_of, write_recipe
from tests.forks import run_forked

ALIGN = """
[importance]
samples = 8
[prune]
num_hidden_layers = 3
[align]
data = "chat.jsonl"
max_steps = 4
batch_size = 4
learning_rate = 1e-3
max_length = 64
"""


@pytest.mark.slow
def test_two_shards_align_as_one_process(bench: Path, tmp_path: Path) -> None:
    recipe = write_recipe(bench, TEACHER, ALIGN, name="align")
    compress_model(read_recipe(recipe), tmp_path / "one")
    whole = weights_of(tmp_path / "one")
    arguments = [str(recipe), str(tmp_path / "two")]
    assert run_forked("tests.compress.run_recipe", *arguments, "--sharded", processes=2) == 0
    _check_near(weights_of(tmp_path / "two"), whole)
    # Killed after the last step: the weights are in shards, which one process can join.
    stage = tmp_path / "two.run" / "align"
    assert list(stage.glob("run/checkpoints/checkpoint-4/*/*.distcp"))
    (stage / "done.json").unlink()
    compress_model(read_recipe(recipe), tmp_path / "two")
    _check_near(weights_of(tmp_path / "two"), whole)


def test_a_checkpoint_is_complete_when_all_processes_have_written(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run_forked("tests.compress.alignment.slow_rank", str(folder), processes=2) == 0
    mark = json.loads((folder / "checkpoints" / "checkpoint-2" / "complete").read_bytes())
    assert sorted(mark) == ["rng_state_0.pth", "rng_state_1.pth"]


def _check_near(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=2e-5)
