"""`edge-run` without a terminal: prompts in, text on standard output, errors in one line."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import edgelm
from edgelm.bundle import read_manifest, write_manifest
from edgelm.runtime import Message
from edgelm.runtime.cli import main

EDGE_RUN = [sys.executable, "-m", "edgelm.runtime.cli"]


def said(bundle: Path, *turns: str, count: int = 8, system: str | None = None) -> list[str]:
    """What the model answers to each turn of a conversation."""
    messages = [Message(role="system", content=system)] if system else []
    answers = []
    with edgelm.load(bundle) as lm:
        for turn in turns:
            messages.append(Message(role="user", content=turn))
            answers.append(lm.generate(messages, max_tokens=count).text)
            messages.append(Message(role="assistant", content=answers[-1]))
    return answers


def continued(bundle: Path, prompt: str, count: int = 8) -> str:
    with edgelm.load(bundle) as lm:
        return lm.generate(prompt, max_tokens=count).text


def test_a_prompt_is_answered_through_the_template(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(bundle), "Why?", "-n", "8"]) == 0
    out, err = capsys.readouterr()
    assert out == said(bundle, "Why?")[0] + "\n"
    assert err == ""


def test_options_may_stand_before_the_prompt(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(bundle), "-n", "8", "Why?"]) == 0
    assert capsys.readouterr().out == said(bundle, "Why?")[0] + "\n"


def test_raw_leaves_the_template_out(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(bundle), "Why?", "-n", "8", "--raw"]) == 0
    out = capsys.readouterr().out
    assert out == continued(bundle, "Why?") + "\n"
    assert out != said(bundle, "Why?")[0] + "\n"


def test_a_dash_reads_standard_input(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("two\nlines\n"))
    assert main([str(bundle), "-", "-n", "8", "--raw"]) == 0
    assert capsys.readouterr().out == continued(bundle, "two\nlines\n") + "\n"


def test_a_model_without_a_template_continues(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    (copy / "chat_template.jinja").unlink()
    manifest = read_manifest(copy)
    files = {name: entry for name, entry in manifest.files.items() if "template" not in name}
    write_manifest(copy, msgspec.structs.replace(manifest, files=files))
    assert main([str(copy), "Why?", "-n", "8"]) == 0
    assert capsys.readouterr().out == continued(bundle, "Why?") + "\n"
    assert main([str(copy), "--chat"]) == 2
    assert "has no chat template" in capsys.readouterr().err


def test_system_message(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(bundle), "Why?", "-n", "8", "--system", "Be brief."]) == 0
    expected = said(bundle, "Why?", system="Be brief.")[0]
    assert capsys.readouterr().out == expected + "\n"
    assert expected != said(bundle, "Why?")[0]


def test_the_same_seed_says_the_same(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def sample(seed: str) -> str:
        arguments = ["--raw", "-n", "20", "--temperature", "1.5", "--top-k", "50", "--seed", seed]
        assert main([str(bundle), "a", *arguments]) == 0
        return capsys.readouterr().out

    assert sample("1") == sample("1")
    assert sample("1") != sample("2")
    assert sample("1") != continued(bundle, "a", 20) + "\n"


def test_stop_ends_before_the_text(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    free = continued(bundle, "a", 20)
    stop = free[5:8]
    assert main([str(bundle), "a", "--raw", "-n", "20", "--stop", stop]) == 0
    assert capsys.readouterr().out == free[: free.index(stop)] + "\n"


def test_stats_go_to_standard_error(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(bundle), "a", "--raw", "-n", "5", "--stats"]) == 0
    out, err = capsys.readouterr()
    assert out == continued(bundle, "a", 5) + "\n"
    assert err.startswith("1 prompt tokens, first token after ")
    assert ", 5 generated, " in err
    assert err.endswith(" tokens/s, stop reason: max_tokens\n")


def test_a_full_context_is_said(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = "k" * 125
    assert main([str(bundle), prompt, "--raw"]) == 0
    assert capsys.readouterr().err == "(the context is full)\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["", "--raw"], "the prompt is empty"),
        (["a", "--temperature", "-1"], "temperature is -1.0, expected a number at least 0"),
        (["a", "--top-p", "2"], "top_p is 2.0, expected a number between 0 and 1"),
        (["a", "--max-memory", "1MB"], "a context of 128 needs about"),
        (["a", "--max-memory", "much"], "max_memory: 'much' is not a size"),
        (
            ["a", "--max-memory", "100"],
            "max_memory: a maximum size of 100 bytes is smaller than any model",
        ),
        (["k" * 200, "--raw"], "the prompt has 200 tokens, the context holds 128"),
        (["a", "--seed", "-1"], "seed is -1"),
    ],
    ids=["empty", "temperature", "top-p", "memory", "size", "unit", "long", "seed"],
)
def test_bad_input_is_one_line_and_exit_code_2(
    bundle: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([str(bundle), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_piped_text_is_the_prompt(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Why?"))
    assert main([str(bundle), "-n", "8"]) == 0
    assert capsys.readouterr().out == said(bundle, "Why?")[0] + "\n"


def test_words_and_piped_text_make_one_prompt(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("a text"))
    assert main([str(bundle), "Shorten:", "-", "-n", "8"]) == 0
    assert capsys.readouterr().out == said(bundle, "Shorten:\n\na text")[0] + "\n"
    assert main([str(bundle), "what", "is", "this", "-n", "8"]) == 0
    assert capsys.readouterr().out == said(bundle, "what is this")[0] + "\n"


@pytest.mark.parametrize("arguments", [[], [""], ["-"], ["--raw", " "]])
def test_an_empty_prompt_is_refused(
    bundle: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert main([str(bundle), *arguments]) == 2
    assert capsys.readouterr().err.startswith("error: the prompt is empty")


def test_json_has_the_text_and_the_figures(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(bundle), "Why?", "-n", "8", "--json"]) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert err == ""
    assert record["text"] == said(bundle, "Why?")[0]
    assert (record["finish_reason"], record["stop_reason"]) == ("length", "max_tokens")
    assert record["usage"]["completion_tokens"] == 8
    assert record["timings"]["tokens_per_second"] > 0
    assert record["tool_calls"] == []


def test_an_answer_of_a_form(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": ["yes", "no"]}')
    assert main([str(bundle), "Why?", "--json-schema", str(schema)]) == 0
    assert json.loads(capsys.readouterr().out) in ("yes", "no")
    assert main([str(bundle), "Why?", "--regex", "[0-9]{4}"]) == 0
    assert re.fullmatch(r"\d{4}\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json-schema", "no.json"], "no.json cannot be read"),
        (["--tools", "no.json"], "no.json cannot be read"),
        (["--template-arguments", "{"], "--template-arguments is not JSON"),
        (["--template-arguments", "[]"], "--template-arguments is not a JSON object"),
        (["--regex", "("], "the regular expression of response_format cannot be used"),
        (["--regex", "a", "--json-schema", "b"], "give either --json-schema or --regex"),
    ],
)
def test_forms_that_cannot_be_used(
    bundle: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([str(bundle), "Why?", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "a"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} is not a bundle")


@pytest.mark.parametrize("arguments", [["-n", "0"], ["--threads", "x"], ["--top-k", "few"]])
def test_arguments_of_the_wrong_form(
    bundle: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(bundle), "a", *arguments])
    assert stopped.value.code == 2
    assert f"argument {arguments[0]}" in capsys.readouterr().err.replace("-n/--max", "-n")


@pytest.mark.parametrize(
    ("arguments", "lines", "turns"),
    [
        (["first", "--chat"], "second\n\nthird\n", ["first", "second", "third"]),
        (["--chat"], "first\nsecond\n", ["first", "second"]),
    ],
    ids=["after a prompt", "without one"],
)
def test_chat_reads_turns_from_a_pipe(
    bundle: Path, arguments: list[str], lines: str, turns: list[str]
) -> None:
    done = subprocess.run(
        [*EDGE_RUN, str(bundle), *arguments, "-n", "8"],
        input=lines,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    assert done.returncode == 0, done.stderr
    answers = "".join(answer + "\n" for answer in said(bundle, *turns))
    assert done.stdout == answers + "\n"


def test_reset_forgets_the_conversation(bundle: Path) -> None:
    done = subprocess.run(
        [*EDGE_RUN, str(bundle), "first", "--chat", "-n", "8"],
        input="second\n/reset\nsecond\n",
        capture_output=True,
        text=True,
    )
    first, second = said(bundle, "first", "second")
    (alone,) = said(bundle, "second")
    assert done.stdout == f"{first}\n{second}\n{alone}\n\n"


def test_a_closed_pipe_is_no_error(bundle: Path) -> None:
    command = f"{' '.join(EDGE_RUN)} {bundle} a --raw -n 100 | head -c 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("also", [["Why?"], ["--chat"]])
def test_a_self_test_answers_no_prompt(
    bundle: Path, capsys: pytest.CaptureFixture[str], also: list[str]
) -> None:
    assert main([str(bundle), *also, "--self-test"]) == 2
    assert "--self-test asks its own questions" in capsys.readouterr().err
