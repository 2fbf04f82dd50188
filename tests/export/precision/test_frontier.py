"""The least divergence for every size, checked against all assignments there are."""

import itertools

import pytest
import torch

from edgelm.devices.kernels import KERNELS
from edgelm.errors import DoesNotFit
from edgelm.export.precision.frontier import Choice, Frontier, choices_for
from edgelm.quantize.precision import Int4, Int8, describe, stored_bytes
from edgelm.quantize.rtn import pack, pack_zero_points, quantize

A, B, C = Int4(64), Int4(32), Int8(32)


def by_hand() -> dict[str, list[Choice]]:
    return {
        "x": [Choice(A, 10, 0.9), Choice(B, 20, 0.3), Choice(C, 40, 0.1)],
        # B lies above the line from A to C: half a kilobyte there buys less than in one go.
        "y": [Choice(A, 10, 0.8), Choice(B, 20, 0.7), Choice(C, 30, 0.2)],
        # C is larger and no better.
        "z": [Choice(A, 10, 0.1), Choice(B, 30, 0.06), Choice(C, 40, 0.06)],
    }


def test_path_by_hand() -> None:
    path = Frontier.from_choices(by_hand())
    assert [(step.group, step.choice.precision) for step in path.steps] == [
        ("x", B),  # 0.06 a byte
        ("y", C),  # 0.03
        ("x", C),  # 0.01
        ("z", B),  # 0.002
    ]
    assert path.last_step == 4
    assert path.groups == ("x", "y", "z")
    assert path.remaining_kl == pytest.approx([1.8, 1.2, 0.6, 0.4, 0.36])
    assert path.at(0) == {"x": A, "y": A, "z": A}
    assert path.at(3) == {"x": C, "y": C, "z": A}
    assert path.at(4) == {"x": C, "y": C, "z": B}


@pytest.mark.parametrize(
    ("left", "steps"), [(2.0, 0), (1.81, 0), (1.0, 2), (0.5, 3), (0.36001, 4), (0.0, 4)]
)
def test_first_below(left: float, steps: int) -> None:
    assert Frontier.from_choices(by_hand()).first_below(left) == steps


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (30, {"x": A, "y": A, "z": A}),
        (40, {"x": B, "y": A, "z": A}),
        (60, {"x": B, "y": C, "z": A}),
        # x's last step needs 20; z's fits as well, but comes later.
        (80, {"x": C, "y": C, "z": A}),
        (79, {"x": B, "y": C, "z": A}),
        (1000, {"x": C, "y": C, "z": B}),
    ],
)
def test_within_a_budget(budget: int, expected: dict[str, object]) -> None:
    assert Frontier.from_choices(by_hand()).within(budget) == expected


def test_a_step_that_does_not_fit_is_skipped() -> None:
    choices = {
        "big": [Choice(A, 10, 1.0), Choice(C, 100, 0.0)],
        "small": [Choice(A, 10, 0.1), Choice(C, 30, 0.0)],
    }
    assert Frontier.from_choices(choices).within(50) == {"big": A, "small": C}


def test_nothing_fits() -> None:
    with pytest.raises(DoesNotFit, match="the smallest mixture has 0"):
        Frontier.from_choices(by_hand()).within(29)


def test_as_good_as_trying_everything() -> None:
    generator = torch.Generator().manual_seed(0)
    precisions: list[Int4 | Int8] = [A, B, C]
    choices: dict[str, list[Choice]] = {}
    for group in "abcdef":
        sizes = torch.randint(5, 40, (3,), generator=generator).cumsum(0).tolist()
        costs = torch.rand(3, generator=generator).sort(descending=True).values.tolist()
        choices[group] = [
            Choice(one, size, kl) for one, size, kl in zip(precisions, sizes, costs, strict=True)
        ]
    everything = [
        (sum(c.size_bytes for c in picks), sum(c.kl for c in picks))
        for picks in itertools.product(*choices.values())
    ]
    path = Frontier.from_choices(choices)
    used = sum(choice.size_bytes for choice in path.start.values())
    for steps, left in enumerate(path.remaining_kl):
        if steps:
            used += path.steps[steps - 1].added_bytes
        # Assignments on the path are optimal for their own size.
        assert left == pytest.approx(min(kl for size, kl in everything if size <= used))


@pytest.mark.parametrize(
    "precision", [Int4(16), Int4(32), Int4(128), Int4(32, symmetric=True), Int8(64)], ids=describe
)
def test_stored_bytes_are_those_written(precision: Int4 | Int8) -> None:
    quantized = quantize(torch.randn(7, 200), precision)
    zeros = pack_zero_points(quantized)
    written = pack(quantized).numel() + 2 * quantized.scales.numel()
    assert stored_bytes(7, 200, precision) == written + (0 if zeros is None else zeros.numel())


def test_choices_scale_what_was_measured() -> None:
    weight = torch.randn(600, 128, generator=torch.Generator().manual_seed(0))
    importance = torch.rand(128, generator=torch.Generator().manual_seed(1)) + 0.1
    formats = KERNELS["onnxruntime"].choices(128)
    choices = choices_for(weight, importance, 0.02, Int4(32), formats)
    by_precision = {choice.precision: choice for choice in choices}
    assert by_precision[Int4(32)].kl == pytest.approx(0.02)
    assert by_precision[Int4(16)].kl < 0.02 < by_precision[Int4(64)].kl < 0.04
    assert by_precision[Int8(32)].kl < 0.001
    assert [choice.kl for choice in choices] == sorted((c.kl for c in choices), reverse=True)
