"""Times of operators, from real profiles of a tiny bundle and from a written one."""

from pathlib import Path
from typing import Any

import pytest

from bench.studies.sequences import operator_times
from bench.studies.sequences.operator_times import measure, table


@pytest.mark.parametrize("sequences", [True, False], ids=["sequences", "tokens"])
def test_every_operator_of_a_bundle(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, sequences: bool
) -> None:
    monkeypatch.setattr(operator_times, "_ROUNDS", 2)
    found = measure(bundle, [1, 2], depth=8, threads=1, sequences=sequences)
    assert {"GroupQueryAttention", "head", "all"} <= set(found)
    assert "If" not in found, "its branch is counted"
    assert all(list(times) == [1, 2] for times in found.values())
    assert found["all"][1] > 0
    parts = sum(times[2] for name, times in found.items() if name != "all")
    assert found["all"][2] == pytest.approx(parts)


def _event(name: str, start: int, length: int, kind: str = "Mul") -> dict[str, Any]:
    cat = "Session" if name == "model_run" else "Node"
    return {"name": name, "cat": cat, "ts": start, "dur": length, "args": {"op_name": kind}}


def test_nodes_belong_to_the_run_around_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_times, "_WARM_UP", 0)
    profile = [
        _event("model_run", 0, 100),  # a prompt, before what is measured
        _event("a_kernel_time", 10, 50),
        _event("model_run", 1000, 100),
        _event("a_kernel_time", 1010, 5),
        _event("a_kernel_time", 1020, 6),  # a node of the same name, in another branch
        _event("model_run", 2000, 100),
        _event("a_kernel_time", 2010, 20),
        _event("b_kernel_time", 2040, 7, "Add"),
    ]
    found = table(profile, [1, 4])
    assert found == {
        "Mul": {1: pytest.approx(0.011), 4: pytest.approx(0.020)},
        "Add": {1: 0.0, 4: pytest.approx(0.007)},
        "all": {1: pytest.approx(0.011), 4: pytest.approx(0.027)},
    }
