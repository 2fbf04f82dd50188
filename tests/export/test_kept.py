"""Findings are found once, stored whole, and read back as they were."""

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from edgelm.export.calibrate import Calibration, calibrate
from edgelm.export.kept import Kept, key
from edgelm.export.reference import Reference
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
