"""From a source folder to a bundle: what is refused, and that nothing is written then."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from edgelm.errors import BadCheckpoint, BadInput, DoesNotFit, GateFailed, UnknownName
from edgelm.export.pipeline import export_model
from tests.folders import contents


@pytest.fixture(scope="module")
def bundle(tiny_chat: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("refusals") / "bundle"
    export_model(tiny_chat, output, precision="int8")
    return output


def test_failed_gate_writes_nothing(tiny_chat: Path, tmp_path: Path) -> None:
    with pytest.raises(GateFailed, match=r"4-bit quality gate failed: KL .*--gate off"):
        export_model(tiny_chat, tmp_path / "bundle", precision="int4")
    assert list(tmp_path.iterdir()) == []


def test_failed_export_leaves_the_old_bundle(tiny_chat: Path, bundle: Path, tmp_path: Path) -> None:
    old = shutil.copytree(bundle, tmp_path / "bundle")
    with pytest.raises(GateFailed):
        export_model(tiny_chat, old, precision="int4")
    assert contents(old) == contents(bundle)
    assert list(tmp_path.iterdir()) == [old]


def test_refuses_a_folder_that_is_no_bundle(tiny_chat: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BadInput, match=r"contains no bundle\.json, so it is not replaced"):
        export_model(tiny_chat, tmp_path)
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


def test_not_enough_free_disk_is_said_before_work(
    tiny_chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    lines: list[str] = []
    with pytest.raises(DoesNotFit, match=r"needs about 4\d\.\d MB of disk, .* has 1\.0 MB free"):
        export_model(tiny_chat, tmp_path / "deep" / "bundle", progress=lines.append)
    assert lines == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"context": 129}, BadInput, r"context 129 .* expected 2 to 128"),
        ({"context": 0}, BadInput, "context 0 is not possible"),
        ({"precision": "int3"}, UnknownName, "cpu has no int3 with onnxruntime; it has auto, fp32"),
        ({"precision": ""}, UnknownName, "cpu has no '' with onnxruntime; it has auto, fp32"),
        ({"kv": "fp8"}, UnknownName, "cpu has no fp8 cache with onnxruntime; it has fp32, int8"),
        ({"target": "cpux"}, UnknownName, "unknown target 'cpux'; did you mean cpu"),
        (
            {"precision": "int8", "group_size": 48},
            BadInput,
            r"group size 48 is not one of \[16, 32",
        ),
        (
            {"precision": "int4", "exceptions": {"layer.0.*": "int8"}},
            BadInput,
            r"pattern 'layer\.0\.\*' matches no group; groups are e\.g\. layers\.0\.attention\.qkv",
        ),
        (
            {"precision": "int4", "exceptions": {"lm_head": "int5"}},
            UnknownName,
            "unknown precision 'int5'",
        ),
        ({"exceptions": {"lm_head": "int8"}}, BadInput, "--layer needs an explicit --precision"),
        ({"gate": "none"}, BadInput, "precision auto and .* need the gate's figures"),
        ({"gate": "yes"}, BadInput, "gate is 'yes', expected one of on, off, none"),
        ({"calibration": "/no/such/text"}, BadInput, "no such text file: /no/such/text"),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "",
)
def test_refuses(
    tiny_chat: Path,
    tmp_path: Path,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        export_model(tiny_chat, tmp_path / "bundle", **options)
    assert list(tmp_path.iterdir()) == []


def test_source_without_tokenizer_is_refused(tiny_chat: Path, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_chat, tmp_path / "source")
    (source / "tokenizer.json").unlink()
    with pytest.raises(BadCheckpoint, match=r"no tokenizer\.json; write one with transformers"):
        export_model(source, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == [source]
