"""Options of stages: the first student, how layers are ranked, what is always evaluated."""

import json
import shutil
from pathlib import Path

import pytest

from edgelm.checkpoint.student import StudentRecord
from edgelm.compress.pipeline import compress_model
from edgelm.compress.recipe import read_recipe
from edgelm.errors import BadCheckpoint, BadInput
from tests.compress.recipes import (
    DISTILL,
    PRUNE,
    TEACHER,
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


def test_a_layer_task_that_is_not_there(bench: Path, tmp_path: Path) -> None:
    more = 'layer_task = "last_word:none.jsonl"'
    with pytest.raises(BadInput, match=r"no such file: none\.jsonl"):
        made(bench, tmp_path / "out", DEPTH.format(layers="loss", more=more))


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
