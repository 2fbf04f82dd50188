"""A signed bundle: whoever changes its record or a file, or signs it as a stranger, is noticed."""

import json
import shutil
import sys
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from edgelm.bench.evaluation import cli
from edgelm.bundle import hash_files, read_manifest, write_manifest
from edgelm.bundle.manifest import CompiledEngine, Manifest
from edgelm.bundle.signing import statement as statements
from edgelm.bundle.signing.statement import statement_of
from edgelm.export import cli as export_cli
from tests.signing import new_key


@pytest.fixture(autouse=True)
def _config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgelm.bundle.signing.keys.config_folder", lambda: tmp_path / "config")


def record(folder: Path, out: Path) -> None:
    out.mkdir(exist_ok=True)
    rows = out / "rows.jsonl"
    rows.write_text(json.dumps({"context": "Why is the sky", "target": "blue"}))
    given = [str(folder), "--tasks", f"last_word:{rows}", "--threads", "1", "--record"]
    assert cli.main([*given, "--out", str(out)]) == 0


@pytest.fixture(scope="module")
def evaluated(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluated")
    folder = shutil.copytree(bundle, root / "bundle")
    record(folder, root / "out")
    return folder


@pytest.fixture
def recorded(evaluated: Path, tmp_path: Path) -> Path:
    return shutil.copytree(evaluated, tmp_path / "bundle")


@pytest.fixture
def signed(recorded: Path, tmp_path: Path) -> Path:
    line = new_key(tmp_path / "key")
    assert export_cli.main(["--sign", str(recorded), str(tmp_path / "key")]) == 0
    trusted = tmp_path / "config" / "trusted-keys"
    trusted.parent.mkdir()
    trusted.write_text(f"{line}\n")
    return recorded


def rehashed(folder: Path) -> None:
    """As somebody would leave it who changes a bundle on purpose."""
    write_manifest(folder, replace(read_manifest(folder), files=hash_files(folder)))


def error_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert export_cli.main(["--verify", str(folder)]) == 2
    return capsys.readouterr().err


def test_a_signed_bundle_names_its_signer(signed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert export_cli.main(["--verify", str(signed)]) == 0
    out = capsys.readouterr().out
    assert "signed by maker of bundles, SHA256:" in out
    card = (signed / "README.md").read_text()
    assert card.count("## Evaluation\n") == card.count("## Signature\n") == 1
    assert "Signed by maker of bundles" in card


def test_an_unsigned_bundle_passes_and_says_so(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export_cli.main(["--verify", str(recorded)]) == 0
    assert "not signed" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["evaluation.json", "tokenizer.json", "README.md"])
def test_a_changed_file_is_named(
    signed: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = signed / name
    path.write_text(path.read_text().rstrip() + "\n\n")
    assert name in error_of(signed, capsys)  # by its hash
    rehashed(signed)
    error = error_of(signed, capsys)
    assert f"{name} changed after" in error
    assert "signature.json was written" in error


def test_a_changed_manifest_is_named(signed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = read_manifest(signed)
    assert manifest.gate is not None
    write_manifest(signed, replace(manifest, gate=replace(manifest.gate, text="another text")))
    assert "bundle.json changed after" in error_of(signed, capsys)


def test_a_file_that_was_added_is_named(signed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (signed / "added.txt").write_text("more")
    rehashed(signed)
    assert "added.txt changed after" in error_of(signed, capsys)


def test_a_changed_statement_is_a_forgery(signed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = signed / "evaluation.json"
    path.write_text(path.read_text().rstrip() + "\n\n")
    rehashed(signed)
    signature = json.loads((signed / "signature.json").read_text())
    signature["statement"] = statement_of(read_manifest(signed))
    (signed / "signature.json").write_text(json.dumps(signature))
    assert "was not signed by the key that it names" in error_of(signed, capsys)


def test_a_stranger_is_not_trusted(
    signed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = new_key(tmp_path / "other")
    assert export_cli.main(["--sign", str(signed), str(tmp_path / "other")]) == 0
    error = error_of(signed, capsys)
    assert "a key that you do not trust, SHA256:" in error
    assert f"trusted-keys: {line}" in error


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"schema_version": 9, "key": "", "statement": {}, "signature": ""}']
)
def test_a_damaged_signature_is_an_error(
    signed: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (signed / "signature.json").write_text(text)
    assert "signature.json is damaged" in error_of(signed, capsys)


def test_a_new_record_removes_the_signature(
    signed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(signed, tmp_path / "out")
    assert "its signature was removed" in capsys.readouterr().err
    assert "## Signature" not in (signed / "README.md").read_text()
    assert export_cli.main(["--verify", str(signed)]) == 0
    assert "not signed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", ["", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"]
)
def test_what_is_not_a_key_does_not_sign(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    pytest.importorskip("cryptography", reason="needs edgelm[sign]")
    (tmp_path / "key").write_text(text)
    assert export_cli.main(["--sign", str(recorded), str(tmp_path / "key")]) == 2
    assert "ssh-keygen -t ed25519" in capsys.readouterr().err
    assert export_cli.main(["--sign", str(recorded), str(tmp_path / "none")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_without_cryptography_the_message_names_the_extra(
    recorded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for name in [name for name in sys.modules if name.startswith("cryptography.")]:
        monkeypatch.setitem(sys.modules, name, None)
    assert export_cli.main(["--sign", str(recorded), str(tmp_path / "key")]) == 2
    assert "pip install 'edgelm[sign]'" in capsys.readouterr().err


def engine(number: int) -> CompiledEngine:
    return CompiledEngine(
        f"engines/{number}.engine", "tensorrt", "10.3", (87,), "0" * 64, 1, 1.0, "a machine"
    )


def test_engines_that_a_device_compiles_leave_the_statement(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    entry = next(iter(manifest.files.values()))
    files = manifest.files | {"engines/1.engine": entry}
    compiled = replace(manifest, engines=(engine(1),), files=files)
    assert statement_of(compiled) == statement_of(manifest)


def test_fields_of_a_later_edgelm_leave_the_statement(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Later(Manifest, frozen=True):
        remark: str = "none"

    raw = (bundle / "bundle.json").read_bytes()
    now, later = read_manifest(bundle), msgspec.json.decode(raw, type=Later)
    assert statement_of(later) == statement_of(now)
    assert statement_of(replace(later, remark="new")) != statement_of(now)
    monkeypatch.setattr(statements, "_CONTEXT", "another use")
    assert statements.signed_bytes({}) == b'["another use",{}]'
