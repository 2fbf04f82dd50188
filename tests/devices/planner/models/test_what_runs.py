"""Known models on a device: their shapes, their order, what is said of those that do not run."""

import re

import pytest

from edgelm.devices.cli import main
from edgelm.devices.planner.models.known_models import KnownModel, known_models
from edgelm.devices.planner.models.what_runs import what_runs
from edgelm.devices.planner.models.what_runs_text import candidates_table
from edgelm.devices.planner.plan import QUALITY, plan
from edgelm.errors import BadInput, UnknownName
from edgelm.planning import PlanRequest
from tests.devices.test_profile import DELIVERED

NANO = DELIVERED["jetson-orin-nano-8gb-super"]
SERVER = DELIVERED["h200-sxm-141gb"]


@pytest.mark.parametrize("model", known_models(), ids=lambda model: model.name)
def test_shapes_have_the_published_parameters(model: KnownModel) -> None:
    assert model.spec.parameters / 1e6 == pytest.approx(model.parameters_m, rel=0.012)
    assert re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", model.released)
    assert re.fullmatch(r"[\w-]+/[\w.-]+", model.source)


def test_names_are_given_once() -> None:
    names = [model.name for model in known_models()]
    assert len(names) == len(set(names)) >= 40


def test_a_table_that_is_only_looked_up_is_no_class() -> None:
    classes = {model.name: model.quality_class for model in known_models()}
    assert (classes["Gemma 3n E4B"], classes["Gemma 3n E2B"]) == ("3B to 5B", "1B to 3B")


def test_what_works_comes_first_and_larger_classes_before_smaller() -> None:
    found = what_runs(NANO, PlanRequest())
    assert sorted(one.name for one in found) == sorted(model.name for model in known_models())
    works = [one.works for one in found]
    assert works == sorted(works, reverse=True)
    classes = list(dict.fromkeys(model.quality_class for model in known_models()))
    order = [classes.index(one.quality_class) for one in found if one.works]
    assert order == sorted(order)
    assert all(one.reason for one in found if not one.works)


def test_each_model_has_the_best_precision_that_works_there() -> None:
    for one in what_runs(NANO, PlanRequest()):
        if not one.works:
            continue
        assert one.plan is not None
        better = QUALITY[: QUALITY.index(one.plan.precision)]
        spec = next(model.spec for model in known_models() if model.name == one.name)
        for precision in better:
            if precision in NANO.precisions:
                assert not plan(spec, NANO, PlanRequest(precision, one.plan.kv)).works


def test_a_request_narrows_the_choice() -> None:
    fast = what_runs(NANO, PlanRequest(min_tokens_per_second=60))
    assert all(one.plan.tokens_per_second.value >= 60 for one in fast if one.works and one.plan)
    assert (
        0
        < sum(one.works for one in fast)
        < sum(one.works for one in what_runs(NANO, PlanRequest()))
    )
    # A model with a shorter context is planned with its own.
    long = what_runs(SERVER, PlanRequest("int4", context=32_768))
    tiny = next(one for one in long if one.name == "TinyLlama 1.1B")
    assert tiny.plan is not None
    assert tiny.plan.context == 2048


def test_a_wrong_request_is_refused() -> None:
    with pytest.raises(UnknownName):
        what_runs(NANO, PlanRequest("int3"))
    with pytest.raises(UnknownName):
        what_runs(NANO, PlanRequest(power_mode="11W"))
    with pytest.raises(BadInput):
        what_runs(NANO, PlanRequest(prompt=0))


def test_the_table_names_what_does_not_run() -> None:
    text = candidates_table(what_runs(NANO, PlanRequest()))
    assert text.splitlines()[0].startswith("class        model")
    assert re.search(r"^does not fit: .*Qwen3 32B", text, re.M)
    assert re.search(r"^3B to 5B +Qwen3 4B .* in \d+ segments$", text, re.M)
    none = candidates_table(what_runs(NANO, PlanRequest(max_memory_bytes=10**8)))
    assert none.startswith("None of the known models runs there as requested.\n")


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--target", "Jetson-Orin-Nano", "--precision", "int4"]) == 0
    assert "Qwen3 4B" in capsys.readouterr().out
    assert main(["models", "--target", "jetson-orin-nano", "--max-memory", "100MB"]) == 1
