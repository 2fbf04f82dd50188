"""The arithmetic type that is measured to be the faster one."""

from typing import Any

import pytest
import torch

import edgelm.compress.arithmetic as module
from edgelm.compress.arithmetic import MeasuredArithmetic, measure_arithmetic, total_type

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("forward", "training", "chosen"),
    [(7.0, 47.0, "fp32"), (0.6, 3.0, "fp32"), (0.5, 0.5, "bf16"), (1.0, 1.0, "bf16")],
    ids=["emulated", "slow gradients", "AMX", "a tie, at half the memory"],
)
def test_both_directions_decide(
    monkeypatch: pytest.MonkeyPatch, forward: float, training: float, chosen: str
) -> None:
    ratios = {"_forward": forward, "_training": training}
    asked: list[tuple[tuple[int, int], str]] = []

    def ratio(sizes: tuple[int, int], run: Any) -> float:
        asked.append((sizes, run.__name__))
        return ratios[run.__name__]

    monkeypatch.setattr(module, "_ratio", ratio)
    found = measure_arithmetic(CPU, 576, 14336)
    assert found.chosen == chosen
    assert asked[0] == ((576, 4096), "_forward")
    assert len(asked) == (1 if forward > 1 else 2), "no minute of gradients after a clear answer"
    assert f"{forward:.2f} times" in str(found)


def test_measured_on_this_machine() -> None:
    found = measure_arithmetic(CPU, 96, 256)
    assert found.forward is not None
    assert 0.01 < found.forward < 1000
    slow = found.forward > 1 or (found.training or 0) > 1
    assert found.chosen == ("fp32" if slow else "bf16")


def test_other_work_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A type is as fast as its best round, on one thread, which waits for no other."""
    clock, calls, threads = [0.0], {torch.bfloat16: 0, torch.float32: 0}, set()

    def run(layer: torch.nn.Linear, _: torch.Tensor) -> None:
        dtype = layer.weight.dtype
        calls[dtype] += 1
        threads.add(torch.get_num_threads())
        clock[0] += 1 if dtype == torch.bfloat16 else 2
        if dtype == torch.bfloat16 and calls[dtype] % 10 != 6:
            clock[0] += 50  # others had the processor

    monkeypatch.setattr("edgelm.compress.arithmetic.time.perf_counter", lambda: clock[0])
    for name in ("_forward", "_training"):
        monkeypatch.setattr(module, name, run)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = measure_arithmetic(CPU, 96, 256)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert found == MeasuredArithmetic("bf16", 0.5, 0.5)
    assert threads == {1}


@pytest.mark.parametrize(("native", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_a_gpu_has_units_or_has_not(
    monkeypatch: pytest.MonkeyPatch, native: bool, chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: native)
    found = measure_arithmetic(torch.device("cuda"), 64, 64)
    assert found == MeasuredArithmetic(chosen)  # type: ignore[arg-type]
    assert measure_arithmetic(torch.device("mps"), 64, 64).chosen == "fp32"


def test_sums_on_apples_gpus() -> None:
    assert total_type(torch.device("mps")) == torch.float32
    assert total_type(CPU) == torch.float64
