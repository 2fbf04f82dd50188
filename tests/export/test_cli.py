"""`edge-export`: exit codes, messages, and a plan within a second."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgelm.bundle import read_manifest
from edgelm.devices.profile import profile_names
from edgelm.export.cli import main
from edgelm.quantize.precision import Int4, Int8
from tests.conftest import TinyFactory
from tests.processor_time import run_timed


@pytest.fixture(scope="module")
def bundle(tiny_chat: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("cli") / "bundle"
    assert main([str(tiny_chat), "-o", str(output), "--precision", "int8"]) == 0
    return output


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_export_says_what_it_made(
    tiny_chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "bundle"
    code, out, err = run(capsys, tiny_chat, "-o", output, "--precision", "int8")
    assert code == 0
    first, second = out.splitlines()
    manifest = read_manifest(output)
    bits = 8 * manifest.weight_bytes / manifest.spec.parameters
    assert first.startswith(f"{output}: 0.")
    assert first.endswith(f" MB, {bits:.2f} bits per weight")
    assert second.startswith(f"run it: edge-run {output} ")
    assert "passed" in err  # progress does not go where results go


def test_export_as_json(
    tiny_chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, tiny_chat, "-o", tmp_path / "b", "--precision", "int8", "--json")
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "b" / "bundle.json").read_text())


def test_options_reach_the_export(
    tiny_chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The miller waits until the level outside has dropped. " * 100)
    options = ["--precision", "int4", "--group-size", "16", "--symmetric", "--context", "64"]
    options += ["--kv", "fp32", "--gate", "off", "--layer", "layers.0.*=int8"]
    options += ["--layer", "lm_head=int8", "--gate-text", str(text), "--calibration", str(text)]
    code, _, _ = run(capsys, tiny_chat, "-o", tmp_path / "b", *options)
    assert code == 0
    manifest = read_manifest(tmp_path / "b")
    assert manifest.precision["layers.1.mlp.down"] == Int4(16, symmetric=True)
    assert manifest.precision["layers.0.mlp.down"] == Int8(16, symmetric=True)
    assert manifest.precision["lm_head"] == Int8(16, symmetric=True)
    assert (manifest.kv, manifest.limits.context) == ("fp32", 64)
    assert manifest.gate is not None
    assert (manifest.gate.text, manifest.gate.enforced) == ("text.txt", False)


def test_failed_gate_exits_one(
    tiny_chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, tiny_chat, "-o", tmp_path / "b", "--precision", "int4")
    assert code == 1
    assert out == ""
    assert err.splitlines()[-1].startswith("error: the 4-bit quality gate failed: KL ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a model: a Hugging Face folder, a hub id or a .gguf file"),
        (["MODEL"], "give a folder to write the bundle to: -o DIR"),
        (["/no/model", "-o", "b"], "no such file or folder: /no/model"),
        (["MODEL", "-o", "b", "--target", "gpu9"], "unknown target 'gpu9'; "),
        (
            ["MODEL", "-o", "b", "--target", "jetson-orin", "--sm", "87"],
            "tensorrt is compiled on the device itself, for its own GPU; --sm goes with "
            "tensorrt-rtx, which compiles ahead of time",
        ),
        (
            ["MODEL", "-o", "b", "--target", "cpu", "--kv", "fp16"],
            "cpu has no fp16 cache with onnxruntime; it has",
        ),
        (
            ["MODEL", "-o", "b", "--precision", "int3"],
            "cpu has no int3 with onnxruntime; it has auto, fp32, int8, int4",
        ),
        (["MODEL", "-o", "b", "--context", "999"], "context 999 is not possible"),
        (["MODEL", "-o", "b", "--layer", "int8"], "--layer 'int8': expected PATTERN=PRECISION"),
        (["MODEL", "-o", "b", "--layer", "=int8"], "--layer '=int8': expected PATTERN=PRECISION"),
        (["--verify", "MODEL"], "is not a bundle (it has no bundle.json)"),
    ],
    ids=[
        "nothing",
        "no-output",
        "no-such-model",
        "target",
        "sm-of-a-jetson",
        "cache",
        "precision",
        "context",
        "layer",
        "empty-pattern",
        "verify-no-bundle",
    ],
)
def test_bad_input_exits_two(
    tiny_chat: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(tiny_chat) if argument == "MODEL" else argument for argument in arguments]
    code, out, err = run(capsys, *given)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--context", "0"], "'0' is not a whole number above zero"),
        (["--kv", "int2"], "invalid choice: 'int2'"),
        (["--group-size", "48"], "invalid choice: 48"),
        (["--gate", "maybe"], "invalid choice: 'maybe'"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
    ids=["context", "kv", "group-size", "gate", "unknown"],
)
def test_bad_option_exits_two(
    capsys: pytest.CaptureFixture[str], option: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["model", *option])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_verify(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--verify", bundle)
    assert code == 0
    assert out.startswith(f"{bundle}: {len(read_manifest(bundle).files)} files, ")
    assert "all hashes match\nnot signed" in out


def test_verify_finds_tampering(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text().replace("user", "root").replace("m.role", "m.rule"))
    code, out, err = run(capsys, "--verify", copy)
    assert (code, out) == (2, "")
    assert "chat_template.jinja does not match its SHA-256" in err


def test_list_targets(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--list-targets")
    assert code == 0
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["cpu"] == "this machine (CPU), ONNX Runtime; fp32, int8, int4"
    assert lines["jetson-agx-orin-64gb"] == "Jetson AGX Orin 64GB; fp16, int8, w8a8, int4"
    assert list(lines) == profile_names()


def test_plan(tiny: TinyFactory, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, tiny("qwen3").folder, "--plan", "--precision", "int8")
    assert code == 0
    assert "precision       int8, int8 cache, context 128" in out
    assert out.splitlines()[-1].startswith("Estimates from ")


def test_plan_of_a_target_without_bundles(
    tiny: TinyFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, tiny("qwen3").folder, "--plan", "--target", "jetson-orin")
    assert code == 0
    assert "target          jetson-agx-orin-64gb, MAXN (tensorrt, standard dialect)" in out
    assert "precision       auto, fp16 cache, context 128" in out


def test_plan_as_json(tiny: TinyFactory, capsys: pytest.CaptureFixture[str]) -> None:
    source = tiny("qwen3")
    code, out, _ = run(capsys, source.folder, "--plan", "--json", "--context", "100")
    plan = json.loads(out)
    assert code == 0
    assert plan["parameters"] == source.checkpoint.spec.parameters
    assert plan["context"] == 100


def test_plan_needs_the_config_only(
    tiny: TinyFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Else planning a hub id would first fetch all of its weights.
    shutil.copy(tiny("qwen3").folder / "config.json", tmp_path)
    code, out, err = run(capsys, tmp_path, "--plan")
    assert code == 0, err
    assert "context 128" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "int8", "--layer", "nothing.*=int4"], "matches no group"),
        (["--precision", "int8", "--layer", "layers.*=int3"], "int3"),
        (["--layer", "layers.*"], "expected PATTERN=PRECISION"),
        (["--method", "best"], "unknown method 'best'"),
        (["--precision", "int8", "--max-size", "98MB"], "needs --precision auto"),
        (["--max-size", "98"], "smaller than any model"),
        (["--segments", "5000"], "segments is 5000"),
    ],
)
def test_plan_refuses_what_the_export_would(
    tiny: TinyFactory, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    code, out, err = run(capsys, tiny("qwen3").folder, "--plan", *options)
    assert (code, out) == (2, "")
    assert message in err


def test_plan_takes_less_than_a_second(tiny: TinyFactory) -> None:
    command = [sys.executable, "-m", "edgelm.export.cli", str(tiny("gemma2").folder), "--plan"]
    runs = [run_timed(command) for _ in range(3)]
    assert all(output.startswith("target          cpu") for output, _ in runs)
    assert min(seconds for _, seconds in runs) < 1.0


@pytest.mark.slow
def test_sigterm_cleans_up(tiny_chat: Path, tmp_path: Path) -> None:
    # SIGTERM arrives at the first line of progress: the child signals itself.
    code = (
        "import os, signal, sys; from edgelm.export import pipeline; from edgelm.export.cli "
        "import main; run = pipeline._export; pipeline._export = lambda *given: "
        "(os.kill(os.getpid(), signal.SIGTERM), run(*given))[1]; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_chat), "-o", str(tmp_path / "bundle")],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.endswith("interrupted\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "option",
    [
        *(["-o", "out"], ["--target", "jetson-orin"], ["--engine", "onnxruntime"], ["--sm", "89"]),
        *(["--context", "64"], ["--kv", "fp32"], ["--segments", "2"], ["--gate-text", "t.txt"]),
        *(["--max-size", "3MB"], ["--adapter", "lora"], ["--switchable"], ["--plan"]),
    ],
    ids=lambda words: str(words[0]),
)
def test_options_that_a_draft_model_does_not_have_are_refused(
    capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    code, out, err = run(capsys, "model", "--draft-for", "bundle", *option)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: leave out {option[0]} with --draft-for: ")


@pytest.mark.parametrize("mode", [["--list-targets"], ["--verify", "b"], ["--finalize", "b"]])
@pytest.mark.parametrize("export", [["model"], ["-o", "out"], ["--draft-for", "bundle"]])
def test_a_command_that_exports_nothing_takes_no_model(
    capsys: pytest.CaptureFixture[str], mode: list[str], export: list[str]
) -> None:
    assert main([*export, *mode]) == 2
    assert f"{mode[0]} exports nothing; leave out the model, -o and" in capsys.readouterr().err


def test_two_commands_in_one_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--sign", "bundle", "key", "--verify", "bundle"])
    assert caught.value.code == 2
    assert "not allowed with argument --sign" in capsys.readouterr().err


def test_help_has_an_example_and_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "edge-export HuggingFaceTB/SmolLM2-135M-Instruct --target cpu -o bundle/" in text
    assert "exit codes: 0 done, 1 the quality gate failed, 2 bad input" in text
    assert len(text.splitlines()) <= 70
