"""Options of stages: the first student, how layers are ranked, what is always evaluated."""

import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from edgelm.checkpoint.student import StudentRecord
from edgelm.compress.distillation import train
from edgelm.compress.evaluation.tasks.scores import Score
from edgelm.compress.pipeline import compress_model
from edgelm.compress.recipe import read_recipe
from edgelm.compress.stages import shape, training
from edgelm.compress.stages.state import State
from edgelm.errors import BadCheckpoint, BadInput
from tests.compress.recipes import (
    DISTILL,
    PRUNE,
    TEACHER,
    recipe_of,
    stage,
    weights_of,
    write_recipe,
)
from tests.compress.training import same

DEPTH = """
[importance]
samples = 16
layers = "{layers}"
{more}
[prune]
num_hidden_layers = 3
"""


def made(bench: Path, output: Path, *parts: str, name: str = "options") -> StudentRecord:
    return compress_model(read_recipe(write_recipe(bench, TEACHER, *parts, name=name)), output)


@pytest.mark.slow
def test_a_student_that_is_there_goes_on(bench: Path, tmp_path: Path) -> None:
    made(bench, tmp_path / "pruned", PRUNE)
    begun = f'student = "{tmp_path / "pruned"}"\n'
    record = made(bench, tmp_path / "later", begun, DISTILL, "[evaluate]\n")
    at_once = made(bench, tmp_path / "at-once", PRUNE, DISTILL)
    assert [one.name for one in record.stages] == ["data", "distill", "evaluate"]
    assert record.shape == at_once.shape
    assert same(weights_of(tmp_path / "later"), weights_of(tmp_path / "at-once"))


def test_a_student_of_another_tokenizer(bench: Path, tmp_path: Path) -> None:
    student = shutil.copytree(bench / "teacher", tmp_path / "student")
    content = json.loads((student / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    one, other = sorted(vocab)[10:12]
    vocab[one], vocab[other] = vocab[other], vocab[one]
    (student / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(BadCheckpoint, match="teacher and student have different tokenizers"):
        made(bench, tmp_path / "out", f'student = "{student}"\n', DISTILL)


def test_a_student_is_not_cut_again(bench: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="`student` names an existing student"):
        made(bench, tmp_path / "out", 'student = "teacher"\n', PRUNE)


@pytest.mark.slow
def test_hidden_states_by_the_papers_map(bench: Path, tmp_path: Path) -> None:
    depth = "[prune]\nnum_hidden_layers = 3\n"
    mapped = DISTILL + "layer_map = [[-1, -1], [0, 1]]\n"
    for name, text in (
        ("plain", DISTILL),
        ("map", mapped),
        ("own", f"{DISTILL}hidden_states = true\n"),
    ):
        made(bench, tmp_path / name, depth, text)
    plain, by_map, own = (weights_of(tmp_path / name) for name in ("plain", "map", "own"))
    assert same(by_map, own), "three layers from the end on both sides, and the embeddings"
    assert not same(plain, own)


@pytest.mark.slow
@pytest.mark.parametrize("layers", ["loss", "block"])
def test_layers_ranked_on_a_task(bench: Path, tmp_path: Path, layers: str) -> None:
    passages = [{"context": "The miller waits", "target": "until"}] * 3
    lines = "".join(json.dumps(one) + "\n" for one in passages)
    (tmp_path / "words.jsonl").write_text(lines)
    task = f'layer_task = "last_word:{tmp_path / "words.jsonl"}"'
    kept = {}
    for name, more in (("text", ""), ("task", task)):
        record = made(
            bench, tmp_path / name, DEPTH.format(layers=layers, more=more), name=f"{layers}-{name}"
        )
        assert record.shape["num_hidden_layers"] == 3
        kept[name] = stage(record, "importance")
    assert kept["task"].settings["layer_task"].startswith("last_word:")
    if layers == "loss":  # accuracy of a random model is zero with any layer gone
        assert set(kept["task"].figures["layers"]) == {0.0}
        assert set(kept["text"].figures["layers"]) != {0.0}


@pytest.mark.parametrize(("better", "sign"), [("higher", -1), ("lower", 1)])
def test_the_best_layers_are_those_with_the_best_figure(
    bench: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    better: Literal["higher", "lower"],
    sign: int,
) -> None:
    """`block` keeps the layers without which the task's figure is best, whatever best is."""
    (tmp_path / "words.jsonl").write_text('{"context": "The miller", "target": "waits"}\n')

    def figures(model: Any, *_: Any, limit: int, **__: Any) -> dict[str, Score]:
        assert limit == 500, "an accuracy on a few rows is chance"
        skipped = model.model.layers[1].forward.__name__ == "skip"
        return {"task": Score(sign * float(not skipped), None, 1, better)}

    monkeypatch.setattr(shape, "evaluate", figures)
    task = f'layer_task = "last_word:{tmp_path / "words.jsonl"}"'
    made(bench, tmp_path / "out", DEPTH.format(layers="block", more=task), name=f"best-{better}")
    kept = json.loads((tmp_path / "out.run" / "importance" / "layers-3.json").read_text())
    assert kept == [0, 2, 3]


@pytest.mark.slow
def test_a_cached_teacher_takes_no_memory_while_the_student_trains(
    bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[Any]] = []
    load, distill = State.load, train.distill

    def remembering(self: State, checkpoint: Any, dtype: Any) -> Any:
        model = load(self, checkpoint, dtype)
        loaded.append(weakref.ref(model))
        return model

    def counting(student: Any, *arguments: Any, **over: Any) -> Any:
        gc.collect()
        alive = [one() for one in loaded if one() is not None]
        assert [one for one in alive if one is not student] == []
        return distill(student, *arguments, **over)

    monkeypatch.setattr(State, "load", remembering)
    monkeypatch.setattr(training, "distill", counting)
    cache = "[distill.cache]\nsize = 8\n"
    record = made(bench, tmp_path / "out", PRUNE, DISTILL, cache, name="cached")
    assert stage(record, "distill").figures["held_out_divergence"] > 0


def test_a_layer_task_that_is_not_there(bench: Path, tmp_path: Path) -> None:
    more = 'layer_task = "last_word:none.jsonl"'
    with pytest.raises(BadInput, match=r"no such file: none\.jsonl"):
        made(bench, tmp_path / "out", DEPTH.format(layers="loss", more=more))


@pytest.mark.slow
def test_another_type_of_the_student_is_evaluated_again(bench: Path, tmp_path: Path) -> None:
    """In fp32 where the student is written in fp32, whatever the arithmetic of its training."""
    said: list[str] = []
    common = TEACHER.replace('arithmetic = "fp32"', 'arithmetic = "bf16"')
    for dtype in ("float32", "bfloat16", "bfloat16"):
        text = common.replace('dtype = "float32"', f'dtype = "{dtype}"')
        recipe = read_recipe(write_recipe(bench, text, PRUNE, "[evaluate]\n", name="typed"))
        compress_model(recipe, tmp_path / "out", report=said.append)
    evaluated = [line for line in said if line.startswith("evaluate:")]
    assert evaluated[:1] == ["evaluate: inputs changed, rerunning"]
    assert evaluated[-1] == "evaluate: unchanged, skipped"
    assert "prune: unchanged, skipped" in said


def test_held_out_rows_are_always_evaluated(bench: Path, tmp_path: Path) -> None:
    record = made(bench, tmp_path / "out", PRUNE, DISTILL, "[evaluate]\n")
    assert list(record.evaluation) == [
        "held-out perplexity",
        "held-out kl",
        "held-out top1",
    ]
    divergence = record.evaluation["held-out kl"]
    assert list(divergence) == ["pruned", "student"]
    found = stage(record, "distill").figures["held_out_divergence"]
    assert divergence["student"].value == pytest.approx(found, rel=0.05), "bf16 beside fp32"


def test_layers_by_their_numbers(bench: Path, tmp_path: Path) -> None:
    record = compress_model(recipe_of(bench, "[prune]\nlayers = [0, 3]\n"), tmp_path / "student")
    assert record.shape == {**record.teacher_shape, "num_hidden_layers": 2}
    student, whole = weights_of(tmp_path / "student"), weights_of(bench / "teacher")
    for ours, theirs in enumerate((0, 3)):
        name = "model.layers.{}.mlp.up_proj.weight"
        assert torch.equal(student[name.format(ours)], whole[name.format(theirs)])
    lines: list[str] = []
    other = recipe_of(bench, "[prune]\nlayers = [1, 3]\n")
    compress_model(other, tmp_path / "student", report=lines.append)
    assert "prune: inputs changed, rerunning" in lines
