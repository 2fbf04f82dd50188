"""`edge-eval` compares a checkpoint with another one by KL, or says what is missing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from edgelm.bench.evaluation import cli
from edgelm.bench.evaluation.subjects import _check_same_vocabulary
from edgelm.compress.data.documents import Document
from edgelm.compress.evaluation.backends.student_backend import StudentBackend
from edgelm.compress.evaluation.tasks.text_quality import teacher_agreement
from edgelm.compress.model import load_model, load_tokenizer
from edgelm.errors import BadInput
from tests.checkpoints.tiny_chat import save_tiny_chat

TEXTS = [f"The miller waits until level {i} has dropped below the wheel." * 3 for i in range(5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, a student that differs from it, and texts."""
    folder = tmp_path_factory.mktemp("checkpoints")
    save_tiny_chat(folder / "teacher")
    save_tiny_chat(folder / "student")
    student = load_model(folder / "student")
    with torch.no_grad():
        student.model.layers[1].mlp.down_proj.weight.mul_(-2)
    student.save_pretrained(folder / "student")
    (folder / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    return folder


def evaluate(folder: Path, out: Path, *options: str) -> int:
    task = f"kl:{folder / 'texts.jsonl'}"
    words = [str(folder / "student"), "--tasks", task, "--limit", "2", "--out", str(out)]
    return cli.main([*words, *options])


def test_kl_is_the_teachers(folder: Path, tmp_path: Path) -> None:
    assert evaluate(folder, tmp_path, "--against", str(folder / "teacher")) == 0
    (task,) = json.loads((tmp_path / "evaluation.json").read_text())["tasks"]
    found: dict[str, Any] = task["figures"]
    assert sorted(found) == ["kl:texts.jsonl kl", "kl:texts.jsonl top1"]
    teacher, student = (load_model(folder / name) for name in ("teacher", "student"))
    backend = StudentBackend(student, load_tokenizer(folder / "student"))
    rows = backend.text_rows(map(Document, TEXTS), min(512, backend.context), 2)
    expected = teacher_agreement(student, teacher, torch.tensor(rows))["kl"]
    assert expected.value > 0.01
    assert found["kl:texts.jsonl kl"]["value"] == pytest.approx(expected.value)


def test_nothing_to_compare_with(folder: Path, tmp_path: Path, capsys: Any) -> None:
    assert evaluate(folder, tmp_path / "out") == 2
    assert "give it with --against" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_tokens(folder: Path, tmp_path: Path, capsys: Any) -> None:
    other = save_tiny_chat(tmp_path / "other")
    path = other / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(content))
    assert evaluate(folder, tmp_path / "out", "--against", str(other)) == 2
    assert "has another vocabulary" in capsys.readouterr().err


def test_the_tokens_that_fill_up_a_gguf_vocabulary_do_not_count(folder: Path) -> None:
    plain, filled = (load_tokenizer(folder / "student") for _ in range(2))
    start = len(plain)
    filled.add_tokens([f"[PAD{start + number}]" for number in range(3)])
    assert len(filled) == start + 3
    _check_same_vocabulary("teacher", filled, plain)
    filled.add_tokens(["<another>"])
    with pytest.raises(BadInput, match=r"has another vocabulary .*'<another>', id \d+, is in one"):
        _check_same_vocabulary("teacher", filled, plain)


def test_a_checkpoint_that_was_trained_again_is_compared_again(
    folder: Path, tmp_path: Path, capsys: Any
) -> None:
    teacher = Path(shutil.copytree(folder / "teacher", tmp_path / "teacher"))
    options = ("--against", str(teacher))
    assert evaluate(folder, tmp_path / "out", *options) == 0
    model = load_model(teacher)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    model.save_pretrained(teacher)
    capsys.readouterr()
    assert evaluate(folder, tmp_path / "out", *options) == 0
    assert "resumed" not in capsys.readouterr().err
