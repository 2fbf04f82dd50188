"""The lookup of coefficients, and whether the delivered table is complete and sane."""

import itertools
import math
import re

import msgspec
import pytest

from edgelm.devices.planner.cost_model import coefficients
from edgelm.devices.planner.cost_model.coefficients import (
    Entry,
    Level,
    Table,
    coefficients_for,
    family,
    fitted,
)
from edgelm.devices.planner.cost_model.cost import Coefficients
from edgelm.devices.published.validation import Ranges
from edgelm.devices.published.write import coefficient_table
from tests.devices.planner.test_plan import TOASTER
from tests.devices.published.synthetic import box, sample
from tests.devices.test_profile import DELIVERED

Band = tuple[float, float]


def entry(level: Level, engine: str = "", architecture: str = "", device: str = "") -> Entry:
    name = "/".join((level, engine, architecture, device))
    return Entry(
        level, Coefficients(0.9, 0.9, 0.5, 0.5, 50, source=name), engine, architecture, device
    )


EVERY = (
    entry("device", "trt", "", "orin"),
    entry("architecture", "trt", "ampere"),
    entry("engine", "trt"),
    entry("architecture", "", "ampere"),
    entry("all"),
)
TABLE = Table("made up", {"tensorrt-10.3": "trt"}, EVERY)


@pytest.mark.parametrize(
    ("engine", "architecture", "device", "found"),
    [
        ("trt", "ampere", "orin", EVERY[0]),
        ("trt", "ampere", "orin-super", EVERY[0]),
        ("tensorrt-10.3", "ampere", "orin", EVERY[0]),
        ("trt", "ampere", "rtx-3060", EVERY[1]),
        ("trt", "volta", "xavier", EVERY[2]),
        ("llama.cpp", "ampere", "orin", EVERY[3]),
        ("llama.cpp", "volta", "orin", EVERY[4]),
    ],
    ids=["device", "super", "stands-for", "architecture", "engine", "any-engine", "all"],
)
def test_the_most_particular_is_found(
    engine: str, architecture: str, device: str, found: Entry
) -> None:
    assert TABLE.find(engine, architecture, device) == found
    turned = msgspec.structs.replace(TABLE, entries=EVERY[::-1])
    assert turned.find(engine, architecture, device) == found


def test_table_without_an_entry_for_all() -> None:
    short = msgspec.structs.replace(TABLE, entries=EVERY[:-1])
    with pytest.raises(LookupError, match=r"coefficients\.toml has no entry for all"):
        short.find("llama.cpp", "volta", "xavier")


def test_super_is_the_same_hardware() -> None:
    assert family("jetson-orin-nano-8gb-super") == "jetson-orin-nano-8gb"
    assert family("rtx-4060-laptop") == "rtx-4060-laptop"
    usual, faster = DELIVERED["jetson-orin-nano-8gb"], DELIVERED["jetson-orin-nano-8gb-super"]
    assert coefficients_for(usual, "tensorrt", "int4", "fp16") == coefficients_for(
        faster, "tensorrt", "int4", "fp16"
    )


def test_measured_on_the_device_goes_before_what_was_fitted() -> None:
    found = coefficients_for(TOASTER, "onnxruntime", "int4", "int8")
    assert (found.bandwidth, found.compute, found.cache_bandwidth) == (0.5, 0.25, 0.25)
    assert (found.layer_us, found.prompt_layers, found.attention) == (3, 2, 0.2)
    assert found.decode_band == found.prefill_band == (0.8, 1.2)
    assert found.source == TOASTER.sources["hand"] == "made up"
    other = coefficients_for(TOASTER, "tensorrt", "int4", "fp16")
    assert other == fitted().find("tensorrt", "cpu", "toaster").coefficients


@pytest.mark.parametrize("precision", ["int8", "auto"])
def test_a_precision_that_was_not_measured_is_the_slowest(precision: str) -> None:
    found = coefficients_for(TOASTER, "onnxruntime", precision, "fp32")
    assert (found.bandwidth, found.compute, found.cache_bandwidth) == (0.5, 0.25, 0.5)
    assert coefficients_for(TOASTER, "onnxruntime", precision, "fp8").cache_bandwidth == 0.25


def test_delivered_table_says_what_it_was_fitted_on() -> None:
    counts = [entry.rows for entry in fitted().entries if entry.level == "all"]
    assert len(counts) == 1
    assert re.fullmatch(
        rf"\d+ times of {counts[0]} published rows, and \d+ of several sequences",
        fitted().fitted_on,
    )


def test_delivered_table_has_every_step() -> None:
    table = fitted()
    keys = [(e.level, e.engine, e.architecture or e.chip, e.device) for e in table.entries]
    assert len(keys) == len(set(keys))
    assert ("all", "", "", "") in keys
    for published in set(table.stands_for.values()):
        assert ("engine", published, "", "") in keys
    for one in table.entries:
        if one.level == "device":
            assert ("engine", one.engine, "", "") in keys
            assert one.device == family(one.device)


@pytest.mark.parametrize("one", fitted().entries, ids=lambda one: one.coefficients.source)
def test_delivered_entry_is_sane(one: Entry) -> None:
    found = one.coefficients
    for share in (found.bandwidth, found.cache_bandwidth, found.compute, found.attention):
        assert 0 < share <= 1
    for least in (found.layer_us, found.prompt_layers, found.recurrent_us):
        assert least > 0
    assert found.unpack >= 0
    for low, high in (found.decode_band, found.prefill_band):
        assert 0 < low < 1 < high
        # Symmetric in the logarithm: as much too fast as too slow.
        assert low * high == pytest.approx(1, abs=0.01)
    assert one.rows > 0
    assert found.source.startswith(f"{one.rows} published rows")


def holds(outer: Band, inner: Band) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


@pytest.mark.parametrize("published", sorted(set(fitted().stands_for.values())))
def test_band_of_an_unseen_device_is_no_narrower(published: str) -> None:
    of_engine = [one for one in fitted().entries if one.engine == published]
    levels: list[Level] = ["device", "architecture", "engine"]
    steps = [[one.coefficients for one in of_engine if one.level == level] for level in levels]
    assert all(steps)
    for seen, unseen in itertools.pairwise(steps):
        for inner, outer in itertools.product(seen, unseen):
            assert holds(outer.decode_band, inner.decode_band)
            assert holds(outer.prefill_band, inner.prefill_band)
    everything = fitted().find("", "", "").coefficients.decode_band
    assert all(holds(everything, outer.decode_band) for outer in steps[-1])


def test_without_an_engine_the_band_is_the_widest_of_any() -> None:
    unknown = [one.coefficients for one in fitted().entries if not one.engine]
    known = [one.coefficients for one in fitted().entries if one.engine]
    assert len(unknown) > 1
    for outer, inner in itertools.product(unknown, known):
        assert holds(outer.decode_band, inner.decode_band)
        assert holds(outer.prefill_band, inner.prefill_band)
    assert len({(one.decode_band, one.prefill_band) for one in unknown}) == 1


def test_widest_range_is_taken_where_the_engine_is_not_known() -> None:
    widths = {("decode", ""): 0.4, ("decode", "vllm"): 0.3, ("decode", "mlc"): 0.6}
    some = Ranges(widths | {("prefill", ""): 0.5})
    assert some.widest("decode") == 0.6
    seen = [*sample(box("module"), "vllm"), *sample(box("card", "ada"), "mlc")]
    table = coefficient_table(seen, "made-up times", some, some)

    def decode(engine: str, architecture: str) -> Band:
        return table.find(engine, architecture, "new").coefficients.decode_band

    assert decode("vllm", "ampere") == pytest.approx((math.exp(-0.3), math.exp(0.3)), abs=1e-3)
    widest = pytest.approx((math.exp(-0.6), math.exp(0.6)), abs=1e-3)
    assert decode("other", "ampere") == decode("other", "ada") == widest
    assert decode("other", "volta") == widest
    assert table.find("other", "volta", "new").coefficients.prefill_band == pytest.approx(
        (math.exp(-0.5), math.exp(0.5)), abs=1e-3
    )


@pytest.mark.parametrize("name", sorted(DELIVERED))
def test_every_engine_of_every_profile_has_coefficients(name: str) -> None:
    for engine in DELIVERED[name].engines:
        for precision in engine.precisions:
            for kv in engine.kv:
                found = coefficients_for(DELIVERED[name], engine.name, precision, kv)
                assert found.source
                assert 0 < found.decode_band[0] < 1 < found.decode_band[1]


def test_engines_that_others_stand_for_are_ours() -> None:
    ours = {engine.name for profile in DELIVERED.values() for engine in profile.engines}
    assert set(fitted().stands_for) <= ours


def test_the_table_is_read_once() -> None:
    assert coefficients.fitted() is fitted()
