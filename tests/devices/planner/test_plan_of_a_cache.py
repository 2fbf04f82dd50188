"""What plans charge for the rows of the cache that an engine reads."""

import msgspec
import pytest

from edgelm.devices.planner.cost_model.cache_reads import READS, CacheReads, grown, whole
from edgelm.devices.planner.plan import plan
from edgelm.planning import PlanRequest
from tests.devices.planner.test_plan import BIG, ORIN


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-10.3"])
def test_a_masked_cache_costs_its_whole_length_from_the_first_token(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(READS, ORIN.engine(engine).dialect, CacheReads(whole, windows=False))
    lengths = (1024, 4096, 32_768)
    plans = [plan(BIG, ORIN, PlanRequest("int4", context=n, engine=engine)) for n in lengths]
    steps = [one.decode_ms.value for one in plans]
    assert steps == sorted(set(steps))
    # At a context of 32,768 every token reads the cache of 32,768, a gigabyte in 16 bits.
    read = (plans[-1].kv_bytes - plans[0].kv_bytes) / 102.4e6
    assert steps[-1] - steps[0] == pytest.approx(read, rel=0.25)
    assert plans[-1].prefill_ms.value > plans[0].prefill_ms.value


def test_a_growing_cache_costs_what_is_used_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READS, "standard", CacheReads(grown, windows=False))
    short, long = (plan(BIG, ORIN, PlanRequest("int4", context=n)) for n in (1024, 32_768))
    assert (short.decode_ms, short.prefill_ms) == (long.decode_ms, long.prefill_ms)
    asked = [PlanRequest("int4", context=32_768, prompt=n) for n in (512, 513, 1024, 1025)]
    steps = [plan(BIG, ORIN, one).decode_ms.value for one in asked]
    assert steps[0] < steps[1] == steps[2] < steps[3]


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-10.3"])
def test_a_masked_cache_costs_what_it_has_grown_to_whatever_the_context(engine: str) -> None:
    lengths = (1024, 4096, 32_768)
    plans = [plan(BIG, ORIN, PlanRequest("int4", context=n, engine=engine)) for n in lengths]
    assert len({one.decode_ms for one in plans}) == 1
    assert len({one.prefill_ms for one in plans}) == 1
    # After a prompt of 5,000 tokens it has 8,192 rows, after one of 500 it has 512.
    asked = [PlanRequest("int4", context=32_768, engine=engine, prompt=n) for n in (500, 5000)]
    short, long = (plan(BIG, ORIN, one) for one in asked)
    read = long.kv_bytes * (8192 - 512) / 32_768 / 102.4e6
    assert long.decode_ms.value - short.decode_ms.value == pytest.approx(read, rel=0.2)


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-10.3"])
def test_windows_in_a_mask_save_nothing(engine: str) -> None:
    narrow = [msgspec.structs.replace(layer, window=128) for layer in BIG.layers]
    windowed = msgspec.structs.replace(BIG, layers=tuple(narrow))
    assert plan(windowed, ORIN, PlanRequest("int4", engine=engine)).decode_ms == (
        plan(BIG, ORIN, PlanRequest("int4", engine=engine)).decode_ms
    )


def test_kernels_that_stop_at_the_used_length_cost_the_same_in_any_context() -> None:
    asked = [PlanRequest("int4", context=n, engine="onnxruntime-cuda") for n in (1024, 32_768)]
    short, long = (plan(BIG, ORIN, one) for one in asked)
    assert (short.decode_ms, short.prefill_ms) == (long.decode_ms, long.prefill_ms)
