"""The ROS 2 node with a stand-in for rclpy, which no package index has."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.examples.test_examples import EXAMPLES, long_bundle

__all__ = ["long_bundle"]  # a fixture
STAND_IN = Path(__file__).parent / "ros2"


def run(bundle: Path, questions: str) -> tuple[list[str], str]:
    """What the node published, and its standard error."""
    paths = [str(STAND_IN), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "ros2_node.py"), str(bundle), "--ros-args", "-r", "a:=b"],
        input=questions,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_the_node_answers_and_a_new_question_ends_an_answer(long_bundle: Path) -> None:
    published, printed = run(long_bundle, "Why?\n")
    whole = published[:-1]
    assert whole
    assert published.index("") == len(whole)
    assert printed == "shut down\n"
    published, printed = run(long_bundle, "Why?...\nAnd the sea?\n")
    ends = [n for n, text in enumerate(published) if not text]
    assert len(ends) == 2
    begun, complete = "".join(published[: ends[0]]), "".join(whole)
    assert complete.startswith(begun)
    assert 0 < len(begun) < len(complete)
    assert ends[1] == len(published) - 1 > ends[0] + 1
    assert printed == "shut down\n"


def test_a_question_without_an_answer_is_an_error(long_bundle: Path) -> None:
    published, printed = run(long_bundle, f"{'word ' * 3000}\nWhy?\n")
    assert published[0] == ""
    assert len(published) > 2
    assert printed.startswith("error: no answer: ")
