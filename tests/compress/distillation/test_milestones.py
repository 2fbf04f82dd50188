"""Every milestone within the tokens of a run is saved, once."""

from pathlib import Path
from typing import Any

import pytest

from edgelm.compress.distillation.milestones import Milestones
from tests.checkpoints.models import tiny_model


@pytest.mark.parametrize(
    ("steps", "last_step", "saved"),
    [
        # 1,000 tokens make 9 steps of 100, 9 of which a run does: the end is at 900.
        (9, 9, {150: 2, 200: 2, 850: 9, 1000: 9}),
        (9, 4, {150: 2, 200: 2}),  # `stop_after`: the rest of the schedule comes later
    ],
)
def test_a_milestone_after_the_last_whole_step(
    tmp_path: Path, steps: int, last_step: int, saved: dict[int, int]
) -> None:
    found: dict[int, int] = {}

    def save(_: Any, path: Path) -> None:
        found[int(path.name)] = step

    watch = Milestones(
        tmp_path,
        tiny_model("llama"),
        100,
        last_step,
        steps,
        held_out=None,
        every=1,
        milestones=(150, 200, 850, 1000),
        save=save,
    )
    for step in range(1, last_step + 1):
        watch(step)
    assert found == saved
