"""Every program in examples/ runs as its header says, on a tiny model."""

import json
import runpy
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from edgelm.export.pipeline import export_model
from tests.checkpoints.tiny_chat import save_tiny_chat

EXAMPLES = Path(__file__).parents[2] / "examples"
MAX_LINES = 60


def run(name: str, *arguments: object, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_chat(tmp_path_factory.mktemp("examples-source"))


def export(*arguments: object) -> tuple[int, str]:
    """Run examples/export_model.py in this process, where exports run short texts."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
        patch.setattr(sys, "argv", ["export_model.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(EXAMPLES / "export_model.py"), run_name="__main__")
    return int(str(end.value.code)), printed.getvalue()


@pytest.fixture(scope="module")
def exported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A bundle that examples/export_model.py wrote, and what it printed."""
    folder = tmp_path_factory.mktemp("examples") / "bundle"
    code, printed = export(source, folder, "int8")
    assert code == 0
    return folder, printed


@pytest.fixture(scope="module")
def bundle(exported: tuple[Path, str]) -> Path:
    return exported[0]


@pytest.fixture(scope="module")
def long_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose context holds the schemas of tools."""
    source = save_tiny_chat(tmp_path_factory.mktemp("long-source"), context=2048)
    folder = tmp_path_factory.mktemp("long") / "bundle"
    export_model(source, folder, precision="fp32")
    return folder


def test_export_prints_size_and_quality(exported: tuple[Path, str]) -> None:
    folder, printed = exported
    assert printed.startswith(f"{folder}: ")
    assert "KL 0.0" in printed


def test_export_says_why_a_result_is_refused(source: Path, tmp_path: Path) -> None:
    code, printed = export(source, tmp_path / "bundle", "int4")
    assert code == 1
    assert "KL" in printed
    assert not (tmp_path / "bundle").exists()


def test_chat_answers_every_line(bundle: Path) -> None:
    done = run("chat.py", bundle, text="Why is the sky blue?\nAnd the sea?\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("> ") == 3  # two questions, and the end of the input


def test_cancel_stops_or_finishes(bundle: Path) -> None:
    done = run("cancel.py", bundle, "Why is the sky blue?", 0.0)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("[stopped]\n")
    done = run("cancel.py", bundle, "Why is the sky blue?", 100.0)
    assert done.stdout.endswith("[finished]\n")


@pytest.fixture
def server(bundle: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(EXAMPLES / "fastapi_app.py"), str(bundle), str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "Uvicorn running" in line:
            break
    yield f"http://127.0.0.1:{port}/ask"
    process.terminate()
    process.wait()
    process.stderr.close()


def test_fastapi_app_answers_and_refuses(server: str) -> None:
    def post(body: bytes) -> Any:
        request = urllib.request.Request(server, body, {"Content-Type": "application/json"})
        return urllib.request.urlopen(request, timeout=60)

    with post(b'{"question": "Why?"}') as answer:
        assert answer.status == 200
        answer.read().decode()  # whole characters only
    for body, status in ((b"no json", 422), (b"{}", 422)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(body)
        assert refused.value.code == status
        refused.value.close()


def test_two_conversations_do_not_mix(bundle: Path) -> None:
    done = run("two_conversations.py", bundle, "Why?", "What is bread?")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.strip().split("\n\n")
    for text, question in ((first, "Why?"), (second, "What is bread?")):
        assert text.startswith(f"system: Answer in one sentence.\nuser: {question}\nassistant: ")


def test_asyncio_answers_every_question(bundle: Path) -> None:
    done = run("asyncio_chat.py", bundle, 60, "Why?", "What is bread?")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line[:2] == "> "] == [
        "> Why?",
        "> What is bread?",
    ]
    done = run("asyncio_chat.py", bundle, 0, "Why?")
    assert "[too slow]" in done.stdout


def test_a_record_is_read_from_a_text(long_bundle: Path) -> None:
    done = run("extract_json.py", long_bundle, "Ada, 36, moved to Paris.")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert list(record) == ["name", "age", "cities"]
    assert record["age"] is None or 0 <= record["age"] <= 150


def test_an_agent_calls_its_function(long_bundle: Path) -> None:
    done = run("tool_agent.py", long_bundle, "How long is it from 09:40 to 11:05?")
    assert done.returncode == 0, done.stderr
    call, *_ = done.stdout.splitlines()
    name, _, rest = call.partition("(")
    arguments, _, minutes = rest.partition(") = ")
    assert name == "minutes_between"
    assert set(json.loads(arguments)) == {"start", "end"}
    assert int(minutes) in range(-1440, 1440)


def test_plan_prints_a_line_for_every_device(source: Path) -> None:
    done = run("plan_devices.py", source, "int8", "cpu", "jetson-orin-nano")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == [
        "cpu",
        "jetson-orin-nano-8gb-super",
    ]


def test_gate_figures_are_those_of_the_manifest(bundle: Path) -> None:
    done = run("gate_figures.py", bundle)
    assert done.returncode == 0, done.stderr
    kl = json.loads((bundle / "bundle.json").read_text())["gate"]["figures"]["kl"]
    assert f"{kl:.4f}" in done.stdout
    assert done.stdout.endswith("passed\n")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short_tested_and_says_how_to_run_it(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    assert f"python examples/{path.name}" in text
    tests = (one.read_text() for one in Path(__file__).parent.glob("test_*.py"))
    assert any(f'"{path.name}"' in test for test in tests)
