"""Mistakes in the rows of any task are found before a model is needed."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgelm.compress.evaluation import run_tasks
from edgelm.compress.evaluation.run_tasks import check_tasks
from edgelm.compress.evaluation.task_names import Task
from edgelm.compress.evaluation.tasks.ifeval import ifeval
from edgelm.errors import BadInput, MissingPackage, UnknownName

ROWS: dict[str, dict[str, Any]] = {
    "last_word": {"context": "Why is the", "target": "sky"},
    "multiple_choice": {"question": "Why?", "choices": ["a", "b"], "answer": 0},
    "ifeval": {"prompt": "Why?", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    "perplexity": {"text": "The miller."},
    "kl": {"text": "The miller."},
    "rag": {"ctxs": [{"text": "A"}], "messages": [{"role": "user", "content": "Q"}], "answers": []},
}


class UnusableBackend:
    """Fails when a task touches it."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"a model was asked for {name}")


def written(folder: Path, kind: str, row: object) -> Task:
    path = folder / f"{kind}.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return Task(kind, str(path))


def test_right_rows_pass_without_a_model(tmp_path: Path) -> None:
    check_tasks([written(tmp_path, kind, row) for kind, row in ROWS.items()], None)
    own = [Task(kind, "") for kind in ("rag", "rag_choice", "functions", "function_choice")]
    check_tasks([*own, Task("needle", ""), Task("persona", ""), Task("lm-eval", "x")], 3)


@pytest.mark.parametrize("kind", ROWS)
def test_rows_of_another_form_are_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(BadInput, match="expected"):
        check_tasks([Task("rag", ""), written(tmp_path, kind, {"other": 1})], None)


def test_an_unknown_instruction_in_the_last_task_is_found_before_the_first_runs(
    tmp_path: Path,
) -> None:
    row = {**ROWS["ifeval"], "instruction_id_list": ["punctuation:none"]}
    with pytest.raises(UnknownName, match="punctuation:none"):
        run_tasks.run_tasks(
            UnusableBackend(),  # type: ignore[arg-type]
            [Task("rag", ""), written(tmp_path, "ifeval", row)],
        )


def test_a_missing_package_is_found_before_the_first_task_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise MissingPackage("detecting the language of answers needs langdetect")

    monkeypatch.setattr(ifeval, "require_language_detection", missing)
    names = ["language:response_language"]
    row = {"prompt": "Why?", "instruction_id_list": names, "kwargs": [{"language": "de"}]}
    with pytest.raises(MissingPackage, match="langdetect"):
        check_tasks([Task("rag", ""), written(tmp_path, "ifeval", row)], None)
