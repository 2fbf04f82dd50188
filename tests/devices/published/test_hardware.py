"""Which device, in which power mode, a published name means."""

import pytest

from edgelm.devices.profile import load_profile, load_profiles
from edgelm.devices.published.hardware import hardware_named

_NOT_STATED = "not stated (doc: default settings; maintainer in issue #95 asks for nvpmodel -m 0)"

_JETSONS = [
    ("Jetson AGX Thor (T5000)", _NOT_STATED, "jetson-thor-t5000", "MAXN"),
    ("Jetson AGX Thor", "120W", "jetson-thor-t5000", "120W"),
    ("Jetson T4000", "", "jetson-thor-t4000", "MAXN"),
    ("Jetson AGX Orin 64GB", _NOT_STATED, "jetson-agx-orin-64gb", "MAXN"),
    # Mode 0 of the configuration that current JetPacks install.
    ("Jetson Orin NX 16GB", _NOT_STATED, "jetson-orin-nx-16gb-super", "MAXN_SUPER"),
    ("Jetson Orin NX 16GB", "nvpmodel 0", "jetson-orin-nx-16gb-super", "MAXN_SUPER"),
    ("Jetson Orin NX 16GB", "MAXN (nvpmodel -m 0)", "jetson-orin-nx-16gb", "MAXN"),
    ("Jetson Orin Nano 8GB", _NOT_STATED, "jetson-orin-nano-8gb-super", "15W"),
    ("Jetson AGX Orin 64GB", "MAXN (tutorial)", "jetson-agx-orin-64gb", "MAXN"),
    ("Jetson AGX Orin 64GB", "MODE_30W", "jetson-agx-orin-64gb", "MODE_30W"),
    ("Jetson AGX Orin", "MAXN, devfreq verified (JP 7.2)", "jetson-agx-orin-64gb", "MAXN"),
    ("Jetson AGX Orin 32GB", "not stated", "jetson-agx-orin-32gb", "MAXN"),
    ("Jetson Orin NX 16GB", "10W", "jetson-orin-nx-16gb", "10W"),
    ("Jetson Orin NX 16GB Super", "", "jetson-orin-nx-16gb-super", "MAXN_SUPER"),
    ("Jetson Orin NX 16GB (Super conf)", "40W", "jetson-orin-nx-16gb-super", "40W"),
    ("Jetson Orin NX 8GB", "not stated", "jetson-orin-nx-8gb", "MAXN"),
    ("Jetson Orin Nano 8GB", "not stated", "jetson-orin-nano-8gb", "15W"),
    ("Jetson Orin Nano 8GB", "15W (nvpmodel 0) + jetson_clocks", "jetson-orin-nano-8gb", "15W"),
    ("Jetson Orin Nano 8GB", "7W", "jetson-orin-nano-8gb", "7W"),
    ("Jetson Orin Nano 8GB Super", "", "jetson-orin-nano-8gb-super", "MAXN_SUPER"),
    ("Jetson Orin Nano Super 8GB", "25W (nvpmodel 1)", "jetson-orin-nano-8gb-super", "25W"),
    (
        "Jetson Orin Nano 8GB Super",
        "MAXN_SUPER/25W (Super)",
        "jetson-orin-nano-8gb-super",
        "MAXN_SUPER",
    ),
    # Only the Super configuration has a maximum, and it is called MAXN_SUPER.
    (
        "Jetson Orin Nano 8GB",
        "MAXN recommended by the tutorial",
        "jetson-orin-nano-8gb-super",
        "MAXN_SUPER",
    ),
    ("Jetson Orin Nano 8GB", "15W, not MAXN", "jetson-orin-nano-8gb", "15W"),
    ("Jetson AGX Orin 64GB", "not MAXN: 30W", "jetson-agx-orin-64gb", "MODE_30W"),
    ("Jetson AGX Orin 64GB", "50W instead of MAXN", "jetson-agx-orin-64gb", "MODE_50W"),
    ("Jetson Orin NX 16GB", "25W (not 15W)", "jetson-orin-nx-16gb", "25W"),
    ("Jetson Orin Nano 4GB", "", "jetson-orin-nano-4gb", "10W"),
    ("Jetson Orin Nano", "not stated", "jetson-orin-nano-8gb", "15W"),
    ("Jetson Orin NX", "", "jetson-orin-nx-16gb", "MAXN"),
    ("Jetson Xavier NX 8GB", "", "jetson-xavier-nx", "MODE_20W_6CORE"),
    ("Jetson AGX Xavier 32GB", "MAXN", "jetson-agx-xavier", "MAXN"),
]
_OTHERS = [
    ("DGX Spark GB10", "MAXN recommended by the tutorial", "dgx-spark-gb10", "default"),
    ("NVIDIA H100 80GB HBM3 79GB", "", "h100-sxm-80gb", "default"),
    ("NVIDIA H100 PCIe 79GB", "", "h100-pcie-80gb", "default"),
    ("NVIDIA H200 140GB", "", "h200-sxm-141gb", "default"),
    ("Pi CM5 - 16GB (Nvidia RTX 4090<sup>1</sup>)", "", "rtx-4090", "default"),
    ("Intel 13900K (Nvidia 5090)", "", "rtx-5090", "default"),
    ("NVIDIA GeForce RTX 5090 31GB", "", "rtx-5090", "default"),
]
_SPELLED = [
    ("NVIDIA GeForce RTX 4060 Laptop GPU 8GB", "rtx-4060-laptop"),
    ("RTX 4070 Laptop GPU 8GB", "rtx-4070-laptop"),
    ("RTX 3050 Ti Laptop GPU 4GB", "rtx-3050ti-laptop"),
    ("NVIDIA GeForce RTX 3050 6GB Laptop GPU", "rtx-3050-6gb-laptop"),
    ("NVIDIA GeForce RTX 3080 Ti Laptop GPU 16GB", "rtx-3080ti-laptop"),
    ("RTX 4090 Laptop GPU 16GB", "rtx-4090-laptop"),
    ("RTX 5070 Ti Laptop GPU 12GB", "rtx-5070ti-laptop"),
    ("RTX 5090 Laptop GPU 24GB", "rtx-5090-laptop"),
    ("NVIDIA RTX 3500 Ada Generation Laptop GPU 12GB", "rtx-3500-ada-laptop"),
    ("NVIDIA RTX A5000 Laptop GPU 16GB", "rtx-a5000-laptop"),
    ("rtx_a5500-laptop", "rtx-a5500-laptop"),
    ("NVIDIA RTX A2000 8GB Laptop GPU", "rtx-a2000-laptop-8gb"),
    ("NVIDIA GeForce RTX 3080 Laptop GPU 16GB", "rtx-3080-laptop-16gb"),
    ("NVIDIA GeForce RTX 4060 8GB", "rtx-4060"),
]
_CARDS = [
    ("NVIDIA GeForce RTX 3060 12GB", "rtx-3060-12gb"),
    ("Intel 265K Custom PC (Nvidia RTX 3060)", "rtx-3060-12gb"),
    ("Pi CM5 - 16GB (Nvidia RTX 3060<sup>1</sup>)", "rtx-3060-12gb"),
    ("3070 8GB desktop", "rtx-3070"),
    ("RTX 3090 24GB", "rtx-3090"),
    ("NVIDIA GeForce RTX 3050 6GB", "rtx-3050-6gb"),
    ("A100 PCIe 80GB", "a100-pcie-80gb"),
    ("Pi CM5 - 16GB (Nvidia RTX A4000<sup>1</sup>)", "rtx-a4000"),
    ("NVIDIA GeForce RTX 4070 12GB", "rtx-4070"),
    ("RTX 5070 Ti", "rtx-5070-ti"),
    ("NVIDIA GeForce RTX 5070 Ti 16GB", "rtx-5070-ti"),
]
_UNKNOWN = [
    "NVIDIA H100 NVL 93GB",
    "Jetson Orin (unspecified module) 7GB",
    "NVIDIA T1200 Laptop GPU 4GB",
    "GeForce RTX 3060 8GB",
    "NVIDIA GeForce RTX 3060 Ti 8GB",
    "NVIDIA GeForce RTX 4070 SUPER 12GB",
    "NVIDIA RTX 4000 Ada Generation 20GB",
    "Radeon RX 7900 XTX",
    "Apple M4",
    "",
]


@pytest.mark.parametrize(("name", "stated", "profile", "mode"), _JETSONS + _OTHERS)
def test_published_name_and_mode(name: str, stated: str, profile: str, mode: str) -> None:
    found = hardware_named(name, stated)
    assert found is not None
    loaded = load_profile(profile)
    assert found.name == profile
    assert found.mode == loaded.mode(mode)
    assert found.architecture == loaded.architecture
    assert loaded.memory.bytes is not None
    assert found.memory_bytes == loaded.memory.bytes.value
    assert found.shared == (loaded.memory.kind == "shared")


@pytest.mark.parametrize(("name", "profile"), _SPELLED)
def test_name_as_our_profiles_are_named(name: str, profile: str) -> None:
    found = hardware_named(name, "not stated")
    assert found is not None
    assert (found.name, found.shared) == (profile, False)


@pytest.mark.parametrize(("name", "card"), _CARDS)
def test_card_without_a_profile(name: str, card: str) -> None:
    found = hardware_named(name, "not stated")
    assert found is not None
    assert (found.name, found.family, found.mode.name) == (card, card, "default")


def test_card_by_its_numbers() -> None:
    card = hardware_named("RTX 3090 24GB", "")
    assert card is not None
    assert card.architecture == "ampere"
    assert card.memory_bytes == 24 * 2**30
    assert not card.shared
    assert card.mode.bandwidth_gb_s.value == 936
    assert card.mode.dense_tflops["fp16"].value == 142
    assert card.mode.sm_count is not None
    assert card.mode.sm_count.value == 82
    assert card.mode.clock_ghz is not None
    assert card.mode.clock_ghz.value == 1.695
    assert card.mode.bandwidth_gb_s.status == "unverified"


@pytest.mark.parametrize("name", _UNKNOWN)
def test_another_device_is_taken_for_none(name: str) -> None:
    assert hardware_named(name, "MAXN") is None


@pytest.mark.parametrize(
    ("name", "title"),
    [
        pytest.param(
            profile.name,
            profile.title,
            id=profile.name,
        )
        for profile in load_profiles()
        if profile.name != "cpu"
    ],
)
def test_every_profile_is_found_by_its_title(name: str, title: str) -> None:
    found = hardware_named(title, "not stated")
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize(
    ("name", "stated", "mode"),
    [
        ("Jetson AGX Orin 64GB", "30W", "MODE_30W"),
        ("Jetson AGX Orin 64GB", "15W (nvpmodel -m 1)", "MODE_15W"),
        ("Jetson AGX Orin 32GB", "40W", "MODE_40W"),
    ],
)
def test_mode_by_its_watts(name: str, stated: str, mode: str) -> None:
    found = hardware_named(name, stated)
    assert found is not None
    assert found.mode.name == mode


def test_configurations_of_one_module_are_one_family() -> None:
    plain, fast = (hardware_named(f"Jetson Orin Nano 8GB{end}", "") for end in ("", " Super"))
    assert plain is not None
    assert fast is not None
    assert plain.family == fast.family == "jetson-orin-nano-8gb"
    assert plain.mode.bandwidth_gb_s.value < fast.mode.bandwidth_gb_s.value
