"""Findings are found once, stored whole, and read back as they were."""

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from edgelm.export import cached_steps as findings
from edgelm.export.cache import Kept, key, work_folder
from edgelm.export.quantize.calibrate import Calibration, calibrate
from edgelm.export.source.reference import Reference
from tests.conftest import TinyFactory

TOKENS = torch.from_numpy(np.random.default_rng(0).integers(3, 128, (2, 24)))


class Point(msgspec.Struct, frozen=True):
    """A record."""

    x: float


@pytest.mark.parametrize("lasting", [False, True])
def test_found_once(tmp_path: Path, lasting: bool) -> None:
    kept, times = Kept(tmp_path, lasting=lasting), []

    def find() -> dict[str, torch.Tensor]:
        times.append("tensors")
        return {"a": torch.arange(6.0).view(2, 3).T}

    def find_point() -> Point:
        times.append("record")
        return Point(0.1)

    for _ in range(2):
        assert torch.equal(kept.tensors("a", find)["a"], torch.arange(6.0).view(2, 3).T)
        assert kept.record("p", Point, find_point) == Point(0.1)
    assert times == ["tensors", "record"]
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", "p.json"}
    kept.forget("a")
    assert not kept.has("a")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_not_kept(tmp_path: Path, value: float) -> None:
    kept = Kept(tmp_path)
    found = kept.record("p", Point, lambda: Point(value))
    assert found.x == value or math.isnan(found.x)
    assert kept.record("p", Point, lambda: Point(1.0)) == Point(1.0)


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> Point:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        Kept(tmp_path, lasting=True).record("p", Point, fail)
    assert not list(tmp_path.iterdir())


def test_keys_tell_apart() -> None:
    assert key("a", 1, None) == key("a", 1, None)
    assert len({key("a", 1), key("a", 2), key("a1"), key("a", [1]), key("a", None)}) == 5


def test_calibration_by_name(calm: TinyFactory) -> None:
    before = calibrate(Reference(calm("qwen3").checkpoint), TOKENS)
    after = Calibration.of(before.tensors())
    for one, other in zip(before.largest, after.largest, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    for mine, theirs in ((before.energy, after.energy), (before.peaks, after.peaks)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("change", ["flip", "cut", "empty", "text", "folder"])
def test_a_damaged_finding_is_found_again(tmp_path: Path, change: str) -> None:
    kept = Kept(tmp_path, lasting=True)
    kept.tensors("a", lambda: {"a": torch.arange(6.0)})
    kept.record("p", Point, lambda: Point(0.1))
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
    if change == "folder":
        with pytest.raises(OSError, match="directory"):
            kept.record("p", Point, lambda: Point(0.2))
        return
    assert not kept.has("a")
    assert torch.equal(kept.tensors("a", lambda: {"a": torch.ones(2)})["a"], torch.ones(2))
    assert kept.record("p", Point, lambda: Point(0.2)) == Point(0.2)
    assert kept.has("a")
    assert kept.known("p", Point) == Point(0.2)


def test_nothing_is_kept_of_a_source_that_changed(tmp_path: Path) -> None:
    def changed() -> None:
        raise RuntimeError("changed")

    kept = Kept(tmp_path, lasting=True, check=changed).below("x")
    with pytest.raises(RuntimeError):
        kept.tensors("a", lambda: {"a": torch.ones(2)})
    with pytest.raises(RuntimeError):
        kept.record("p", Point, lambda: Point(0.2))
    assert not list((tmp_path / "x").iterdir())


def test_the_code_is_in_the_name(
    calm: TinyFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bundle.py", "devices/kernels.py", "export/a/b.py", "runtime/engines/ort.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    seen = {findings._code(tmp_path)}
    for path in sorted(tmp_path.rglob("*.py")):
        path.write_text("2")
        seen.add(findings._code(tmp_path))
    assert len(seen) == 5
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "cli.py").write_text("what findings do not come from")
    assert findings._code(tmp_path) in seen

    checkpoint = calm("qwen3").checkpoint
    name = findings.source_name(checkpoint, Reference(checkpoint), 64)
    monkeypatch.setattr(findings, "_code", lambda _: "other code")
    assert findings.source_name(checkpoint, Reference(checkpoint), 64) != name


def test_other_versions_are_reported(tmp_path: Path) -> None:
    said: list[str] = []
    for code in ("first", "second", "second"):
        with work_folder(tmp_path, key(code), code, said.append) as folder:
            (folder / "p.json").write_text("{}")
    [line] = {one for one in said if "other versions" in one}
    assert f"rm -r {tmp_path / key('first')}" in line
    assert key("second") not in line
