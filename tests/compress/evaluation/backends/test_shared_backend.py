"""Items divided over processes: every process has the scores of one."""

import json
from pathlib import Path

import pytest

from edgelm.compress.evaluation.backends.shared_backend import SharedBackend
from tests.compress.evaluation.backends.evaluate_processes import evaluated
from tests.compress.recipes import workshop
from tests.forks import run_forked

TASKS = (
    *("perplexity:{}/train.jsonl", "kl:{}/train.jsonl", "last_word:{}/words.jsonl"),
    *("multiple_choice:{}/questions.jsonl", "rag_choice", "function_choice"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = workshop(tmp_path_factory.mktemp("shared"))
    words = [{"context": f"A stone of {n} is a", "target": "stone"} for n in range(5)]
    questions = [
        {"question": f"What is {n}?", "choices": ["a stone", f"{n}", "no"], "answer": n % 3}
        for n in range(2)
    ]
    for name, rows in (("words", words), ("questions", questions)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_processes_have_the_scores_of_one(folder: Path) -> None:
    """Three processes: of five passages one has a single one, of two questions one has none."""
    names = [name.format(folder) for name in TASKS]
    module = "tests.compress.evaluation.backends.evaluate_processes"
    assert run_forked(module, str(folder), *names, processes=3) == 0
    first, *others = (json.loads((folder / f"scores-{rank}.json").read_text()) for rank in range(3))
    assert others == [first, first]
    expected = evaluated(folder, names, shared=False)
    assert list(first) == list(expected)
    for name, score in expected.items():
        assert first[name]["n"] == score.n, name
        assert first[name]["value"] == pytest.approx(score.value, rel=1e-4), name
        assert first[name]["error"] == pytest.approx(score.error, rel=1e-3, abs=1e-9), name


def test_a_process_alone(folder: Path) -> None:
    """Without a launcher, all items are its own."""

    class Doubles:
        def losses(self, rows: list[int], progress: object) -> list[int]:
            return [2 * row for row in rows]

        agreement = losses

    shared = SharedBackend(Doubles())  # type: ignore[arg-type]
    assert shared.losses([1, 2, 3]) == [2, 4, 6]  # type: ignore[list-item]
    assert shared.losses([]) == []
    assert shared.agreement([]) == {}
