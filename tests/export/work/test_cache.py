"""Artifacts are stored whole and read back as they were; keys name what they depend on."""

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from edgelm.export import cached_steps
from edgelm.export.quantize.calibrate import Calibration, calibrate
from edgelm.export.source.reference import Reference
from edgelm.export.work.cache import ArtifactCache, key
from edgelm.export.work.folder import work_folder
from tests.conftest import TinyFactory

TOKENS = torch.from_numpy(np.random.default_rng(0).integers(3, 128, (2, 24)))


class Point(msgspec.Struct, frozen=True):
    """A record."""

    x: float


@pytest.mark.parametrize("durable", [False, True])
def test_stored_and_loaded(tmp_path: Path, durable: bool) -> None:
    cache = ArtifactCache(tmp_path, durable=durable)
    tensor = torch.arange(6.0).view(2, 3)
    assert cache.load_tensors("a") is None
    assert cache.load_record("p", Point) is None
    cache.save_tensors("a", {"a": tensor})
    cache.save_record("p", Point(0.1))
    loaded = cache.load_tensors("a")
    assert loaded is not None
    assert torch.equal(loaded["a"], tensor)
    assert cache.load_record("p", Point) == Point(0.1)
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", "p.json"}
    cache.remove("a")
    assert not cache.has_tensors("a")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_not_finite_does_not_load(tmp_path: Path, value: float) -> None:
    cache = ArtifactCache(tmp_path)
    cache.save_record("p", Point(value))
    assert cache.load_record("p", Point) is None


def test_keys_tell_apart() -> None:
    assert key("a", 1, None) == key("a", 1, None)
    assert len({key("a", 1), key("a", 2), key("a1"), key("a", [1]), key("a", None)}) == 5


def test_calibration_by_name(calm: TinyFactory) -> None:
    before = calibrate(Reference(calm("qwen3").checkpoint), TOKENS)
    after = Calibration.from_tensors(before.tensors())
    for one, other in zip(before.kv_absmax, after.kv_absmax, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    for mine, theirs in ((before.mean_square, after.mean_square), (before.absmax, after.absmax)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("change", ["flip", "cut", "empty", "text", "folder"])
def test_a_damaged_artifact_counts_as_absent(tmp_path: Path, change: str) -> None:
    cache = ArtifactCache(tmp_path, durable=True)
    cache.save_tensors("a", {"a": torch.arange(6.0)})
    cache.save_record("p", Point(0.1))
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        middle = len(content) * 3 // 4
        changed = {
            "flip": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "cut": content[:middle],
            "empty": b"",
            "text": b"\xff\xfe[" + b"[" * 5000,
        }
        path.write_bytes(changed.get(change, content))
        if change == "folder":
            path.unlink()
            path.mkdir()
    assert cache.load_tensors("a") is None
    assert cache.load_record("p", Point) is None
    if change == "folder":
        with pytest.raises(OSError, match="directory"):
            cache.save_record("p", Point(0.2))
        return
    cache.save_tensors("a", {"a": torch.ones(2)})
    cache.save_record("p", Point(0.2))
    assert cache.has_tensors("a")
    assert cache.load_record("p", Point) == Point(0.2)


def test_nothing_is_stored_of_a_source_that_changed(tmp_path: Path) -> None:
    def changed() -> None:
        raise RuntimeError("changed")

    cache = ArtifactCache(tmp_path, durable=True, check=changed).subfolder("x")
    with pytest.raises(RuntimeError):
        cache.save_tensors("a", {"a": torch.ones(2)})
    with pytest.raises(RuntimeError):
        cache.save_record("p", Point(0.2))
    assert not list((tmp_path / "x").iterdir())


def test_the_code_is_in_the_key(
    calm: TinyFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "bundle.py",
        "devices/kernels.py",
        "export/a/b.py",
        "runtime/engines/onnxruntime/ort.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    hashes = {cached_steps._code_hash(tmp_path)}
    for path in sorted(tmp_path.rglob("*.py")):
        path.write_text("2")
        hashes.add(cached_steps._code_hash(tmp_path))
    assert len(hashes) == 5
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "cli.py").write_text("no cached result comes from it")
    assert cached_steps._code_hash(tmp_path) in hashes

    checkpoint = calm("qwen3").checkpoint
    name = cached_steps.source_key(checkpoint, Reference(checkpoint), 64)
    monkeypatch.setattr(cached_steps, "_code_hash", lambda _: "other code")
    assert cached_steps.source_key(checkpoint, Reference(checkpoint), 64) != name


def test_other_versions_are_reported(tmp_path: Path) -> None:
    lines: list[str] = []
    for code in ("first", "second", "second"):
        with work_folder(tmp_path, key(code), code, lines.append) as folder:
            (folder / "p.json").write_text("{}")
    [line] = {one for one in lines if "other versions" in one}
    assert f"rm -r {tmp_path / key('first')}" in line
    assert key("second") not in line
