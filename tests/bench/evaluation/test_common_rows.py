"""Two models are compared on the same rows, or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgelm.bench.evaluation.results.records import Evaluation
from edgelm.bench.evaluation.run import EvaluationRequest, run_evaluation
from edgelm.compress.data.documents import read_documents
from edgelm.compress.evaluation.backends.student_backend import StudentBackend
from edgelm.compress.evaluation.task_names import parse_tasks
from edgelm.compress.model import load_model, load_tokenizer
from edgelm.errors import BadInput
from tests.checkpoints.tiny_chat import save_tiny_chat

TEXT = "The miller waits until the level outside has dropped below the wheel. " * 20


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`long` and `short`, of one architecture with contexts of 512 and 400 tokens."""
    folder = tmp_path_factory.mktemp("contexts")
    save_tiny_chat(folder / "long", context=512)
    save_tiny_chat(folder / "short", context=400)
    (folder / "texts.jsonl").write_text(
        "".join(json.dumps({"text": f"{number} {TEXT}"}) + "\n" for number in range(4))
    )
    return folder


def compared(models: Path, out: Path, *tasks: str, limit: int | None = None) -> Evaluation:
    request = EvaluationRequest(
        model=str(models / "short"),
        tasks=tuple(parse_tasks(tasks)),
        out=out,
        command="",
        machine="",
        against=str(models / "long"),
        limit=limit,
    )
    return run_evaluation(request, lambda _: None)


def test_rows_fit_the_shorter_context(models: Path, tmp_path: Path) -> None:
    task = f"perplexity:{models / 'texts.jsonl'}"
    (found,) = compared(models, tmp_path, task, limit=2).tasks
    gap = found.differences["perplexity:texts.jsonl"]
    assert (gap.value, gap.ratio) == (0, 1), "the two have the same weights"
    model, tokenizer = load_model(models / "long"), load_tokenizer(models / "long")
    backend = StudentBackend(model, tokenizer)
    rows = backend.text_rows(read_documents(models / "texts.jsonl"), 400, 2)
    losses = backend.losses(rows)
    assert found.against["perplexity:texts.jsonl"].value == pytest.approx(
        2.718281828459045 ** (sum(losses) / 2)
    )


def test_results_that_cannot_be_written(models: Path, tmp_path: Path) -> None:
    """Refused before a model is loaded, not after its first task."""
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=r"--out .*: .*/file is a file; expected a folder"):
        compared(models, tmp_path / "file" / "out", f"perplexity:{models / 'texts.jsonl'}")


def test_haystacks_are_of_the_same_lengths(models: Path, tmp_path: Path) -> None:
    (found,) = compared(models, tmp_path, "needle").tasks
    assert set(found.differences) == set(found.figures) == set(found.against)


def test_another_tokenizer_is_not_paired(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows hold other texts: a difference on them would say nothing about the models."""
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "models"
    save_tiny_chat(other / "long", context=512)
    save_tiny_chat(other / "short", context=400)
    content: dict[str, Any] = json.loads((other / "long" / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][:4]
    (other / "long" / "tokenizer.json").write_text(json.dumps(content))
    task = f"perplexity:{models / 'texts.jsonl'}"
    (found,) = compared(other, tmp_path / "out", task, limit=2).tasks
    assert set(found.figures) == set(found.against) == {"perplexity:texts.jsonl"}
    assert not found.differences


def test_a_second_model_repeats_nothing_of_the_shorter(models: Path, tmp_path: Path) -> None:
    """Its rows are its own with and without another model."""
    lines: list[str] = []
    task = parse_tasks([f"perplexity:{models / 'texts.jsonl'}"])
    for against in (None, str(models / "long")):
        request = EvaluationRequest(
            model=str(models / "short"),
            tasks=tuple(task),
            out=tmp_path,
            command="",
            machine="",
            against=against,
            limit=1,
        )
        run_evaluation(request, lines.append)
    assert sum("resumed, short was evaluated before" in line for line in lines) == 1
