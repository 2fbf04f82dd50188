"""Every delivered profile makes sense, and is found by its name and its aliases."""

import json
from typing import Any, get_args

import msgspec
import pytest

from edgelm.devices import profile as module
from edgelm.devices.profile import (
    ENVIRONMENT,
    Profile,
    load_profile,
    load_profiles,
    profile_names,
    read_profile,
)
from edgelm.devices.profile_tables import Figure
from edgelm.errors import UnknownName
from edgelm.quantize.precision import KvType, parse_precision
from tests.core.test_imports import ROOT

FOLDER = ROOT / "devices" / "profiles"
DELIVERED: dict[str, Profile] = {path.stem: read_profile(path) for path in FOLDER.glob("*.toml")}
COLLECTED = ROOT.parent / "shared" / "data" / "devices.json"
each = pytest.mark.parametrize("name", sorted(DELIVERED))
each_gpu = pytest.mark.parametrize("name", sorted(DELIVERED.keys() - {"cpu"}))
# By compute capability: the generation, and the dense FP16 operations of a multiprocessor in a
# clock (CUDA C programming guide; GB10 as GeForce Blackwell).
GENERATION = {
    72: ("volta", 1024),
    75: ("turing", 1024),
    86: ("ampere", 1024),
    87: ("ampere", 2048),
    89: ("ada", 1024),
    90: ("hopper", 4096),
    110: ("blackwell", 8192),
    120: ("blackwell", 1024),
    121: ("blackwell", 1024),
}


@pytest.fixture(autouse=True)
def no_profiles_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)


def test_all_are_there() -> None:
    assert len(DELIVERED) > 80
    assert profile_names() == sorted(DELIVERED)
    assert load_profiles() == [DELIVERED[name] for name in sorted(DELIVERED)]


@each
def test_profile_loads_by_its_name_and_survives_json(name: str) -> None:
    profile = load_profile(name)
    assert profile == DELIVERED[name]
    assert msgspec.json.decode(msgspec.json.encode(profile), type=Profile) == profile


@each
def test_engines_can_be_planned_for(name: str) -> None:
    profile = DELIVERED[name]
    engines = profile.engines
    assert len({engine.name for engine in engines}) == len(engines)
    assert profile.precisions == engines[0].precisions
    for engine in engines:
        assert engine.dialect in ("ort", "standard", "decomposed")
        assert set(engine.kv) <= set(get_args(KvType))
        assert all(
            4 <= parse_precision(precision).bits_per_weight <= 32 for precision in engine.precisions
        )
        assert "int8" in engine.precisions
        assert engine.kv
        assert engine.weight_copies >= 1
        assert engine.source in profile.sources


@each
def test_default_mode_is_the_fastest(name: str) -> None:
    profile = DELIVERED[name]
    for mode in profile.power_modes:
        assert mode.bandwidth_gb_s.value <= profile.mode().bandwidth_gb_s.value
        for kind, peak in mode.dense_tflops.items():
            assert peak.value <= profile.mode().dense_tflops[kind].value


@each
def test_less_power_is_no_faster(name: str) -> None:
    capped = [mode for mode in DELIVERED[name].power_modes if mode.watts]
    capped.sort(key=lambda mode: mode.watts.value if mode.watts else 0)
    bandwidths = [mode.bandwidth_gb_s.value for mode in capped]
    assert bandwidths == sorted(bandwidths)


@each
def test_sizes_make_sense(name: str) -> None:
    profile = DELIVERED[name]
    assert 0 < profile.prefill_chunk <= profile.default_context
    if profile.memory.bytes is not None:
        assert profile.memory.bytes.value % 2**30 == 0
        # A model of the least size is left room for, and most of the memory is.
        assert profile.budget_bytes > 0.4 * profile.memory.bytes.value
        assert all(e.runtime_bytes.value < profile.budget_bytes for e in profile.engines)


@each
def test_every_source_is_used_and_says_something(name: str) -> None:
    profile = DELIVERED[name]
    text = (FOLDER / f"{name}.toml").read_text()
    for key, source in profile.sources.items():
        assert len(source) > 10
        assert f'source = "{key}"' in text


@each_gpu
def test_gpu_belongs_to_its_generation(name: str) -> None:
    profile = DELIVERED[name]
    assert profile.sm is not None
    assert profile.architecture == GENERATION[profile.sm][0]
    narrow = {"fp8": 89, "nvfp4": 100}
    for engine in profile.engines:
        for precision, since in narrow.items():
            assert precision not in engine.precisions or profile.sm >= since


def operations(profile: Profile) -> int:
    """Dense FP16 operations of a multiprocessor in a clock; a GTX has no tensor cores."""
    assert profile.sm is not None
    return 256 if profile.name.startswith("gtx-") else GENERATION[profile.sm][1]


@each_gpu
def test_peaks_follow_from_clock_and_multiprocessors(name: str) -> None:
    profile = DELIVERED[name]
    for mode in profile.power_modes:
        assert mode.clock_ghz is not None
        assert mode.sm_count is not None
        fp16 = operations(profile) * mode.sm_count.value * mode.clock_ghz.value / 1e3
        # Files keep a digit after the point.
        assert mode.dense_tflops["fp16"].value == pytest.approx(fp16, abs=0.11, rel=0.001)
        for kind, factor in (("int8", 2), ("fp8", 2), ("nvfp4", 4)):
            if kind in mode.dense_tflops:
                assert mode.dense_tflops[kind].value == pytest.approx(factor * fp16, rel=0.02)


@each_gpu
def test_measured_products_are_below_the_peak(name: str) -> None:
    profile = DELIVERED[name]
    for measured in profile.measured_tflops.values():
        assert measured.status == "measured"
        # Laptops and cards boost above the listed clock.
        assert measured.value < 1.5 * profile.mode().dense_tflops["fp16"].value


@each_gpu
def test_form_says_whose_the_memory_is(name: str) -> None:
    profile = DELIVERED[name]
    unified = profile.form in ("jetson", "desktop-unified")
    assert profile.memory.kind == ("shared" if unified else "dedicated")
    assert bool(profile.jetson) == (profile.form == "jetson")
    assert ("laptop" in name) == (profile.form == "laptop")


def test_aliases_are_unique_and_shadow_no_name() -> None:
    aliases = [alias for profile in DELIVERED.values() for alias in profile.aliases]
    assert len(aliases) == len(set(aliases))
    assert set(aliases).isdisjoint(DELIVERED)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("jetson-orin", "jetson-agx-orin-64gb"),
        ("jetson-orin-nano", "jetson-orin-nano-8gb-super"),
        ("jetson-orin-nx", "jetson-orin-nx-16gb-super"),
        ("jetson-thor", "jetson-thor-t5000"),
        ("laptop-rtx-4060", "rtx-4060-laptop"),
        ("dgx-spark", "dgx-spark-gb10"),
        ("thor-t5000", "jetson-thor-t5000"),
        ("jetson-t5000", "jetson-thor-t5000"),
        ("jetson-agx-thor-devkit", "jetson-thor-t5000"),
        ("orin-nx-16gb", "jetson-orin-nx-16gb"),
        ("jetson-orin-nano-super-devkit", "jetson-orin-nano-8gb-super"),
        ("igx-orin", "jetson-agx-orin-industrial"),
        ("rtx-3050-laptop-6gb", "rtx-3050-6gb-laptop"),
    ],
)
def test_alias(alias: str, name: str) -> None:
    assert load_profile(alias) == DELIVERED[name]


# What the collection lacks, or has wrong.
FOUND_LATER: dict[str, tuple[dict[str, Any], ...]] = {
    # The collection has the clock of 120W for MAXN; two dumps of kits show 1575 MHz.
    "jetson-thor-t5000": (
        {"name": "MAXN", "gpu_mhz": 1575, "sm": 20, "emc_mhz": 4266, "source": "maxn"},
    ),
    # nvpmodel_p3767_0001_super.conf, ID 3
    "jetson-orin-nx-8gb-super": ({"name": "20W", "gpu_mhz": 408, "sm": 8, "emc_mhz": 3199},),
}
BANDWIDTH_GB_S = {"h200-sxm-141gb": 4800}  # data sheet


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("CPU", "cpu"),
        ("RTX-4060-Laptop", "rtx-4060-laptop"),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", "rtx-4060-laptop"),
        ("NVIDIA GeForce RTX 4060 Laptop GPU 8GB", "rtx-4060-laptop"),
        ("rtx4060 mobile", "rtx-4060-laptop"),
        ("RTX 4060", "rtx-4060"),
        ("RTX 3050 Ti Laptop", "rtx-3050ti-laptop"),
        ("RTX A2000 8GB Laptop GPU", "rtx-a2000-laptop-8gb"),
        ("NVIDIA RTX PRO 2000 Blackwell Generation Laptop GPU", "rtx-pro-2000-blackwell-laptop"),
        ("Jetson Orin Nano Super Developer Kit", "jetson-orin-nano-8gb-super"),
        ("JETSON_ORIN_NX", "jetson-orin-nx-16gb-super"),
        ("jetson agx thor developer kit", "jetson-thor-t5000"),
        ("DGX Spark", "dgx-spark-gb10"),
    ],
)
def test_names_as_people_and_drivers_write_them(written: str, name: str) -> None:
    assert load_profile(written) == DELIVERED[name]


@pytest.mark.parametrize(
    "written", ["RTX 4060 Laptop GPU 16GB", "rtx 4060 super", "jetson", "4060", "GPU"]
)
def test_name_of_another_device(written: str) -> None:
    with pytest.raises(UnknownName):
        load_profile(written)


def collected() -> dict[str, dict[str, Any]]:
    return {device["id"]: device for device in json.loads(COLLECTED.read_text())}


def corrected(name: str) -> dict[str, Any] | None:
    device = collected().get(name)
    if device and name in BANDWIDTH_GB_S:
        device["memory"]["bandwidth_gbs"] = BANDWIDTH_GB_S[name]
    return device


@pytest.mark.skipif(not COLLECTED.exists(), reason=f"needs {COLLECTED}")
def test_every_collected_device_has_a_profile() -> None:
    assert collected().keys() <= DELIVERED.keys()


@pytest.mark.skipif(not COLLECTED.exists(), reason=f"needs {COLLECTED}")
@each_gpu
def test_profile_agrees_with_what_was_collected(name: str) -> None:
    profile, device = DELIVERED[name], corrected(name)
    if device is None:
        pytest.skip("found after the collection")
    assert profile.memory.bytes is not None
    assert profile.memory.bytes.value == device["memory"]["size_gb"] * 2**30
    assert profile.sm == round(10 * float(device["compute_capability"]))
    mode = profile.mode()
    assert mode.bandwidth_gb_s.value == pytest.approx(device["memory"]["bandwidth_gbs"], rel=0.002)
    assert mode.sm_count is not None
    assert mode.sm_count.value == device["sm_count"]
    # Modes that lack a clock in their source are left out.
    modes = {one["name"]: one for one in device.get("power_modes") or [] if one["gpu_mhz"]}
    modes |= {found["name"]: found for found in FOUND_LATER.get(name, ())}
    assert not modes or modes.keys() == {one.name for one in profile.power_modes}
    for one in profile.power_modes if modes else ():
        recorded = modes[one.name]
        double_rate = device["memory"]["bus_bits"] / 8 * recorded["emc_mhz"] * 2 / 1e3
        assert one.bandwidth_gb_s.value == pytest.approx(double_rate, rel=0.002)
        assert one.clock_ghz == Figure(
            recorded["gpu_mhz"] / 1e3, recorded.get("source", "power_modes")
        )
        assert one.sm_count == Figure(recorded["sm"], "power_modes")


def test_budget_is_what_is_not_reserved() -> None:
    profile = DELIVERED["rtx-4060-laptop"]
    assert profile.memory.bytes is not None
    assert profile.budget_bytes == 8 * 2**30 - profile.memory.reserved_bytes.value


def test_budget_of_the_machine_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_bytes", lambda: 5_000_000_000)
    assert read_profile(FOLDER / "cpu.toml").budget_bytes == 4_700_000_000


def test_modes_and_engines_by_name() -> None:
    orin = DELIVERED["jetson-orin-nano-8gb-super"]
    assert orin.mode().name == "MAXN_SUPER"
    assert orin.mode("15W").bandwidth_gb_s.value == 68.3
    assert orin.engine().name == "tensorrt"
    assert orin.engine("onnxruntime-cuda").dialect == "ort"
    with pytest.raises(
        UnknownName,
        match=r"^jetson-orin-nano-8gb-super has no power mode '30W'; it has 15W, 25W, MAXN_SUPER",
    ):
        orin.mode("30W")
    assert orin.mode("default") == orin.mode("maxn_super") == orin.mode("MAXN") == orin.mode()
    assert orin.mode("15w") == orin.mode("MODE_15W") == orin.mode("15W")
    agx = DELIVERED["jetson-agx-orin-64gb"]
    assert agx.mode("30W") == agx.mode("mode_30w") == agx.mode("MODE_30W")
    assert DELIVERED["jetson-xavier-nx"].mode("15W").name == "MODE_15W_6CORE"
    with pytest.raises(
        UnknownName,
        match=r"^jetson-orin-nano-8gb-super has no engine 'vllm'; it has tensorrt, tensorrt-10\.3",
    ):
        orin.engine("vllm")


def test_bandwidth_that_no_kernel_reaches_is_not_planned_with() -> None:
    spark = DELIVERED["dgx-spark-gb10"].mode()
    assert spark.measured_gb_s is not None
    assert spark.measured_gb_s.status == "measured"
    # A read-only kernel reaches 85% there, and 94% of Thor's equal bandwidth.
    assert spark.attainable_gb_s == pytest.approx(232 / 0.94)
    thor = DELIVERED["jetson-thor-t5000"].mode()
    assert thor.attainable_gb_s == thor.bandwidth_gb_s.value
    nearly = msgspec.structs.replace(spark, measured_gb_s=Figure(257, "a", "measured"))
    assert nearly.attainable_gb_s == spark.bandwidth_gb_s.value
