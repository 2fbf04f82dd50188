"""Draft models: which layers they keep, what they share, and how their acceptance is measured."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from edgelm.checkpoint.source import open_checkpoint, read_spec
from edgelm.compress.drafting.acceptance import acceptance
from edgelm.compress.drafting.layers import spaced_layers
from edgelm.compress.drafting.settings import positions, starts
from edgelm.compress.model import load_model, spec_of
from edgelm.compress.pipeline import compress_model
from edgelm.compress.preflight import preflight
from edgelm.compress.pruning.depth import with_layers
from edgelm.compress.qad.precisions import target_precisions
from edgelm.compress.recipe.stage_names import stage_names
from edgelm.compress.start_plan import plan_stages
from edgelm.errors import BadInput
from edgelm.quantize.precision import Int8
from tests.checkpoints.models import tiny_model
from tests.checkpoints.own_sizes import own_sizes_model
from tests.compress.recipes import DISTILL, recipe_of, stage
from tests.compress.training import rows, teacher_and_student

DRAFT = "[draft]\nnum_hidden_layers = 2\ndrafted = 3\n"


@pytest.mark.parametrize(
    ("count", "layers"), [(1, [3]), (2, [0, 3]), (3, [0, 1, 3])], ids=["1", "2", "3"]
)
def test_layers_at_equal_distances(count: int, layers: list[int]) -> None:
    assert spaced_layers(spec_of(tiny_model("llama")), count) == layers


@pytest.mark.parametrize(
    "family",
    ["llama-untied", "gemma3", "lfm2", "phi3", "falcon-h1", "gemma4-dense", "nemotron-h"],
)
def test_some_layers_of_a_model(family: str) -> None:
    model = tiny_model(family)
    layers = spaced_layers(spec_of(model), 2)
    draft = with_layers(model, layers)
    assert spec_of(draft).attention_layers, "a draft without attention sees one token"
    tokens = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert draft(tokens).logits.isfinite().all()
    for name, tensor in draft.model.layers[1].state_dict().items():
        assert torch.equal(tensor, model.model.layers[layers[1]].state_dict()[name])


def test_layers_of_a_student_whose_layers_differ() -> None:
    model = own_sizes_model("llama")
    draft = with_layers(model, [0, 1])
    spec = spec_of(draft)
    assert [layer.attends for layer in spec.layers] == [False, True]
    assert [spec.mlp_size(layer) for layer in spec.layers] == [32, 96]


def test_the_same_model_accepts_everything() -> None:
    teacher, _ = teacher_and_student()
    found = acceptance(teacher, teacher, rows(4).batch(range(4)), 3)
    assert found["acceptance of a token"].value == pytest.approx(1, abs=1e-5)
    assert found["tokens per verification, 3 drafted"].value == 4


class _Positions:
    """Counts the positions that a model computes."""

    def __init__(self, model: Any) -> None:
        self.count = 0
        model.model.register_forward_pre_hook(self._add, with_kwargs=True)

    def _add(self, _: Any, __: Any, arguments: dict[str, Any]) -> None:
        self.count += arguments["input_ids"].numel()


def test_a_row_is_read_once() -> None:
    teacher, student = teacher_and_student()
    tokens = rows(1, length=200).batch(range(1))
    counted = _Positions(teacher), _Positions(student)
    acceptance(student, teacher, tokens, 3)
    # Once for sum(min(p, q)), once for all starts, and what is drafted at each of eight.
    assert all(one.count <= 2 * 200 + 8 * 3 for one in counted)


@pytest.mark.parametrize(("family", "rereads"), [("llama", False), ("qwen3.5", True)])
def test_what_a_plan_counts_is_what_is_computed(family: str, rereads: bool) -> None:
    teacher = tiny_model(family)
    student = with_layers(teacher, spaced_layers(spec_of(teacher), 3)).eval()
    assert spec_of(student).is_hybrid == spec_of(teacher).is_hybrid == rereads
    counted = _Positions(student), _Positions(teacher)
    acceptance(student, teacher, rows(1, length=100).batch(range(1)), 4)
    planned = positions(100, 4, rereads=rereads)
    assert [one.count for one in counted] == pytest.approx(planned, rel=0.05)


@pytest.mark.parametrize("family", ["llama", "gemma3", "lfm2", "qwen3.5"])
def test_acceptance_counted_by_hand(family: str) -> None:
    teacher = tiny_model(family)
    layers = spaced_layers(spec_of(teacher), 3)
    student = with_layers(teacher, layers).eval()
    tokens = rows(2, length=24).batch(range(2))
    found = acceptance(student, teacher, tokens, 2)
    with torch.no_grad():
        p, q = (model(tokens).logits[:, :-1].softmax(-1) for model in (student, teacher))
    expected = torch.minimum(p, q).sum(-1).mean()
    assert found["acceptance of a token"].value == pytest.approx(float(expected), rel=1e-4)
    counts = []
    for row in tokens:
        for start in starts(len(row), 2):
            text, accepted = row[:start].tolist(), 0
            for _ in range(2):
                ours, theirs = (_next(model, text) for model in (student, teacher))
                if ours != theirs:
                    break
                accepted += 1
                text.append(ours)
            counts.append(1 + accepted)
    figure = found["tokens per verification, 2 drafted"]
    assert figure.value == pytest.approx(sum(counts) / len(counts))
    assert figure.n == 2
    assert figure.better == "higher"


def test_answers_by_hand() -> None:
    """Texts of several lengths, of which only the answers are drafted."""
    teacher, student = teacher_and_student()
    texts = [rows(1, length=length, seed=length).batch(range(1))[0] for length in (20, 31)]
    first = [12, 9]
    found = acceptance(student, teacher, texts, 2, first=first)
    chances, counts = list[float](), list[float]()
    for text, begin in zip(texts, first, strict=True):
        with torch.no_grad():
            p, q = (model(text[None]).logits[0].softmax(-1) for model in (student, teacher))
        chances.append(float(torch.minimum(p, q).sum(-1)[begin - 1 : -1].mean()))
        places = starts(len(text), 2, begin)
        assert begin <= places[0] <= places[-1] == len(text) - 2
        accepted = []
        for place in places:
            ours = text[:place].tolist()
            accepted.append(1)
            for _ in range(2):
                if (token := _next(student, ours)) != _next(teacher, ours):
                    break
                accepted[-1] += 1
                ours.append(token)
        counts.append(sum(accepted) / len(accepted))
    assert found["acceptance of a token"].value == pytest.approx(sum(chances) / 2, rel=1e-4)
    assert found["tokens per verification, 2 drafted"].value == pytest.approx(sum(counts) / 2)


def _next(model: Any, text: list[int]) -> int:
    with torch.no_grad():
        return int(model(torch.tensor([text])).logits[0, -1].argmax())


@pytest.mark.slow
def test_a_recipe_makes_a_draft_with_the_teachers_embedding(bench: Path, tmp_path: Path) -> None:
    recipe = recipe_of(bench, DRAFT, DISTILL)
    record = compress_model(recipe, tmp_path / "draft")
    spec = read_spec(tmp_path / "draft")
    assert spec.num_hidden_layers == 2
    teacher, draft = (open_checkpoint(one) for one in (bench / "teacher", tmp_path / "draft"))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert draft.has(name) == teacher.has(name)
        if draft.has(name):
            assert torch.equal(draft.tensor(name).float(), teacher.tensor(name).float())
    trained = load_model(tmp_path / "draft.run" / "distill" / "model").model.layers[0]
    start = load_model(tmp_path / "draft.run" / "draft" / "model").model.layers[0]
    assert not torch.equal(trained.mlp.up_proj.weight, start.mlp.up_proj.weight)
    figures = record.evaluation["tokens per verification, 3 drafted"]
    assert set(figures) == {"pruned", "student"}
    assert 1 <= figures["student"].value <= 4
    assert stage(record, "draft").figures["layers"] == [0, 3]


def test_a_draft_of_a_quantized_target(bench: Path, tmp_path: Path) -> None:
    """It learns what the rounded teacher predicts, and starts from layers of the unrounded one."""
    rounded = DRAFT.replace("drafted", 'precision = "int4"\ngroup_size = 32\ndrafted')
    recipe = recipe_of(bench, rounded, DISTILL)
    record = compress_model(recipe, tmp_path / "draft")
    assert tuple(one.name for one in record.stages) == stage_names(recipe)
    plan = plan_stages(recipe, read_spec(bench / "teacher"), bf16=False)
    assert tuple(one.name for one in plan) == stage_names(recipe)
    run = tmp_path / "draft.run"
    target, teacher = load_model(run / "draft-target" / "model"), load_model(bench / "teacher")
    weight, original = (one.model.layers[0].mlp.up_proj.weight for one in (target, teacher))
    assert not torch.equal(weight, original)
    levels = weight[0, :32].unique()
    assert len(levels) <= 16, "four bits in a group"
    start = load_model(run / "draft" / "model").model.layers[0].mlp.up_proj.weight
    assert torch.equal(start, original)
    figures = stage(record, "draft-target").figures
    assert figures["held_out_divergence"] > 0
    plain = compress_model(recipe_of(bench, DRAFT, DISTILL), tmp_path / "plain")
    losses = [stage(one, "distill").figures["loss"] for one in (record, plain)]
    assert losses[0] != losses[1]


def test_the_target_has_the_head_of_the_export(bench: Path) -> None:
    """A table's groups divide its rows, as in [qad] and export, whatever the layers' groups."""
    draft = '[draft]\nnum_hidden_layers = 2\nprecision = "int4"\ngroup_size = 128\n'
    recipe, spec = recipe_of(bench, draft), read_spec(bench / "teacher")
    found = target_precisions(recipe, spec)
    assert found is not None
    assert found[1] == recipe.target.kernels.for_table(Int8(128), spec.hidden_size)
    assert found[1] != Int8(128)


def test_acceptance_on_chat_prompts(bench: Path, tmp_path: Path) -> None:
    asked = f'{DRAFT}prompts = "chat.jsonl"\nanswer_tokens = 12\n'
    record = compress_model(recipe_of(bench, asked), tmp_path / "draft")
    figures = record.evaluation["tokens per verification, 3 drafted, answers"]
    assert 1 <= figures["student"].value <= 4
    assert figures["student"].n <= 16
    assert "acceptance of a token, answers" in record.evaluation
    lines: list[str] = []
    compress_model(recipe_of(bench, asked), tmp_path / "draft", report=lines.append)
    assert "acceptance: unchanged, skipped" in lines
    long = json.dumps({"prompt": "What is 3? " * 90})
    (bench / "others.jsonl").write_text('{"prompt": "What is 3?"}\n' + long + "\n")
    other = asked.replace("chat.jsonl", "others.jsonl")
    compress_model(recipe_of(bench, other), tmp_path / "draft", report=lines.append)
    assert "acceptance: inputs changed, rerunning" in lines
    assert any("of 2 prompts are left out" in line for line in lines)
    missing = asked.replace("chat.jsonl", "gone.jsonl")
    with pytest.raises(BadInput, match=r"gone\.jsonl"):
        preflight(recipe_of(bench, missing), read_spec(bench / "teacher"))


def test_refusals(bench: Path) -> None:
    spec = read_spec(bench / "teacher")
    with pytest.raises(BadInput, match=r"\[draft\] num_hidden_layers is 4, the teacher has 4"):
        preflight(recipe_of(bench, "[draft]\n", DISTILL), spec)
    with pytest.raises(BadInput, match=r"\[draft\] group_size needs a precision"):
        preflight(recipe_of(bench, "[draft]\nnum_hidden_layers = 2\ngroup_size = 32\n"), spec)
    odd = '[draft]\nnum_hidden_layers = 2\nprecision = "int4"\ngroup_size = 48\n'
    with pytest.raises(BadInput, match=r"^(?!.*\[qad\]).*group size 48 is not one of"):
        preflight(recipe_of(bench, odd), spec)
    with pytest.raises(BadInput, match=r"\[prune\] and \[draft\] both decide"):
        recipe_of(bench, "[draft]\n[prune]\n")
    with pytest.raises(BadInput, match=r"remove \[vocabulary\], \[correct\] and \[align\]"):
        recipe_of(bench, "[draft]\n[vocabulary]\n")
