"""Jetsons: what they say when all is well, and when half of it is missing."""

from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from edgelm.devices.detection.jetson import integrated_gpu, read_jetson
from edgelm.devices.detection.machine import DetectedGpu, Jetson, Unread
from edgelm.devices.detection.modules import jetson_profiles
from tests.devices.recorded_machines import recorded
from tests.devices.test_profile import DELIVERED

GIB = 2**30
MODES = "/etc/nvpmodel.conf"
STATUS = "/var/lib/nvpmodel/status"
RELEASE = "/etc/nv_tegra_release"
COMPATIBLE = "/proc/device-tree/compatible"
MODEL = "/proc/device-tree/model"
SPEC = "/etc/nv_boot_control.conf"
EMC = "/sys/kernel/debug/bpmp/debug/clk/emc/rate"
ORIN_NANO = Jetson(
    model="NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
    part="p3767-0005",
    soc="tegra234",
    l4t="36.4.3",
    jetpack="6.2",
    power_mode="MAXN_SUPER",
    power_mode_id=2,
    gpu_clock_mhz=306.0,
    gpu_max_clock_mhz=1020.0,
    memory_clock_mhz=3199.0,
    power_modes=("15W", "25W", "MAXN_SUPER", "7W"),
)
DPKG_L4T = "dpkg-query -W -f=${Version} nvidia-l4t-core"


def read(
    folder: Path,
    files: Mapping[str, str | None],
    commands: Mapping[str, str] | None = None,
    denied: tuple[str, ...] = (),
) -> tuple[Jetson, list[Unread]]:
    probes = recorded("orin-nano-super", folder, files=files, commands=commands, denied=denied)
    jetson, unread = read_jetson(probes)
    assert jetson
    return jetson, unread


def test_everything_of_an_orin_nano(tmp_path: Path) -> None:
    assert read(tmp_path, {}) == (ORIN_NANO, [])


@pytest.mark.parametrize(
    ("machine", "fields"),
    [
        (
            "agx-orin-64gb-jetpack-6.2",
            ("p3701-0005", "tegra234", "36.4.3", "6.2", "MODE_30W", 612.0, None),
        ),
        (
            "agx-orin-64gb-jetpack-7.2",
            ("p3701-0005", "tegra234", "39.2.1", "7.2", "MAXN", 1300.5, 3199.0),
        ),
        (
            "thor-t5000",
            ("p3834-0008", "tegra264", "38.4.0", "7.1", "120W", 1386.0, 3200.0),
        ),
    ],
    ids=["jetpack-6.2", "jetpack-7.2", "thor"],
)
def test_recorded_jetsons(tmp_path: Path, machine: str, fields: tuple[object, ...]) -> None:
    it, _ = read_jetson(recorded(machine, tmp_path))
    assert it
    seen = (it.part, it.soc, it.l4t, it.jetpack, it.power_mode, it.gpu_max_clock_mhz)
    assert (*seen, it.memory_clock_mhz) == fields


@pytest.mark.parametrize("machine", ["plain-pc", "rtx-4060-laptop", "gb10"])
def test_no_jetson_and_no_complaint(tmp_path: Path, machine: str) -> None:
    assert read_jetson(recorded(machine, tmp_path)) == (None, [])


def test_another_board_with_a_device_tree(tmp_path: Path) -> None:
    files = {MODEL: "Raspberry Pi 5 Model B Rev 1.0\0", COMPATIBLE: "raspberrypi,5-model-b\0"}
    assert read_jetson(recorded("plain-pc", tmp_path, files=files)) == (None, [])


@pytest.mark.parametrize(
    ("files", "changed"),
    [
        # A container: no device tree, no nvpmodel, the kernel's SoC instead.
        (
            {
                MODEL: None,
                COMPATIBLE: None,
                "/sys/devices/soc0/family": "Tegra\n",
                "/sys/devices/soc0/soc_id": "35\n",
                "/sys/devices/soc0/machine": ORIN_NANO.model,
            },
            {},
        ),
        ({SPEC: None}, {}),
        ({SPEC: "TNSPEC\n"}, {}),
        (
            {
                SPEC: None,
                COMPATIBLE: "nvidia,p2972-0000\0nvidia,tegra194",
                "/proc/device-tree/nvidia,boardids": "2888-0004-400",
            },
            {"part": "p2888-0004", "soc": "tegra194"},
        ),
        ({SPEC: "TNSPEC 3834-0000\n"}, {"part": "p3834-0000"}),
        ({STATUS: "pmode:0000"}, {"power_mode": "15W", "power_mode_id": 0}),
        ({RELEASE: None}, {}),
        ({RELEASE: "# R36 (release), REVISION: 4"}, {}),
        ({"/sys/class/devfreq/bwmgr/cur_freq": "2133000000"}, {"memory_clock_mhz": 2133.0}),
    ],
    ids=[
        *("container", "no-tnspec", "empty-tnspec", "boardids", "short-tnspec", "other-mode"),
        *("no-release", "cut-off-release", "bwmgr"),
    ],
)
def test_second_sources(
    tmp_path: Path, files: Mapping[str, str | None], changed: Mapping[str, object]
) -> None:
    expected = msgspec.structs.replace(ORIN_NANO, **changed)
    assert read(tmp_path, files) == (expected, [])


@pytest.mark.parametrize(
    ("files", "answer"),
    [
        ({STATUS: None}, "NV Power Mode: MAXN_SUPER\n2\n"),
        ({STATUS: "pmode:0009"}, "NVPM WARN: fan mode is not set!\nNV Power Mode: MAXN_SUPER\n2\n"),
        ({MODES: None}, "NV Power Mode: MAXN_SUPER\n2\n"),
    ],
    ids=["no-status", "out-of-range", "no-names"],
)
def test_nvpmodel_is_asked_for_what_its_files_do_not_say(
    tmp_path: Path, files: Mapping[str, str | None], answer: str
) -> None:
    jetson, unread = read(tmp_path, files, {"nvpmodel -q": answer})
    assert (jetson.power_mode, jetson.power_mode_id) == ("MAXN_SUPER", 2)
    assert unread == []


@pytest.mark.parametrize(
    ("files", "changed", "unread"),
    [
        (
            {COMPATIBLE: None},
            {"soc": None},
            Unread("SoC", COMPATIBLE, "not there"),
        ),
        (
            {COMPATIBLE: "\ufffd\ufffd"},
            {"soc": None},
            Unread("SoC", COMPATIBLE, "cannot be parsed: '\ufffd\ufffd'"),
        ),
        (
            {MODEL: None},
            {"model": "NVIDIA Jetson"},
            Unread("model", MODEL, "not there"),
        ),
        (
            {MODEL: ""},
            {"model": "NVIDIA Jetson"},
            Unread("model", MODEL, "empty"),
        ),
        (
            {SPEC: None, COMPATIBLE: "acme,robot\0nvidia,tegra234"},
            {"part": None},
            Unread("module", SPEC, "not there"),
        ),
        (
            {RELEASE: "# R36 (release), REVISION: 99.1, GCID"},
            {"l4t": "36.99.1", "jetpack": "6.2.3"},
            Unread(
                "JetPack",
                RELEASE,
                "Jetson Linux 36.99.1 is not in the table; taken for JetPack 6.2.3",
            ),
        ),
        (
            {RELEASE: "# R99 (release), REVISION: 1.0, GCID"},
            {"l4t": "99.1.0", "jetpack": None},
            Unread(
                "JetPack",
                RELEASE,
                "Jetson Linux 99.1.0 belongs to no known JetPack; `apt show nvidia-jetpack` names "
                "it",
            ),
        ),
        (
            {STATUS: "pmode:0009"},
            {"power_mode": None, "power_mode_id": 9},
            Unread("power mode", MODES, "does not name mode 9"),
        ),
        (
            {STATUS: None},
            {"power_mode": None, "power_mode_id": None},
            Unread("power mode", STATUS, "not there"),
        ),
        (
            {STATUS: "fmode:quiet"},
            {"power_mode": None, "power_mode_id": None},
            Unread("power mode", STATUS, "cannot be parsed: 'fmode:quiet'"),
        ),
        (
            {"/sys/class/devfreq/17000000.gpu/cur_freq": ""},
            {"gpu_clock_mhz": None},
            Unread(
                "GPU clock",
                "/sys/class/devfreq/17000000.gpu/cur_freq",
                "invalid literal for int() with base 10: ''",
            ),
        ),
        ({EMC: None}, {"memory_clock_mhz": None}, Unread("memory clock", EMC, "not there")),
    ],
    ids=[
        *("soc", "soc-garbage", "model", "model-empty", "part", "nearest", "jetpack", "mode-out"),
        *("no-status", "status-garbage", "clock-garbage", "no-emc"),
    ],
)
def test_what_cannot_be_read_is_noted_and_the_rest_stands(
    tmp_path: Path,
    files: Mapping[str, str | None],
    changed: Mapping[str, object],
    unread: Unread,
) -> None:
    expected = msgspec.structs.replace(ORIN_NANO, **changed)
    assert read(tmp_path, files) == (expected, [unread])


@pytest.mark.parametrize(
    ("text", "why"),
    [(None, "not there"), ("# R36 (rel", "cannot be parsed: '# R36 (rel'")],
    ids=["missing", "cut-off"],
)
def test_release_that_nobody_names(tmp_path: Path, text: str | None, why: str) -> None:
    jetson, unread = read(tmp_path, {RELEASE: text}, commands={})
    assert (jetson.l4t, jetson.jetpack) == (None, None)
    assert unread == [Unread("Jetson Linux", RELEASE, why)]


def test_no_gpu_in_devfreq(tmp_path: Path) -> None:
    probes = recorded("plain-pc", tmp_path, files={MODEL: "NVIDIA Jetson X", EMC: "1"})
    _, unread = read_jetson(probes)
    assert Unread("GPU clock", "/sys/class/devfreq", "no GPU in it") in unread


def test_files_of_root_are_noted_as_such(tmp_path: Path) -> None:
    jetson, unread = read(tmp_path, {}, denied=(EMC,))
    assert jetson == msgspec.structs.replace(ORIN_NANO, memory_clock_mhz=None)
    assert unread == [Unread("memory clock", EMC, "only root may read it")]


def test_nothing_but_the_model_may_be_read(tmp_path: Path) -> None:
    denied = (COMPATIBLE, SPEC, RELEASE, MODES, STATUS, EMC)
    clocks = {f"/sys/class/devfreq/17000000.gpu/{name}": None for name in ("cur_freq", "max_freq")}
    jetson, unread = read(tmp_path, clocks, commands={}, denied=denied)
    assert jetson == Jetson(ORIN_NANO.model)
    assert len(unread) == 7
    assert all(it.why in ("only root may read it", "no GPU in it") for it in unread)


def test_directory_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / RELEASE.lstrip("/")).mkdir(parents=True)
    _, unread = read(tmp_path, {RELEASE: None}, commands={})
    assert unread == [Unread("Jetson Linux", RELEASE, "is a directory")]


@pytest.mark.parametrize(
    ("part", "mode", "count"),
    [
        ("p3701-0005", "MODE_30W", 8),
        ("p3701-0004", "MAXN", 14),
        ("p3767-0000", "15W", 4),
        ("p3767-0003", "7W", 4),
        ("p3767-0004", "10W", 4),
        ("p3834-0000", "MAXN", 12),
        ("p3834-0008", "90W", 12),
        ("p3701-0008", "MAXN", 16),
        ("p3701-0000", "MODE_50W", 16),
        ("p3668-0001", "MODE_15W_6CORE", 6),
        ("p3448-0002", "MAXN", 1),
        ("p3834-0008", "MODE_OF_TOMORROW", None),
        (None, "MAXN", None),
    ],
)
def test_sms_by_module_and_mode(part: str | None, mode: str, count: int | None) -> None:
    jetson = Jetson("NVIDIA Jetson", part=part, soc="tegra234", power_mode=mode)
    (gpu,) = integrated_gpu(jetson, 8 * GIB, [])
    assert gpu.sm_count == count


def test_gpu_without_nvml() -> None:
    assert integrated_gpu(ORIN_NANO, 8 * GIB, []) == [
        DetectedGpu(
            "Orin",
            sm=87,
            sm_count=8,
            memory_bytes=8 * GIB,
            memory_kind="shared",
            cuda="12.6",
            max_clock_mhz=1020.0,
        )
    ]


def test_gpu_beside_the_modules_own() -> None:
    card = DetectedGpu("NVIDIA RTX A2000", sm=86, memory_bytes=6 * GIB, memory_kind="dedicated")
    own = DetectedGpu("NVIDIA Thor", sm=110, memory_kind="shared", driver="580.00", cuda="13.0")
    thor = Jetson("NVIDIA Jetson AGX Thor", soc="tegra264", part="p3834-0008", power_mode="MAXN")
    first, second = integrated_gpu(thor, 128 * GIB, [card, own])
    assert (first.name, first.sm_count, first.memory_bytes) == ("NVIDIA Thor", 20, 128 * GIB)
    assert second == card


@pytest.mark.parametrize("soc", [None, "tegra999"])
def test_gpu_of_an_unknown_soc(soc: str | None) -> None:
    (gpu,) = integrated_gpu(Jetson("Jetson", soc=soc), 8 * GIB, [])
    assert (gpu.name, gpu.sm, gpu.memory_kind) == ("GPU of the Jetson", None, "shared")


def test_a_part_leads_to_the_profile_that_names_it() -> None:
    for profile in DELIVERED.values():
        for part in profile.parts:
            if "/" in part:  # a range of old parts
                continue
            assert profile.memory.bytes
            modes = tuple(mode.name for mode in profile.power_modes)
            jetson = Jetson("", part=part, power_modes=modes)
            names = jetson_profiles(jetson, int(0.9 * profile.memory.bytes.value))
            assert next(name for name in names if name in DELIVERED) == profile.name, part


@pytest.mark.parametrize(
    ("jetson", "gib", "profile"),
    [
        (ORIN_NANO, 7.44, "jetson-orin-nano-8gb-super"),
        (Jetson("", "p3767-0003", power_modes=("15W", "7W")), 7.4, "jetson-orin-nano-8gb"),
        (Jetson("", "p3767-0003", power_modes=("15W", "25W")), 7.4, "jetson-orin-nano-8gb-super"),
        (Jetson("", "p3767-0004", power_modes=("10W", "7W_AI")), 3.4, "jetson-orin-nano-4gb"),
        (Jetson("", "p3767-0000", power_modes=("MAXN", "25W")), 15.3, "jetson-orin-nx-16gb"),
        (Jetson("", "p3767-0000", power_modes=("25W", "40W")), 15.3, "jetson-orin-nx-16gb-super"),
        (Jetson("", "p3767-0001", power_mode="MAXN_SUPER"), 7.4, "jetson-orin-nx-8gb-super"),
        (Jetson("", "p3701-0005"), 61.4, "jetson-agx-orin-64gb"),
        (Jetson("", "p3701-0000"), 30.0, "jetson-agx-orin-devkit-32gb"),
        (Jetson("", "p3701-0000"), 61.4, "jetson-agx-orin-64gb"),
        (Jetson("", "p3701-0008"), 54.8, "jetson-agx-orin-industrial"),
        (Jetson("NVIDIA IGX Orin Developer Kit"), 54.8, "jetson-agx-orin-industrial"),
        (Jetson("", "p3701-0004", power_modes=("MAXN_SUPER",)), 30.0, "jetson-agx-orin-32gb"),
        (Jetson("", "p3834-0008"), 122.8, "jetson-thor-t5000"),
        (Jetson("", "p3834-0000"), 61.0, "jetson-thor-t4000"),
        (Jetson("NVIDIA Jetson AGX Thor Developer Kit"), 122.8, "jetson-thor-t5000"),
        (Jetson("NVIDIA Jetson AGX Thor Developer Kit"), 61.0, "jetson-thor-t4000"),
        (Jetson("NVIDIA Jetson AGX Thor", "p3834-0099"), 61.0, "jetson-thor-t4000"),
        (Jetson("NVIDIA Jetson Orin Nano Developer Kit"), 7.4, "jetson-orin-nano-8gb"),
        (Jetson("NVIDIA Jetson Orin Nano Developer Kit Super"), 7.4, "jetson-orin-nano-8gb-super"),
        (Jetson("", "p2888-0004"), 31.0, "jetson-agx-xavier"),
        (Jetson("", "p3668-0001"), 7.6, "jetson-xavier-nx"),
        (Jetson("NVIDIA Jetson Nano Developer Kit", "p3448-0000"), 3.9, None),
    ],
)
def test_profile_by_part_memory_and_modes(jetson: Jetson, gib: float, profile: str | None) -> None:
    known = {
        "cpu",
        *(f"jetson-orin-{it}" for it in ("nano-8gb", "nano-4gb", "nx-16gb", "nx-8gb")),
        *(f"jetson-orin-{it}-super" for it in ("nano-8gb", "nano-4gb", "nx-16gb", "nx-8gb")),
        *("jetson-agx-orin-64gb", "jetson-agx-orin-32gb", "jetson-agx-xavier", "jetson-xavier-nx"),
        *("jetson-thor-t5000", "jetson-thor-t4000"),
        *("jetson-agx-orin-devkit-32gb", "jetson-agx-orin-industrial"),
    }
    names = jetson_profiles(jetson, int(gib * GIB))
    assert next((name for name in names if name in known), None) == profile
