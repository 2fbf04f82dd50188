"""The time that a task still takes."""

from edgelm.compress.evaluation.backend import Answer
from edgelm.compress.evaluation.run_tasks import run_task
from edgelm.compress.evaluation.task_names import parse_tasks
from edgelm.compress.evaluation.time_left import TimeLeft
from tests.compress.evaluation.scripted import Scripted


class _Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def test_seconds_minutes_and_hours() -> None:
    clock = _Clock()
    left = TimeLeft(clock)
    assert left.text(0, 9) == ""
    clock.now += 30
    assert left.text(1, 4) == ", 2 min left"
    assert left.text(4, 5) == ", 8 s left"
    assert left.text(5, 5) == ""
    assert left.text(1, 101) == ", 50 min left"
    assert left.text(1, 1001) == ", 8.3 h left"


def test_a_task_shows_it() -> None:
    seen: list[str] = []
    backend = Scripted(lambda _: Answer("No.", 2, True))
    (task,) = parse_tasks(["rag"])
    run_task(backend, task, limit=3, max_new_tokens=4, progress=seen.append)
    assert [line.split(",")[0] for line in seen] == ["rag 1/3", "rag 2/3", "rag 3/3"]
    assert [line.endswith(" s left") for line in seen] == [True, True, False]
