"""Recipes for families whose layers differ: the student loads everywhere, and a run resumes."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgelm.checkpoint.source import read_spec
from edgelm.compress.pipeline import compress_model
from edgelm.compress.pruning.importance import Importance, score
from edgelm.compress.recipe import read_recipe
from edgelm.errors import BadInput
from tests.checkpoints.tiny_chat import VOCAB
from tests.compress.recipes import TEACHER, recipe_of, stage, weights_of, workshop, write_recipe
from tests.compress.saved_students import check_same_everywhere
from tests.compress.training import same
from tests.forks import run_forked
from tests.slow import slow_but

# Layers and sizes are such that every axis of the family that can be pruned is.
PRUNE = """
[importance]
samples = 4
[prune]
num_hidden_layers = {layers}
hidden_size = 48
intermediate_size = 64
num_attention_heads = 2
"""
DISTILL = """
[distill]
tokens = 256
batch_size = 2
micro_batch = 2
learning_rate = 3e-3
checkpoint_steps = 1
"""
QAD = """
[qad]
group_size = 16
tokens = 64
batch_size = 2
micro_batch = 2
"""
FAMILIES: dict[str, tuple[int, dict[str, Any]]] = {
    "nemotron-h": (6, {"chunk_size": 16}),
    "falcon-h1": (2, {"mamba_chunk_size": 16, "num_hidden_layers": 3}),
    "gemma4": (5, {"vocab_size_per_layer_input": VOCAB}),
    "gemma3n": (5, {}),
    "lfm2": (4, {}),
}


def prepared(folder: Path, name: str) -> tuple[str, ...]:
    """A workshop for a teacher of a family, and its recipe."""
    layers, over = FAMILIES[name]
    workshop(folder, name=name, **over)
    # Without it, transformers takes the class of the family's own tokenizer.
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "teacher" / "tokenizer_config.json").write_text(json.dumps(settings))
    return PRUNE.format(layers=layers), DISTILL, QAD


@pytest.mark.parametrize("name", slow_but(FAMILIES, ("falcon-h1", "gemma3n")))
def test_a_student_computes_the_same_everywhere(tmp_path: Path, name: str) -> None:
    recipe = prepared(tmp_path, name)
    record = compress_model(recipe_of(tmp_path, *recipe), tmp_path / "student")
    assert {one.name for one in record.stages} >= {"importance", "prune", "distill", "qad"}
    spec = read_spec(tmp_path / "student")
    assert record.parameters == spec.parameters < record.teacher_parameters
    sizes = spec.hidden_size, spec.num_attention_heads, spec.num_hidden_layers
    assert sizes == (48, 2, FAMILIES[name][0])
    assert {spec.mlp_size(layer) for layer in spec.layers} <= {0, 64, 128}

    check_same_everywhere(tmp_path)


@pytest.mark.parametrize("name", slow_but(FAMILIES, ("gemma3n", "lfm2")))
def test_a_killed_run_resumes(tmp_path: Path, name: str) -> None:
    parts = prepared(tmp_path, name)[:2]
    path = write_recipe(tmp_path, TEACHER, *parts, name="killed")
    student = tmp_path / "student"
    arguments = (str(path), str(student), "--die-at", "distill: step 3/")
    assert run_forked("tests.compress.run_recipe", *arguments) == -9
    lines: list[str] = []
    resumed = compress_model(read_recipe(path), student, report=lines.append)
    assert "distill: resuming" in lines
    whole = compress_model(read_recipe(path), tmp_path / "whole")
    assert same(weights_of(student), weights_of(tmp_path / "whole"))
    assert stage(resumed, "distill").figures == stage(whole, "distill").figures


def test_scores_of_an_earlier_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They lack the channels of convolutions: fine where none is removed, and else refused."""
    prepared(tmp_path, "lfm2")
    importance, student = "[importance]\nsamples = 4\n", tmp_path / "student"

    def earlier(*arguments: Any) -> Importance:
        return dataclasses.replace(score(*arguments), conv_channels=None)

    with monkeypatch.context() as patch:
        patch.setattr("edgelm.compress.stages.shape.score", earlier)
        compress_model(recipe_of(tmp_path, importance, "[prune]\nnum_hidden_layers = 4\n"), student)
    compress_model(recipe_of(tmp_path, importance, "[prune]\nintermediate_size = 64\n"), student)
    folder = tmp_path / "student.run" / "importance"
    narrow = recipe_of(tmp_path, importance, "[prune]\nhidden_size = 48\n")
    message = f"scores in {re.escape(str(folder))} are of an .* removed with hidden_size; remove"
    with pytest.raises(BadInput, match=message):
        compress_model(narrow, student)
    shutil.rmtree(folder)
    assert compress_model(narrow, student).shape["hidden_size"] == 48


def test_least_squares_of_an_earlier_version(tmp_path: Path) -> None:
    """Second moments that lack the inputs of convolutions are collected again."""
    prepared(tmp_path, "lfm2")
    importance, student = "[importance]\nsamples = 4\n", tmp_path / "student"
    for sizes in ("num_hidden_layers = 4", "intermediate_size = 64"):
        compress_model(recipe_of(tmp_path, importance, f"[prune]\n{sizes}\n"), student)
    moments = tmp_path / "student.run" / "importance" / "moments"
    lost = list(moments.glob("*.conv.out.hessian"))
    assert len(lost) == 3
    for path in lost:
        path.unlink()
    # Without matrices to refit, they are not needed.
    compress_model(recipe_of(tmp_path, importance, "[prune]\nnum_hidden_layers = 3\n"), student)
    narrow = recipe_of(tmp_path, importance, "[prune]\nhidden_size = 48\n")
    compress_model(narrow, student)
    compress_model(narrow, tmp_path / "fresh")
    assert same(weights_of(student), weights_of(tmp_path / "fresh"))
