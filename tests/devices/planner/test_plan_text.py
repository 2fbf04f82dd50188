"""Plans and shapes side by side: golden lines of made-up figures."""

from typing import Any

import msgspec
import pytest

from edgelm.devices.planner.models.smaller_models import SmallerModel
from edgelm.devices.planner.plan_text import choice_table, smaller_models_table
from edgelm.planning import Estimate, Plan
from tests.core.test_planning import PLAN

WORKS = msgspec.structs.replace(PLAN, fits=True, fast_enough=True, binds="memory bandwidth")


def plan(**over: Any) -> Plan:
    return msgspec.structs.replace(WORKS, **over)


def test_choices_side_by_side() -> None:
    plans = [
        plan(precision="int8", kv="fp32", weight_bytes=1_500_000_000),
        plan(decode_ms=Estimate(100, 50, 200), fast_enough=False),
        plan(prefill_ms=Estimate(12_345, 6_000, 25_000), fits=False, fast_enough=False),
    ]
    assert choice_table(plans).splitlines() == [
        "precision  cache    weights     total  tokens/s               first token  verdict",
        "int8       fp32     1.50 GB   1.68 GB  40 (20 to 80)               250 ms  fits, bound by "
        "memory bandwidth",
        "int4       int8     80.0 MB  255.0 MB  10 (5 to 20)                250 ms  too slow, "
        "bound by memory bandwidth",
        "int4       int8     80.0 MB  255.0 MB  40 (20 to 80)            12,345 ms  does not fit",
    ]


def test_a_note_is_said_once() -> None:
    plans = [plan(), plan(notes=("int8 is slow",)), plan(notes=("int8 is slow",))]
    assert choice_table(plans).splitlines()[4:] == ["note: int8 is slow"]


def shape(axis: str, layers: int, **over: Any) -> SmallerModel:
    return SmallerModel(axis, layers, 2048, 5632, 1_234_567_890, plan(**over))


def test_shapes_side_by_side() -> None:
    shapes = [
        shape("feed-forward width", 16),
        shape("depth", 9, precision="fp16", kv="bf16", decode_ms=Estimate(2, 1, 4)),
    ]
    assert smaller_models_table(shapes).splitlines() == [
        "",
        "Pruned versions that would meet the request:",
        "pruned              layers hidden    ffn  parameters  runs as",
        "feed-forward width      16   2048   5632     1,235 M  int4, int8 cache, 40 tokens/s",
        "depth                    9   2048   5632     1,235 M  fp16, bf16 cache, 500 tokens/s",
    ]


def test_no_shape() -> None:
    text = "No pruned version of this model would meet the request either."
    assert smaller_models_table([]) == text


@pytest.mark.parametrize("count", [1, 3])
def test_a_line_for_each(count: int) -> None:
    assert len(choice_table([WORKS] * count).splitlines()) == count + 1
