"""An evaluation in the bundle that it is of, and what `edge-export --verify` says of it."""

import json
import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

from edgelm.bench.evaluation import cli
from edgelm.bundle import hash_files, read_manifest, verify, write_manifest
from edgelm.bundle.records.evaluation import check_evaluation
from edgelm.errors import BadBundle
from edgelm.export import cli as export_cli
from edgelm.export.source.text import CALIBRATION
from edgelm.files.hashing import file_sha256


@pytest.fixture
def recorded(bundle: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"context": "Why is the sky", "target": "blue"}))
    given = [str(folder), "--tasks", f"last_word:{rows}", "--threads", "1", "--record"]
    assert cli.main([*given, "--out", str(tmp_path / "out")]) == 0
    return folder


def test_the_record_is_verified_and_shown(
    recorded: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = read_manifest(recorded)
    verify(recorded, manifest)
    assert export_cli.main(["--verify", str(recorded)]) == 0
    assert "evaluated on onnxruntime" in capsys.readouterr().out
    card = (recorded / "README.md").read_text()
    assert card.count("## Evaluation") == 1
    assert "| last_word:rows.jsonl accuracy |" in card
    assert card.startswith((bundle / "README.md").read_text().rstrip())
    assert export_cli.main(["--verify", str(bundle)]) == 0
    assert "evaluated" not in capsys.readouterr().out


def test_a_record_of_another_graph_is_refused(recorded: Path) -> None:
    path = recorded / "evaluation.json"
    values = json.loads(path.read_text())
    values["subject"]["sha256"] = "0" * 64
    path.write_text(json.dumps(values))
    with pytest.raises(BadBundle, match=r"evaluation\.json"):
        verify(recorded, read_manifest(recorded))
    write_manifest(recorded, replace(read_manifest(recorded), files=hash_files(recorded)))
    with pytest.raises(BadBundle, match="measured on another graph"):
        check_evaluation(recorded, read_manifest(recorded))
    path.write_text("{")
    write_manifest(recorded, replace(read_manifest(recorded), files=hash_files(recorded)))
    with pytest.raises(BadBundle, match="damaged"):
        check_evaluation(recorded, read_manifest(recorded))


def test_the_record_names_source_and_calibration_text(int8_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(int8_bundle, tmp_path / "bundle")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"context": "Why is the sky", "target": "blue"}))
    given = [str(folder), "--tasks", f"last_word:{rows}", "--threads", "1", "--record"]
    assert cli.main([*given, "--out", str(tmp_path / "out")]) == 0
    lineage = read_manifest(folder).lineage
    assert lineage.calibration_sha256 == file_sha256(CALIBRATION)
    path = folder / "evaluation.json"
    values = json.loads(path.read_text())
    subject = values["subject"]
    assert subject["source_sha256"] == lineage.sha256
    assert subject["calibration_sha256"] == lineage.calibration_sha256
    for name, text in {"source": "source", "calibration": "calibration text"}.items():
        changed = values | {"subject": subject | {f"{name}_sha256": "0" * 64}}
        path.write_text(json.dumps(changed))
        write_manifest(folder, replace(read_manifest(folder), files=hash_files(folder)))
        with pytest.raises(BadBundle, match=f"names another {text}"):
            check_evaluation(folder, read_manifest(folder))


def test_where_nothing_is_quantized_no_text_is_named(bundle: Path) -> None:
    assert read_manifest(bundle).lineage.calibration_sha256 is None


def test_only_a_bundle_has_a_record(source: Path, tmp_path: Path) -> None:
    given = [str(source), "--tasks", "rag", "--record", "--out", str(tmp_path)]
    assert cli.main(given) == 2


def test_a_comparison_with_another_source_is_not_recorded(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.checkpoints.tiny_chat import save_tiny_chat

    folder = shutil.copytree(bundle, tmp_path / "bundle")
    other = tmp_path / "other"
    other.mkdir()
    save_tiny_chat(other, "qwen3")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"context": "Why is the sky", "target": "blue"}))
    given = [str(folder), "--tasks", f"last_word:{rows}", "--threads", "1", "--record"]
    assert cli.main([*given, "--against", str(other), "--out", str(tmp_path / "out")]) == 2
    assert "is not the checkpoint" in capsys.readouterr().err
    assert not (folder / "evaluation.json").exists()
