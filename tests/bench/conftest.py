"""A tiny bundle to measure, and engines that only pretend."""

from collections.abc import Callable
from pathlib import Path

import pytest

from edgelm.bench.peers.engines import MeasuredEngine
from edgelm.export.pipeline import export_model
from tests.checkpoints.tiny_chat import save_tiny_chat

ROOT = Path(__file__).parents[2]

FakeEngineMaker = Callable[[str], MeasuredEngine]


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder."""
    return save_tiny_chat(tmp_path_factory.mktemp("bench") / "tiny")


@pytest.fixture(scope="session")
def bundle(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its fp32 bundle; read it, never change it."""
    folder = tmp_path_factory.mktemp("bench-bundles") / "tiny-fp32"
    export_model(source, folder, precision="fp32")
    return folder


@pytest.fixture(scope="session")
def int8_bundle(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its int8 bundle."""
    folder = tmp_path_factory.mktemp("bench-bundles") / "tiny-int8"
    export_model(source, folder, precision="int8")
    return folder


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeEngineMaker:
    """Engines of tests/bench/fake_worker.py, in real processes of their own."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def make(name: str) -> MeasuredEngine:
        return MeasuredEngine(name, "tests.bench.fake_worker", None, lambda: Path(name))

    return make


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What fake engines were asked, in order, over all processes."""
    path = tmp_path / "calls"
    path.touch()
    monkeypatch.setenv("FAKE_LOG", str(path))
    return lambda: path.read_text().splitlines()
