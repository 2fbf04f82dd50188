"""Halves of layers are timed as stacks of copies, each kind in every round."""

import onnx
import pytest

from edgelm.devices.calibration import halves
from edgelm.devices.calibration.halves import Passes, time_halves
from edgelm.devices.calibration.stack import StackShape, build_stack
from edgelm.devices.calibration.timing import TimedStack
from edgelm.errors import DoesNotFit
from edgelm.quantize.precision import KvType

ATTENTION = StackShape(1, 64, heads=4, kv_heads=2, head_dim=16)
KINDS = [
    ATTENTION,
    ATTENTION._replace(heads=2, kv_heads=1, normed=True, window=8),
    StackShape(1, 64, ffn=96),
    StackShape(1, 64, ffn=96, gated=False),
    StackShape(1, 64, outputs=256),
]
PASSES = Passes(depth=20, prompt=32, chunk=8)


@pytest.mark.parametrize(
    ("precision", "kv"), [("fp32", "fp32"), ("int8", "int8"), ("int4", "fp32")]
)
def test_every_kind_runs(precision: str, kv: KvType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halves, "_ENOUGH_S", 0.0)
    monkeypatch.setattr(halves, "_MOST_COPIES", 3)
    rounds: list[tuple[int, int]] = []
    found = time_halves(
        KINDS, precision, kv, PASSES, threads=1, progress=lambda *one: rounds.append(one)
    )
    assert len(found) == len(KINDS)
    assert all(0 < one.decode < 1e3 and 0 < one.prompt < 1e4 for one in found)
    assert found[-1].decode == found[-1].prompt, "a head runs for the last token of a prompt"
    assert rounds == [(number, 5) for number in range(1, 6)]


def test_kinds_take_turns_and_medians_are_of_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[tuple[int, int, int]] = []

    def milliseconds(stack: TimedStack, tokens: int, past: int, **_: object) -> float:
        order.append((stack._shape.ffn, tokens, past))
        loaded = 10 <= len(order) < 16  # a load on the machine
        return (tokens + past / 100) * stack._shape.layers * (9 if loaded else 1)

    monkeypatch.setattr(TimedStack, "milliseconds", milliseconds)
    first, second = time_halves([ATTENTION, KINDS[2]], "fp32", "fp32", PASSES, threads=1)
    one_round = [(0, 1, 20), (0, 8, 0), (0, 8, 24), (96, 1, 20), (96, 8, 0)]
    assert order == one_round * 5
    assert first.decode == pytest.approx(1.2)
    assert first.prompt == pytest.approx(4 * (8 + 8.24) / 2)
    assert (first.spread, second.spread) == pytest.approx((9.0, 9.0))
    assert (second.decode, second.prompt) == pytest.approx((1.2, 4 * 8.0))


@pytest.mark.parametrize("shape", KINDS)
def test_a_stack_holds_the_weights_of_its_kind(shape: StackShape) -> None:
    model = onnx.load_from_string(build_stack(shape._replace(layers=2), "fp32", "fp32"))
    weights = [one.dims for one in model.graph.initializer if one.name.endswith(".w")]
    assert sum(rows * columns for rows, columns in weights) == 2 * shape.parameters_per_layer
    attention = [one for one in model.graph.node if one.op_type == "GroupQueryAttention"]
    assert len(attention) == 2 * bool(shape.heads)
    for node in attention:
        given = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        assert (given["num_heads"], given["kv_num_heads"]) == (shape.heads, shape.kv_heads)
        assert given.get("local_window_size") == shape.window


def test_prompts_attend_in_fp32_with_every_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """As bundles do: the kernel for int8 caches is made for one token."""
    built: list[tuple[int, str]] = []

    def build(shape: StackShape, precision: str, kv: KvType, **given: int) -> bytes:
        built.append((shape.layers, kv))
        return build_stack(shape, precision, kv, **given)

    monkeypatch.setattr(halves, "build_stack", build)
    monkeypatch.setattr(TimedStack, "milliseconds", lambda *_, **__: 1.0)
    time_halves([ATTENTION, KINDS[-1]], "int8", "int8", PASSES, threads=1)
    assert built == [(64, "int8"), (8, "fp32"), (64, "int8")]


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halves, "available_bytes", lambda: 1000)
    with pytest.raises(DoesNotFit, match=r"timing 5 kinds of layers needs .* GB of free memory"):
        time_halves(KINDS, "int8", "int8", PASSES, threads=1)


@pytest.mark.parametrize(
    ("prompt", "chunks", "width"), [(512, [0, 384], 128), (100, [0], 100), (128, [0], 128)]
)
def test_chunks_of_a_prompt(prompt: int, chunks: list[int], width: int) -> None:
    passes = Passes(depth=512, prompt=prompt, chunk=128)
    assert (passes.chunks, passes.width, passes.positions) == (chunks, width, max(513, prompt))
