"""A judge in both orders, by URL and by bundle."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from edgelm.bench.evaluation import cli
from edgelm.bench.evaluation.judge import judge_dialogs, open_judge
from edgelm.errors import BadInput

TURNS = [("Who are you?", "And why?"), ("Say hello.",)]
GOOD = [("good", "good"), ("good",)]
BAD = [("bad", "bad"), ("bad",)]


def prefers_good(messages: list[dict[str, str]]) -> str:
    """Judges by what stands in the first conversation."""
    first, second = messages[1]["content"].split("<|The Start of Assistant B")
    if ("good" in first) == ("good" in second):
        return "Both are fine. [[C]]"
    return "[[A]]" if "good" in first else "[[B]]"


@pytest.fixture
def url() -> Iterator[str]:
    """A server of chat completions that prefers good answers."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert (self.path, body["model"]) == ("/v1/chat/completions", "referee")
            text = prefers_good(body["messages"])
            answer = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def test_a_better_model_wins_in_both_orders(url: str) -> None:
    with ExitStack() as stack:
        judge = open_judge(url, "referee", stack)
        wins = judge_dialogs(judge, TURNS, GOOD, BAD, lambda *_: None)
        losses = judge_dialogs(judge, TURNS, BAD, GOOD, lambda *_: None)
        ties = judge_dialogs(judge, TURNS, GOOD, GOOD, lambda *_: None)
    assert [one["preferred"].mean for one in (wins, losses, ties)] == [1, 0, 0.5]
    assert wins["same in both orders"].mean == 1


def test_a_judge_that_prefers_the_first_decides_nothing() -> None:
    found = judge_dialogs(lambda _: "[[A]]", TURNS, GOOD, BAD, lambda *_: None)
    assert (found["preferred"].mean, found["same in both orders"].mean) == (0.5, 0)


def test_a_judge_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with ExitStack() as stack:
        judge = open_judge("http://127.0.0.1:9/v1", "referee", stack)
        with pytest.raises(BadInput, match=r"the judge at .*/v1/chat/completions did"):
            judge([])
        with pytest.raises(BadInput, match="is not a bundle; expected the folder of one, or a URL"):
            open_judge(str(tmp_path), "", stack)


@pytest.mark.slow
def test_the_command_judges_a_bundle_against_another(
    bundle: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "mt.jsonl"
    rows.write_text('{"turns": ["Why?", "How?"]}\n{"turns": ["Who?"]}\n')
    task = f"mt_bench:{rows}"
    out = ["--out", str(tmp_path / "out"), "--max-new-tokens", "4", "--threads", "1"]
    assert cli.main([str(bundle), "--tasks", task, *out]) == 2
    assert "give --against and --judge" in capsys.readouterr().err
    given = [str(bundle), "--against", str(bundle), "--judge", url, "--tasks", task, *out]
    given += ["--judge-model", "referee"]
    assert cli.main(given) == 0
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    figures = found["tasks"][0]["figures"]
    assert figures["mt_bench:mt.jsonl preferred"]["value"] == 0.5  # the same model
