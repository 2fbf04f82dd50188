"""The choice of alternatives: the best within the limits, as trying all of them finds it."""

from itertools import product

import numpy as np
import pytest

from edgelm.compress.puzzle.alternatives import Alternative, alternatives, with_alternatives
from edgelm.compress.puzzle.choose import choose, solve
from edgelm.compress.puzzle.costs import Limit, PuzzleCosts, smallest_student
from edgelm.compress.puzzle.settings import PuzzleSettings
from edgelm.compress.search.settings import Budget
from edgelm.devices.profile import load_profile
from edgelm.errors import BadInput, DoesNotFit
from edgelm.planning import PlanRequest
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.layers.mixers import NoMixer
from tests.checkpoints.models import tiny_config, tiny_model

pytest.importorskip("scipy")

SPEC = DecoderSpec.from_hf(tiny_model("llama").config.to_dict())
FOUND = alternatives(SPEC, PuzzleSettings(mlp_ratios=(0.5, 0.0)), 1)


def costs(**budget: float) -> PuzzleCosts:
    """Costs on a CPU; `rate` is relative to the teacher's."""
    profile = load_profile("cpu")
    plain = PuzzleCosts(SPEC, profile, Budget())
    rate = plain.plan(()).tokens_per_second.value * budget.pop("rate", 0.0)
    request = PlanRequest(min_tokens_per_second=rate or None)
    return PuzzleCosts(SPEC, profile, Budget(budget.get("parameters"), None, request))


def test_alternatives_of_every_layer() -> None:
    assert len(FOUND) == 4 * 3
    assert FOUND[:3] == [
        Alternative(0, "attention"),
        Alternative(0, "mlp", 48),
        Alternative(0, "mlp"),
    ]
    assert FOUND[1].name == "0.mlp.48"
    kernels = alternatives(SPEC, PuzzleSettings(mlp_ratios=(0.75, 0.7)), 32)
    assert {one.size for one in kernels if one.half == "mlp"} == {64}, "rounded down, once"


def test_the_spec_of_a_choice() -> None:
    chosen = [Alternative(0, "attention"), *(Alternative(layer, "mlp", 48) for layer in range(4))]
    spec = with_alternatives(SPEC, [*chosen, Alternative(2, "mlp")])
    assert spec.intermediate_size == 48, "padded to the largest, not to the teacher's"
    assert [spec.mlp_size(layer) for layer in spec.layers] == [48, 48, 0, 48]
    assert isinstance(spec.layers[0].mixer, NoMixer)
    assert spec.parameters < SPEC.parameters


@pytest.mark.parametrize("seed", range(4))
def test_the_best_of_all_choices(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.random(len(FOUND)).tolist()
    limits = [
        Limit(name, 10.0, 10.0 - share, tuple(random.random(len(FOUND)).tolist()))
        for name, share in (("time", 2.5), ("bytes", 2.0))
    ]
    halves = [
        [(), *((i,) for i, one in enumerate(FOUND) if (one.layer, one.half) == half)]
        for half in {(one.layer, one.half): None for one in FOUND}
    ]
    best = np.inf
    for parts in product(*halves):
        taken = {index for part in parts for index in part}
        chosen = [index in taken for index in range(len(FOUND))]
        attends = 4 - sum(FOUND[index].half == "attention" for index in taken)
        if attends and all(limit.exceeded_by(chosen) <= 0 for limit in limits):
            best = min(best, sum(scores[index] for index in taken))
    found = solve(SPEC, FOUND, scores, limits)
    assert sum(s for s, taken in zip(scores, found, strict=True) if taken) == pytest.approx(best)


def test_the_plan_of_the_choice_meets_the_budget() -> None:
    scores = [1.0 if one.half == "attention" else 0.1 * (96 - one.size) for one in FOUND]
    for budget in (costs(rate=1.2), costs(parameters=0.7)):
        chosen = choose(budget, FOUND, scores)
        assert chosen
        assert budget.missing(chosen) == []
        assert budget.missing(chosen[1:]), "one less would not do"
    assert choose(costs(parameters=1.0), FOUND, scores) == [], "the teacher itself fits"


def test_useless_halves_go_first_and_one_layer_attends() -> None:
    scores = [0.0 if one.half == "attention" else 1.0 for one in FOUND]
    chosen = choose(costs(parameters=0.62), FOUND, scores)
    assert sum(one.half == "attention" for one in chosen) == 3
    smallest = smallest_student(SPEC, FOUND)
    assert sum(one.half == "attention" for one in smallest) == 3
    assert all(one.size == 0 for one in smallest)


def test_impossible_budgets_are_refused_with_the_smallest_student() -> None:
    with pytest.raises(DoesNotFit, match=r"the smallest exceeds: 0.0 M parameters, limit 0.0 M"):
        costs(parameters=0.01).check_possible(FOUND)
    with pytest.raises(DoesNotFit, match="no student of these alternatives meets the limits on"):
        choose(costs(parameters=0.01), FOUND, [1.0] * len(FOUND))


def test_estimates_use_a_student_within_the_budget() -> None:
    for budget in (costs(rate=1.2), costs(parameters=0.5)):
        assert budget.missing(budget.first_within(FOUND)) == []
    assert costs(parameters=1.0).first_within(FOUND) == []


def test_teachers_that_are_refused() -> None:
    uneven = with_alternatives(SPEC, FOUND[:1])
    with pytest.raises(BadInput, match="the layers of this teacher already have different sizes"):
        alternatives(uneven, PuzzleSettings(), 1)
    experts = DecoderSpec.from_hf(tiny_config("qwen3-moe").to_dict())
    with pytest.raises(BadInput, match="no alternatives for mixtures of experts, which qwen3_moe"):
        alternatives(experts, PuzzleSettings(), 1)
