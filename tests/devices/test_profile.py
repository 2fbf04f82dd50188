"""Every delivered profile makes sense; a wrong one is refused by file and field."""

import json
import os
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from edgelm.devices import profile as module
from edgelm.devices.profile import (
    ENVIRONMENT,
    Figure,
    Profile,
    load_profile,
    load_profiles,
    profile_names,
    profile_paths,
    read_profile,
)
from edgelm.errors import BadInput, UnknownName
from edgelm.precision import KvType, planned_bits
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
    assert len(DELIVERED) == 52
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
        assert all(4 <= planned_bits(precision) <= 32 for precision in engine.precisions)
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


@each_gpu
def test_peaks_follow_from_clock_and_multiprocessors(name: str) -> None:
    profile = DELIVERED[name]
    for mode in profile.power_modes:
        assert profile.sm is not None
        assert mode.clock_ghz is not None
        assert mode.sm_count is not None
        fp16 = GENERATION[profile.sm][1] * mode.sm_count.value * mode.clock_ghz.value / 1e3
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
    ],
)
def test_alias(alias: str, name: str) -> None:
    assert load_profile(alias) == DELIVERED[name]


def collected() -> dict[str, dict[str, Any]]:
    if not COLLECTED.exists():
        return {}
    return {device["id"]: device for device in json.loads(COLLECTED.read_text())}


@pytest.mark.skipif(not COLLECTED.exists(), reason=f"needs {COLLECTED}")
def test_every_collected_device_has_a_profile() -> None:
    assert collected().keys() == DELIVERED.keys() - {"cpu"}


@pytest.mark.skipif(not COLLECTED.exists(), reason=f"needs {COLLECTED}")
@each_gpu
def test_profile_agrees_with_what_was_collected(name: str) -> None:
    profile, device = DELIVERED[name], collected()[name]
    assert profile.memory.bytes is not None
    assert profile.memory.bytes.value == device["memory"]["size_gb"] * 2**30
    assert profile.sm == round(10 * float(device["compute_capability"]))
    mode = profile.mode()
    assert mode.bandwidth_gb_s.value == pytest.approx(device["memory"]["bandwidth_gbs"], rel=0.002)
    assert mode.sm_count is not None
    assert mode.sm_count.value == device["sm_count"]
    # Modes that lack a clock in their source are left out.
    modes = {one["name"]: one for one in device.get("power_modes") or [] if one["gpu_mhz"]}
    assert not modes or modes.keys() == {one.name for one in profile.power_modes}
    for one in profile.power_modes if modes else ():
        recorded = modes[one.name]
        double_rate = device["memory"]["bus_bits"] / 8 * recorded["emc_mhz"] * 2 / 1e3
        assert one.bandwidth_gb_s.value == pytest.approx(double_rate, rel=0.002)
        assert one.clock_ghz == Figure(recorded["gpu_mhz"] / 1e3, "power_modes")
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
    with pytest.raises(
        UnknownName,
        match=r"^jetson-orin-nano-8gb-super has no engine 'vllm'; it has tensorrt, tensorrt-10\.3",
    ):
        orin.engine("vllm")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("cpus", "cpu"),
        ("CPU", "cpu"),
        ("RTX-4060-Laptop", "rtx-4060-laptop"),
        ("jetson-orin-nao", "jetson-orin-nano"),
        ("JETSON-ORIN-NAO", "jetson-orin-nano"),
        ("laptop-rtx-4061", "laptop-rtx-4060"),
    ],
)
def test_unknown_target_suggests_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UnknownName, match=rf"^unknown target '{name}'; did you mean {near}\b"):
        load_profile(name)


def test_part_of_a_name_suggests_those_that_hold_it() -> None:
    with pytest.raises(UnknownName, match=r"\bjetson-thor-t4000\b.*\?"):
        load_profile("t4000")


@pytest.mark.parametrize("name", ["", "../profiles/cpu", "/etc/passwd", "zzzzzz"])
def test_unknown_target_without_a_neighbour(name: str) -> None:
    expected = f"unknown target '{name}'; `edge-devices list` prints the 52 known ones"
    with pytest.raises(UnknownName) as caught:
        load_profile(name)
    assert str(caught.value) == expected


def changed(path: Path, old: str, new: str) -> Path:
    """The cpu profile with one passage replaced, as another file."""
    text = (FOLDER / "cpu.toml").read_text()
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "the', 'label = "the', "Object contains unknown field `label`"),
        ("default_context = 8192", "", "Object missing required field `default_context`"),
        ("layer_us = 45", "", "missing required field `layer_us` - at `$.engines[0].measured`"),
        ("context = 8192", 'context = "x"', "Expected `int`, got `str` - at `$.default_context`"),
        ("value = 40,", 'value = "fast",', "Expected `float`, got `str` - at `$.power_modes[0]"),
        ('form = "cpu"', 'form = "toaster"', "Invalid enum value 'toaster' - at `$.form`"),
        ('"measured" }', '"guessed" }', "'guessed' - at `$.power_modes[0].bandwidth_gb_s.status`"),
        ('kv = ["fp32"', 'kv = ["int7"', "Invalid enum value 'int7' - at `$.engines[0].kv[0]`"),
        (
            'value = 40, source = "host"',
            'value = 40, source = "hots"',
            "power_modes[default].bandwidth_gb_s.source 'hots' is not in the table [sources]",
        ),
        (
            "value = 40,",
            "value = -40,",
            "power_modes[default].bandwidth_gb_s.value is -40.0, expected a number from 0 up",
        ),
        ("value = 40,", "value = nan,", "bandwidth_gb_s.value is nan, expected a number"),
        ("value = 0.46", "value = inf", "dense_tflops.int8.value is inf, expected a number"),
        ("value = 75_000_000", "value = -1", "engines[onnxruntime].runtime_bytes.value is -1.0"),
        ("value = 300_000_000", "value = -1", "memory.reserved_bytes.value is -1.0, expected"),
        ("value = 40,", "value = 0,", "power mode 'default' needs a bandwidth and a dense peak"),
        (
            'power_mode = "default"',
            'power_mode = "MAXN"',
            "power_mode 'MAXN' is none of its modes ['default']",
        ),
        ('kind = "host"', 'kind = "shared"', "memory.bytes is missing, expected for shared memory"),
        (
            "schema_version = 1",
            "schema_version = 2",
            "schema_version 2, expected 1: written by another version of edgelm",
        ),
        ('name = "cpu"', 'name = "cqu"', "name is 'cqu', expected 'cpu' as the file"),
        ('name = "cpu"', "name = cpu", "Invalid value (at line 5, column 8)"),
    ],
    ids=[
        "unknown-field",
        "missing",
        "nested-missing",
        "wrong-type",
        "figure-type",
        "form",
        "status",
        "cache",
        "source",
        "negative",
        "nan",
        "infinite",
        "runtime",
        "reserved",
        "no-bandwidth",
        "no-such-mode",
        "no-memory",
        "newer",
        "name",
        "syntax",
    ],
)
def test_malformed_file_is_named_with_its_field(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = changed(tmp_path / "cpu.toml", old, new)
    with pytest.raises(BadInput) as caught:
        read_profile(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_no_engine(tmp_path: Path) -> None:
    path = tmp_path / "cpu.toml"
    head = (FOLDER / "cpu.toml").read_text().partition("[[engines]]")[0]
    path.write_text(head.replace("[sources]", "engines = []\n[sources]", 1))
    with pytest.raises(BadInput, match="engines is empty, expected at least one"):
        read_profile(path)


def test_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "cpu.toml"
    path.write_bytes(b"\xff\xfe name")
    with pytest.raises(BadInput, match=r"cpu\.toml: 'utf-8' codec can't decode byte 0xff"):
        read_profile(path)


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(BadInput, match=r"folder\.toml: Is a directory$"):
        read_profile(tmp_path / "folder.toml")
    with pytest.raises(BadInput, match=r"gone\.toml: No such file or directory$"):
        read_profile(tmp_path / "gone.toml")


def own(folder: Path, name: str, title: str, aliases: str = "") -> None:
    """A profile of the user's own: the cpu's under another name."""
    folder.mkdir(exist_ok=True)
    text = (FOLDER / "cpu.toml").read_text()
    text = text.replace('name = "cpu"', f'name = "{name}"\naliases = [{aliases}]', 1)
    text = text.replace("the machine at hand, ONNX Runtime CPU", title)
    (folder / f"{name}.toml").write_text(text)


def test_own_profiles_go_before_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    own(first, "cpu", "mine, first")
    own(second, "cpu", "mine, second")
    own(second, "toaster", "a toaster", '"bread"')
    monkeypatch.setenv(ENVIRONMENT, os.pathsep.join([str(tmp_path / "none"), str(first), ""]))
    assert load_profile("cpu").title == "mine, first"
    assert profile_names() == sorted(DELIVERED)
    monkeypatch.setenv(ENVIRONMENT, os.pathsep.join([str(first), str(second)]))
    assert load_profile("cpu").title == "mine, first"
    assert load_profile("bread").title == "a toaster"
    assert profile_paths()["toaster"] == second / "toaster.toml"
    assert len(load_profiles()) == 53


def test_broken_profile_of_ones_own_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.toml").write_text("name = ")
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    assert load_profile("jetson-thor").name == "jetson-thor-t5000"
    with pytest.raises(BadInput, match=r"broken\.toml: Invalid value"):
        load_profile("broken")
