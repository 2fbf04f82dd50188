"""Recipes for mixtures of experts and Mamba-2 layers: the student computes the same everywhere."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from edgelm.bundle.manifest_file import read_manifest
from edgelm.checkpoint.source import open_checkpoint, read_spec
from edgelm.compress.cli import export_command, main
from edgelm.compress.model import spec_of
from edgelm.compress.pipeline import compress_model
from edgelm.compress.preflight import preflight
from edgelm.compress.pruning.importance import score
from edgelm.compress.pruning.prune import prune
from edgelm.compress.pruning.shape import Shape
from edgelm.errors import BadInput
from edgelm.export.cli import main as export
from edgelm.quantize.precision import Int4
from tests.checkpoints.models import decide_clearly, tiny_model
from tests.compress.recipes import (
    SEARCH,
    TEACHER,
    recipe_of,
    stage,
    weights_of,
    workshop,
    write_recipe,
)
from tests.compress.saved_students import check_same_everywhere
from tests.compress.training import same
from tests.export.graphs import build_session
from tests.forks import run_forked
from tests.slow import slow_but

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
tokens = 256
batch_size = 2
micro_batch = 2
checkpoint_steps = 1
"""
IMPORTANCE = "[importance]\nsamples = 4\n"
# Recipes' [prune] tables, and what differs from the tiny models: chunks as short as the rows.
FAMILIES: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "qwen3-moe": (
        {
            "num_hidden_layers": 3,
            "hidden_size": 48,
            "num_experts": 4,
            "moe_intermediate_size": 16,
            "intermediate_size": 64,
            "num_attention_heads": 2,
        },
        {},
    ),
    "granite-hybrid": (
        {"num_hidden_layers": 5, "hidden_size": 48, "mamba_num_heads": 6, "intermediate_size": 64},
        {"mamba_chunk_size": 16},
    ),
    "granite-hybrid-moe": (
        {"num_experts": 3, "moe_intermediate_size": 16, "mamba_num_heads": 4},
        {"mamba_chunk_size": 16},
    ),
    "nemotron-h": ({"mamba_num_heads": 4, "intermediate_size": 64}, {"chunk_size": 16}),
    "falcon-h1": (
        {"mamba_num_heads": 6, "hidden_size": 48},
        {"mamba_chunk_size": 16, "num_hidden_layers": 2},
    ),
    "gpt-oss": ({"num_experts": 3, "moe_intermediate_size": 64, "num_attention_heads": 2}, {}),
    "lfm2-moe": (
        {
            "hidden_size": 48,
            "num_experts": 4,
            "moe_intermediate_size": 16,
            "intermediate_size": 64,
        },
        {},
    ),
    "olmoe": ({"num_experts": 4, "moe_intermediate_size": 64}, {}),
    "granite-moe": ({"num_experts": 4, "hidden_size": 48, "num_hidden_layers": 2}, {}),
    "qwen3.5-moe": (
        {"num_experts": 4, "moe_intermediate_size": 16, "intermediate_size": 32},
        {},
    ),
}


def prune_table(name: str) -> str:
    sizes = FAMILIES[name][0].items()
    return "\n".join(["[prune]", *(f"{field} = {size}" for field, size in sizes), ""])


def prepared(folder: Path, name: str) -> None:
    workshop(folder, name=name, **FAMILIES[name][1])
    # Without it, transformers takes the class of the family's own tokenizer.
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    # Qwen's own class would add tokens of its own to those that have no name.
    settings |= {"eos_token": "<|end|>", "pad_token": "<pad>", "unk_token": "<s>"}
    (folder / "teacher" / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    "name", slow_but(("qwen3-moe", "granite-hybrid", "granite-hybrid-moe"), ("qwen3-moe",))
)
def test_a_student_computes_the_same_everywhere(tmp_path: Path, name: str) -> None:
    prepared(tmp_path, name)
    recipe = recipe_of(tmp_path, IMPORTANCE, prune_table(name), DISTILL)
    record = compress_model(recipe, tmp_path / "student")
    spec = read_spec(tmp_path / "student")
    assert record.parameters == spec.parameters < record.teacher_parameters
    assert record.shape == Shape.from_spec(spec).sizes
    assert record.shape == record.teacher_shape | FAMILIES[name][0]
    trained, pruned = weights_of(tmp_path / "student"), weights_of(_pruned(tmp_path))
    moved = {key for key, weight in trained.items() if not torch.equal(weight, pruned[key])}
    assert any("experts" in key or "mamba" in key for key in moved), "it was trained"
    summary = (_pruned(tmp_path).parents[1] / "summary.html").read_text()
    assert "Experts, sorted" in summary or "Mamba-2 heads" in summary
    check_same_everywhere(tmp_path)


def test_heads_that_follow_the_hidden_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """[prune] gives one size, Granite's class needs both; the dry run and the log say so."""
    prepared(tmp_path, "granite-hybrid")
    parts, lines = (IMPORTANCE, "[prune]\nhidden_size = 48\n"), list[str]()
    begin = "prune: mamba_num_heads 6 follows from hidden_size 48, from which the class of"
    path = write_recipe(tmp_path, TEACHER, *parts)
    assert main([str(path), "-o", str(tmp_path / "no"), "--dry-run", "--tflops", "1"]) == 0
    assert capsys.readouterr().out.startswith(begin)
    record = compress_model(recipe_of(tmp_path, *parts), tmp_path / "student", report=lines.append)
    assert sum(line.startswith(begin) for line in lines) == 1
    assert record.shape == record.teacher_shape | {"hidden_size": 48, "mamba_num_heads": 6}
    check_same_everywhere(tmp_path)


@pytest.mark.parametrize("name", slow_but(("qwen3-moe", "gpt-oss", "qwen3.5-moe"), ("qwen3-moe",)))
def test_quantization_aware_distillation(tmp_path: Path, name: str) -> None:
    """Killed and resumed; the command that exports the student names the grid of its experts."""
    prepared(tmp_path, name)
    recipe = recipe_of(tmp_path, IMPORTANCE, prune_table(name), QAD)
    path, student = tmp_path / "recipe.toml", tmp_path / "student"
    arguments = (str(path), str(student), "--die-at", "qad: step 3/")
    assert run_forked("tests.compress.run_recipe", *arguments) == -9
    lines: list[str] = []
    record = compress_model(recipe, student, report=lines.append)
    assert "qad: resuming" in lines
    assert stage(record, "qad").figures["held_out_divergence"] >= 0
    whole = compress_model(recipe, tmp_path / "whole")
    assert same(weights_of(student), weights_of(tmp_path / "whole"))
    assert stage(record, "qad").figures == stage(whole, "qad").figures
    check_same_everywhere(tmp_path)

    size = 64 if name == "gpt-oss" else 16
    words = shlex.split(export_command(recipe, student))
    assert words[words.index("--group-size") + 1] == str(size)
    bundle = tmp_path / "bundle"
    assert export([*words[1:-1], str(bundle), "--kv", "fp32"]) == 0
    manifest = read_manifest(bundle)
    assert manifest.gate is not None
    assert manifest.gate.passed
    experts = {one for group, one in manifest.precision.items() if ".experts." in group}
    assert experts == {Int4(size)}


def test_experts_that_no_groups_divide(tmp_path: Path) -> None:
    prepared(tmp_path, "qwen3-moe")
    spec = read_spec(tmp_path / "teacher")
    prune = "[prune]\nmoe_intermediate_size = {size}\n"
    for size, table, message in (
        (16, "[qad]\ngroup_size = 32\n", r"experts have 16 and 64 inputs.* set group_size = 16$"),
        (24, "[qad]\n", r"\[qad\] int4 g64 zp: experts have 24 and 64 .* no group size divides"),
    ):
        with pytest.raises(BadInput, match=message):
            preflight(recipe_of(tmp_path, prune.format(size=size), table), spec)
    tensorrt = "[target]\nname = 'jetson-orin'\n"
    with pytest.raises(BadInput, match=r"\[qad\] for jetson-orin: .* no operator for a mixture"):
        preflight(recipe_of(tmp_path, tensorrt, "[qad]\n"), spec)


@pytest.mark.parametrize("name", slow_but(FAMILIES, ("gpt-oss",)))
def test_drafts_of_other_teachers(tmp_path: Path, name: str) -> None:
    """Layers as the teacher has them; written, read and exported alike, and drafting."""
    prepared(tmp_path, name)
    count = 1 if name == "falcon-h1" else 2
    recipe = recipe_of(tmp_path, f"[draft]\nnum_hidden_layers = {count}\n", DISTILL)
    record = compress_model(recipe, tmp_path / "student")
    layers = stage(record, "draft").figures["layers"]
    teacher, spec = (read_spec(tmp_path / one).layers for one in ("teacher", "student"))
    assert [(one.mixer, one.mlp) for one in spec] == [
        (teacher[index].mixer, teacher[index].mlp) for index in layers
    ]
    assert any(one.attends for one in spec)
    check_same_everywhere(tmp_path)


def test_a_draft_of_a_mixture(tmp_path: Path) -> None:
    """Few layers, each as it is in the teacher: with experts, or the dense MLP."""
    prepared(tmp_path, "qwen3-moe")
    recipe = recipe_of(tmp_path, "[draft]\nnum_hidden_layers = 3\n", DISTILL)
    record = compress_model(recipe, tmp_path / "student")
    layers = stage(record, "draft").figures["layers"]
    teacher, spec = (read_spec(tmp_path / name).layers for name in ("teacher", "student"))
    assert layers == [0, 1, 3]
    assert [one.mlp for one in spec] == [teacher[index].mlp for index in (0, 1, 3)]
    assert [one.mlp is None for one in spec] == [False, True, False]
    check_same_everywhere(tmp_path)


def _pruned(folder: Path) -> Path:
    [found] = folder.glob("**/prune*/model")
    return found


@pytest.mark.parametrize("name", slow_but(FAMILIES, ("granite-hybrid", "gpt-oss")))
def test_the_graph_of_a_pruned_model(tmp_path: Path, name: str) -> None:
    model = tiny_model(name)
    with torch.no_grad():
        for parameter in model.base_model.layers.parameters():
            if parameter.ndim > 1:
                parameter *= 0.3
    decide_clearly(model)
    tokens = torch.randint(0, 128, (2, 40), generator=torch.Generator().manual_seed(0))
    sizes = Shape.from_spec(spec_of(model)).sizes | FAMILIES[name][0]
    student = prune(model, Shape(**sizes), score(model, [tokens]))
    student.save_pretrained(tmp_path / "student")
    with torch.inference_mode():
        expected = student(tokens[:1], use_cache=False).logits[0]
    with build_session(open_checkpoint(tmp_path / "student"), tmp_path / "graph") as session:
        ours = torch.from_numpy(session.advance(tokens[0].numpy(), logits=tokens.shape[1]))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.slow
def test_a_search_finds_experts_within_the_budget(tmp_path: Path) -> None:
    prepared(tmp_path, "qwen3-moe")
    wide = SEARCH.replace("candidates = 6", "candidates = 24")
    record = compress_model(recipe_of(tmp_path, wide, DISTILL), tmp_path / "student")
    spec, teacher = read_spec(tmp_path / "student"), read_spec(tmp_path / "teacher")
    assert spec.linear_parameters <= 0.7 * teacher.linear_parameters
    assert stage(record, "search").figures["shape"] == str(Shape.from_spec(spec))
    tried = json.loads((_pruned(tmp_path).parents[1] / "search" / "candidates.json").read_text())
    assert any(one["shape"]["num_experts"] < 6 for one in tried)
