"""The attempt at a smaller mixture after one that passed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgelm.bundle import MANIFEST
from edgelm.export import delivery
from edgelm.export.choose import try_smaller
from edgelm.export.graph.write import WrittenGraph, write_graph
from edgelm.export.pipeline import export_model
from edgelm.quantize.precision import Int8

FILES = SimpleNamespace(
    file="model.onnx", data="model.onnx.data", files=("model.onnx", "model.onnx.data")
)


class FakeWriter:
    """Writes `smaller` to whatever folder it is given."""

    def __init__(self, folder: Path, *, passes: bool) -> None:
        self.passes = passes
        self.target = SimpleNamespace(legalize=lambda assignment: assignment)
        self.workspace = SimpleNamespace(
            bundle=folder, progress=lambda _: None, temporary=self._temporary
        )
        write(folder, "larger")

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        folder = self.workspace.bundle / "scratch"
        folder.mkdir()
        yield folder
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()

    def write_and_gate(self, assignment: Any, gate: Any, *, folder: Path) -> Any:
        write(folder, "smaller")
        graph: Any = WrittenGraph(FILES, 0)  # type: ignore[arg-type]
        return SimpleNamespace(gate=SimpleNamespace(passed=self.passes), graph=graph)


def write(folder: Path, content: str) -> None:
    for name in (FILES.file, FILES.data):
        (folder / name).write_text(content)


@pytest.mark.parametrize(
    ("passes", "left"), [(True, "smaller"), (False, "larger")], ids=["passes", "fails"]
)
def test_what_passed_stays_until_a_smaller_one_passes(
    tmp_path: Path, passes: bool, left: str
) -> None:
    writer: Any = FakeWriter(tmp_path, passes=passes)
    search: Any = SimpleNamespace(next_smaller=lambda: {"lm_head": Int8()})
    larger: Any = object()
    result = try_smaller(writer, search, larger, gate=SimpleNamespace())  # type: ignore[arg-type]
    assert (result is larger) != passes
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {FILES.file: left, FILES.data: left}


def test_nothing_smaller_is_tried_without_a_failure(tmp_path: Path) -> None:
    writer: Any = FakeWriter(tmp_path, passes=True)
    search: Any = SimpleNamespace(next_smaller=lambda: None)
    larger: Any = object()
    assert try_smaller(writer, search, larger, gate=SimpleNamespace()) is larger  # type: ignore[arg-type]
    assert (tmp_path / FILES.data).read_text() == "larger"


def test_a_budget_is_met_with_one_graph_written(
    tiny_chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def counting(folder: Path, *given: Any) -> WrittenGraph:
        written.append(folder)
        return write_graph(folder, *given)

    monkeypatch.setattr(delivery, "write_graph", counting)
    manifest = export_model(tiny_chat, tmp_path / "b", max_size=100_000, gate="off")
    assert len(written) == 1
    assert 90_000 < manifest.files["model.onnx.data"].bytes <= 100_000
    assert (tmp_path / "b" / MANIFEST).is_file()
