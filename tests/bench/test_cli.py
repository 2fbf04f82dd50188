"""`edge-bench` from its arguments to the three files."""

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgelm.bench import cli
from edgelm.bench.cli import main, parser
from edgelm.bench.peers.engines import PEERS
from edgelm.bench.report.records import Report
from edgelm.bundle import read_manifest, write_manifest
from edgelm.devices.sensors import Reader, Sampler
from edgelm.export.pipeline import export_model
from tests.bench.fake_peers import make_peers
from tests.checkpoints.models import save_tiny
from tests.checkpoints.tiny_chat import save_tiny_chat

SMALL = ["-p", "8", "-n", "4", "-d", "0,6", "-r", "2", "--threads", "1"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("EDGELM_PEERS", str(tmp_path / "no-peers"))


def bench(out: Path, *arguments: str | Path) -> int:
    return main([*(str(argument) for argument in arguments), *SMALL, "--out", str(out)])


def read(out: Path) -> Report:
    return msgspec.json.decode((out / "report.json").read_bytes(), type=Report)


@pytest.mark.slow
def test_three_files(
    bundle: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "report"
    assert bench(out, bundle, "--source", source) == 0
    assert {path.name for path in out.iterdir()} == {"report.json", "report.md", "report.html"}
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    results = report["results"]
    assert [result["test"] for result in results] == ["pp8", "tg4", "tg4@d6"]
    for result in results:
        assert result["engine"] == "edgelm fp32 tiny-fp32"
        assert len(result["tokens_per_second"]["samples"]) == 2
        assert result["tokens_per_second"]["median"] > 0
        assert result["context"] == 6 + 8 + 4
        assert result["kl"] < 1e-6
        assert result["top1"] == 1.0
    assert report["rounds"] == 2
    assert report["machine"]["threads"] == 1
    assert report["machine"]["read_gb_s"] > 0.1
    assert report["command"].startswith(f"edge-bench {bundle} --source {source} -p 8 -n 4")
    printed = capsys.readouterr().out
    for line in printed.splitlines()[:-1]:
        assert line in (out / "report.md").read_text()
    assert printed.splitlines()[-1] == f"report: {out}/report.html"
    assert "edgelm fp32 tiny-fp32" in (out / "report.html").read_text()


@pytest.mark.slow
def test_what_the_sensors_saw_is_reported(bundle: Path, tmp_path: Path) -> None:
    assert bench(tmp_path / "report", bundle, "--no-quality") == 0
    log = read(tmp_path / "report").sensors
    assert log is not None
    assert log.sensors[0].name == "memory in use"
    assert log.seconds > 0
    assert "| memory in use | MB |" in (tmp_path / "report" / "report.md").read_text()


@pytest.mark.slow
def test_a_throttled_run_is_written_with_a_warning(
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hot = Reader("cpu-throttle-alert", "throttle", "state", "cooling_device0", lambda: 1.0)
    monkeypatch.setattr("edgelm.bench.benchmark.open_sensors", lambda: Sampler([hot]))
    assert bench(tmp_path / "report", bundle, "--no-quality") == 0
    report = read(tmp_path / "report")
    assert report.throttled
    assert {result.throttled for result in report.results} == {True}
    warning = "the machine throttled while it was measured (cpu-throttle-alert 1×); hit: edgelm"
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"warning: {warning}")
    for name in ("report.md", "report.html"):
        assert "INVALID" in (tmp_path / "report" / name).read_text()


def test_without_quality_no_source_is_needed(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    moved = shutil.copytree(bundle, tmp_path / "elsewhere")
    manifest = read_manifest(moved)
    lineage = msgspec.structs.replace(manifest.lineage, source="/gone/model")
    write_manifest(moved, msgspec.structs.replace(manifest, lineage=lineage))
    assert bench(out, moved, "--no-quality") == 0
    assert {(result.kl, result.top1) for result in read(out).results} == {(None, None)}
    assert read(out).quality_tokens == 0
    assert not (tmp_path / "cache" / "edgelm").exists()


@pytest.mark.slow
def test_a_quality_text_of_one_s_own(bundle: Path, source: Path, tmp_path: Path) -> None:
    text = tmp_path / "own.txt"
    text.write_text("Garnets up to a centimetre across are common. " * 4)
    assert bench(tmp_path / "report", bundle, "--source", source, "--quality-text", text) == 0
    report = read(tmp_path / "report")
    assert report.quality_text == "own.txt"
    assert 18 <= report.quality_tokens <= 8 * 18
    assert report.quality_tokens % 18 == 0


@pytest.mark.slow
def test_bundles_side_by_side(
    bundle: Path, int8_bundle: Path, source: Path, tmp_path: Path
) -> None:
    assert bench(tmp_path / "report", bundle, int8_bundle, "--source", source) == 0
    results = read(tmp_path / "report").results
    assert [result.engine for result in results[::3]] == [
        "edgelm fp32 tiny-fp32",
        "edgelm int8 tiny-int8",
    ]
    assert results[3].weight_bytes < results[0].weight_bytes
    assert results[3].kl is not None
    assert results[3].kl > 1e-6


@pytest.mark.slow
def test_bundles_of_one_name_keep_their_own_rows(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [shutil.copytree(bundle, tmp_path / name / "bundle") for name in ("a", "b")]
    assert bench(tmp_path / "report", *folders, "--no-quality") == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| edgelm")]
    assert len(rows) == 2


@pytest.mark.slow
def test_a_peer_that_is_not_installed_is_reported(
    bundle: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    assert bench(out, bundle, "--source", source, "--peers", "llama.cpp", "--no-quality") == 0
    reason = f"not installed: no environment at {tmp_path}/no-peers; edge-bench --setup-peers"
    assert read(out).absent == (("llama.cpp", reason),)
    assert f"not measured: llama.cpp: {reason}" in capsys.readouterr().out
    assert f"- llama.cpp: {reason}" in (out / "report.md").read_text()
    assert "llama.cpp" in (out / "report.html").read_text()


@pytest.mark.slow
def test_a_damaged_bundle_is_reported_beside_a_whole_one(
    bundle: Path, int8_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = shutil.copytree(bundle, tmp_path / "damaged")
    (damaged / "tokenizer.json").write_text("{}")
    assert bench(tmp_path / "report", damaged, int8_bundle, "--no-quality") == 0
    assert "not measured: edgelm fp32 damaged: failed: BadBundle:" in capsys.readouterr().out
    assert {r.engine for r in read(tmp_path / "report").results} == {"edgelm int8 tiny-int8"}


@pytest.mark.slow
def test_transformers_in_an_environment_of_its_own(
    bundle: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELM_PEERS", str(make_peers(tmp_path / "peers")))
    arguments = [str(bundle), "--source", str(source), "--peers", "transformers", *SMALL[:-4]]
    assert main([*arguments, "-r", "1", "--threads", "1", "--out", str(tmp_path / "report")]) == 0
    report = read(tmp_path / "report")
    ours, peer = report.results[0], report.results[3]
    assert (ours.engine, peer.engine) == ("edgelm fp32 tiny-fp32", "transformers unquantized")
    assert peer.kv in ("bf16", "fp32")
    assert peer.weight_bytes == {"bf16": 2, "fp32": 4}[peer.kv] * report.parameters
    assert peer.kl is not None
    assert ours.kl is not None
    assert 0 <= peer.kl < 0.05
    assert report.absent == ()


BAD = {
    "-p x": "--prompt 'x': expected whole numbers from 1, e.g. 0,512,4096",
    "-p 0": "--prompt '0': expected whole numbers from 1",
    "-n 4,": "--generate '4,': expected whole numbers from 1",
    "-d -1": "--depth '-1': expected whole numbers from 0",
    "-d 1.5": "--depth '1.5': expected whole numbers from 0",
    "-d 120": "these tests need a context of 132, ",
    "--peers ollama": "unknown peer 'ollama'; known: llama.cpp, onnxruntime-genai, ",
    "--source /gone/model": "cannot open the bundle's source: ",
}


@pytest.mark.parametrize(("arguments", "message"), BAD.items(), ids=BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    bundle: Path,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
) -> None:
    out = tmp_path / "report"
    options = [str(bundle), "--source", str(source), *SMALL, "-r", "1", "--out", str(out)]
    assert main([*options, *arguments.split()]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: {message}")
    assert not out.exists()


def test_a_text_that_is_too_short_is_reported_before_anything_is_measured(
    bundle: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "short.txt"
    text.write_text("Too short.")
    out = tmp_path / "report"
    assert bench(out, bundle, "--source", source, "--quality-text", text) == 2
    error = capsys.readouterr().err
    assert re.search(r"error: .*short\.txt has \d+ tokens, expected at least 18", error)
    assert "loading" not in error


@pytest.mark.parametrize("kind", ["tests", "speculation", "plan"])
def test_a_report_that_cannot_be_written_is_reported_before_anything_is_measured(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    options: dict[str, list[str | Path]] = {
        "tests": [bundle, "--no-quality"],
        "speculation": [bundle, "--speculation", "lookup"],
        "plan": ["--check-plan"],
    }
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "report"
    assert bench(out, *options[kind]) == 2
    expected = f"error: --out {out}: {tmp_path}/file is a file; expected a folder for the results\n"
    assert capsys.readouterr().err == expected


def test_another_source_is_refused(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny("llama", tmp_path / "other")
    assert bench(tmp_path / "report", bundle, "--source", tmp_path / "other") == 2
    assert "is not the model this bundle was made from" in capsys.readouterr().err


def test_bundles_of_different_sources_are_not_compared(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny_chat(tmp_path / "source", "llama-untied")
    export_model(tmp_path / "source", tmp_path / "other", precision="fp32")
    assert bench(tmp_path / "report", bundle, tmp_path / "other") == 2
    assert "the bundles come from different sources" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["bundle", "--check-plan"], "--check-plan measures layers of its own"),
        (["bundle", "--speculation", "auto", "--check-plan"], "leave out the bundle"),
        (["bundle", "--speculation", "auto", "--peers", "llama.cpp"], "compares a bundle with its"),
    ],
)
def test_two_measurements_in_one_are_refused(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(options) == 2
    assert message in capsys.readouterr().err


def test_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert (
        capsys.readouterr().err
        == "error: give at least one bundle, or --setup-peers, or --check-plan\n"
    )
    assert main([str(tmp_path)]) == 2
    assert f"error: {tmp_path} is not a bundle" in capsys.readouterr().err


def test_peers_are_installed_where_no_report_could_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed: list[list[str]] = []
    monkeypatch.setattr(cli, "_set_up_peers", installed.append)
    monkeypatch.chdir(tmp_path)
    Path("report").touch()
    assert main(["--setup-peers", "--peers", "llama.cpp"]) == 0
    assert installed == [["llama.cpp"]]


def test_a_report_that_cannot_be_written_is_found_before_the_work(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report").write_text("a file in the way")
    assert bench(tmp_path / "report", bundle, "--no-quality") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


def test_a_missing_quality_text_is_found_before_the_work(
    bundle: Path,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        options = ("--source", source, "--quality-text", "/gone.txt")
        assert bench(tmp_path / "report", bundle, *options) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: no such text file: /gone.txt"
    assert not [record for record in caplog.records if "warm-up" in record.message]


def test_nothing_measured_is_no_success(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = shutil.copytree(bundle, tmp_path / "damaged")
    (damaged / "model.onnx").write_bytes(b"no graph")
    assert bench(tmp_path / "report", damaged, "--no-quality") != 0
    captured = capsys.readouterr()
    assert "edgelm fp32 damaged: failed: BadBundle" in captured.out + captured.err


def test_help_names_every_peer() -> None:
    text = " ".join(parser().format_help().replace("-\n", "-").split())
    assert not [name for name in PEERS if name not in text.replace("- ", "-")]
