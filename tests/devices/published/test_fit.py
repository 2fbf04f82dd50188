"""The fit finds coefficients of made-up rows, and a few wrong ones hardly move it."""

import random
from itertools import product

import msgspec
import pytest

from edgelm.devices.planner.cost_model.cost import Coefficients
from edgelm.devices.published import fit
from edgelm.devices.published.fit import PRIORS, Fit, Key
from edgelm.devices.published.hardware import Hardware
from edgelm.devices.published.terms import TERMS, Observation
from tests.devices.published.synthetic import DENSE, TRUE, box, factors, sample

_ENGINES = ("vllm", "llama.cpp")
_ARCHITECTURES = ("ampere", "blackwell")
_GROUPS = list(product(_ENGINES, _ARCHITECTURES))
# How far from the truth a factor may be found: what little time is spent on stays near its prior.
_WITHIN = {
    "read": 0.05,
    "layers": 0.15,
    "prompt_layers": 0.15,
    "matrices": 0.05,
    "attention": 0.35,
    "unpack": 0.35,
    "recurrence": 0.35,
}


def small_middle_large(architecture: str) -> list[Hardware]:
    """Three devices of one architecture."""
    return [
        box(f"{architecture}-{size}", architecture, bandwidth_gb_s=rate, fp16_tflops=peak)
        for size, rate, peak in (("small", 70, 10), ("middle", 200, 40), ("large", 500, 90))
    ]


def truth(engine: str, architecture: str) -> Coefficients:
    """Coefficients that differ by engine and architecture."""
    layers = {"vllm": 1.0, "llama.cpp": 1.4}[engine] * {"ampere": 1.25, "blackwell": 0.8}[
        architecture
    ]
    compute = {"ampere": 1.2, "blackwell": 0.8}[architecture]
    attention = {"vllm": 1.0, "llama.cpp": 0.4}[engine]
    return msgspec.structs.replace(
        TRUE,
        layer_us=TRUE.layer_us * layers,
        compute=TRUE.compute * compute,
        attention=TRUE.attention * attention,
    )


def keys_of(engine: str, architecture: str) -> dict[str, Key]:
    """The groups of a dense model on an unseen device."""
    both = (engine, architecture)
    chip = (engine, box(architecture=architecture).chip)
    own: dict[str, Key] = {
        "engine": engine,
        "architecture": architecture,
        "both": both,
        "chip": chip,
    }
    return own | {"mixture": "dense"}


@pytest.fixture(scope="module")
def grid() -> list[Observation]:
    """Two engines on three devices of each of two architectures."""
    return [
        item
        for engine, architecture in _GROUPS
        for hardware in small_middle_large(architecture)
        for item in sample(
            hardware, engine, truth(engine, architecture), models=(*DENSE, "Qwen3.5-4B")
        )
    ]


@pytest.fixture(scope="module")
def fitted(grid: list[Observation]) -> Fit:
    """The fit to all of them."""
    return Fit(grid)


def plain(architecture: str = "ampere") -> list[Observation]:
    """One engine on three devices, all of them alike."""
    return [item for hardware in small_middle_large(architecture) for item in sample(hardware)]


def test_times_are_found(grid: list[Observation], fitted: Fit) -> None:
    for item in grid:
        assert fitted.predict_ms(item) == pytest.approx(item.measured_ms, rel=0.03)


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize(("engine", "architecture"), _GROUPS)
def test_factors_are_found(fitted: Fit, engine: str, architecture: str, term: str) -> None:
    found = fitted.factor(term, keys_of(engine, architecture))
    true = factors(truth(engine, architecture))[term]
    assert found == pytest.approx(true, rel=_WITHIN[term])


def test_a_device_that_differs_is_told_apart() -> None:
    slow = msgspec.structs.replace(TRUE, layer_us=2 * TRUE.layer_us)
    found = Fit(plain() + sample(box("odd"), how=slow))
    group = keys_of("vllm", "ampere")
    others = found.factor("layers", group | {"device": ("vllm", "ampere-small")})
    odd = found.factor("layers", group | {"device": ("vllm", "odd")})
    assert odd / others == pytest.approx(2, rel=0.15)
    assert others == pytest.approx(TRUE.layer_us, rel=0.15)


@pytest.mark.parametrize("term", TERMS)
def test_unseen_groups_get_their_parents_factor(fitted: Fit, term: str) -> None:
    group = keys_of("vllm", "ampere")
    assert fitted.factor(term, group | {"device": ("vllm", "new")}) == fitted.factor(term, group)
    new = keys_of("new", "ampere")
    assert fitted.factor(term, new) == fitted.factor(
        term, {"architecture": "ampere", "mixture": "dense"}
    )
    assert fitted.factor(term, {"architecture": "new"}) == fitted.factor(term, {})


def test_unseen_device_is_predicted_as_its_group(fitted: Fit) -> None:
    for engine, architecture in _GROUPS:
        hardware = box("new", architecture, bandwidth_gb_s=130, fp16_tflops=25)
        for item in sample(hardware, engine, truth(engine, architecture)):
            assert fitted.predict_ms(item) == pytest.approx(item.measured_ms, rel=0.06)


def test_experts_have_their_own_overhead() -> None:
    slow = msgspec.structs.replace(TRUE, layer_us=2.5 * TRUE.layer_us)
    mixture = [item for one in small_middle_large("ampere") for item in mixtures(one, slow)]
    found = Fit(plain() + mixture)
    group = keys_of("vllm", "ampere")
    dense, experts = (
        found.factor("layers", group | {"mixture": kind}) for kind in ("dense", "experts")
    )
    assert dense == pytest.approx(TRUE.layer_us, rel=0.15)
    assert experts / dense == pytest.approx(2.5, rel=0.2)


def mixtures(hardware: Hardware, how: Coefficients) -> list[Observation]:
    """Times of mixtures of experts."""
    return sample(hardware, how=how, models=("qwen3-30b-a3b", "gpt-oss-20b"))


def test_without_rows_of_a_term_its_prior_stays(fitted: Fit) -> None:
    dense = Fit([item for item in plain() if item.kind == "decode"])
    for term in ("prompt_layers", "matrices", "attention", "recurrence"):
        assert dense.factor(term, {}) == pytest.approx(PRIORS[term].mean)
        assert fitted.factor(term, {}) != pytest.approx(PRIORS[term].mean, rel=1e-3)


def absurd() -> list[Observation]:
    """Ten times too slow and ten times too fast."""
    slow, fast = box("ampere-middle"), box("ampere-small", bandwidth_gb_s=70, fp16_tflops=10)
    one = ("llama-3.2-3b",)
    return sample(slow, models=one, slower=10) + sample(fast, models=one, slower=0.1)


def moved() -> float:
    """How far absurd rows move what is predicted for the others, at most."""
    good = plain()
    before, after = Fit(good), Fit(good + absurd())
    return max(abs(after.predict_ms(one) / before.predict_ms(one) - 1) for one in good)


def test_absurd_rows_hardly_move_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert moved() < 0.1
    monkeypatch.setattr(fit, "_HUBER", 1e9)  # least squares
    assert moved() > 0.4


def test_crowd_sourced_rows_weigh_less() -> None:
    def asked(*, crowd_slower: float, vendor_slower: float) -> float:
        rows = sample(box("here"), slower=vendor_slower)
        rows += sample(box("here"), slower=crowd_slower, crowd=True)
        found = Fit(plain() + rows)
        return found.predict_ms(sample(box("here"))[0])

    neither = asked(crowd_slower=1.0, vendor_slower=1.0)
    crowd = asked(crowd_slower=1.1, vendor_slower=1.0) / neither - 1
    vendor = asked(crowd_slower=1.0, vendor_slower=1.1) / neither - 1
    assert 0 < crowd < vendor / 2


def test_many_rows_of_one_device_count_as_ten() -> None:
    once = sample(box("often"), slower=1.1)
    new = sample(box("new"))[0]
    assert len(once) == 2 * fit._MAX_ROWS  # as many decode as prefill times
    few, many = Fit(plain() + once), Fit(plain() + 20 * once)
    assert many.predict_ms(new) == pytest.approx(few.predict_ms(new), rel=1e-3)
    alone = Fit(plain())
    assert few.predict_ms(new) > 1.005 * alone.predict_ms(new)


def test_the_same_rows_give_the_same_fit(grid: list[Observation], fitted: Fit) -> None:
    again = Fit(list(grid))
    for term, (engine, architecture) in product(TERMS, _GROUPS):
        keys = keys_of(engine, architecture)
        assert again.factor(term, keys) == fitted.factor(term, keys)


def test_order_of_rows_does_not_matter(grid: list[Observation], fitted: Fit) -> None:
    shuffled = random.Random(0).sample(grid, len(grid))
    other = Fit(shuffled)
    for item in grid:
        assert other.predict_ms(item) == pytest.approx(fitted.predict_ms(item), rel=1e-4)
