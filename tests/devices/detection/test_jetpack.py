"""JetPack releases: which one a Jetson Linux is, and whether the table agrees with itself."""

import json
import re

import pytest

from edgelm.devices.detection.jetpack import jetpack_of, jetpacks
from tests.core.test_imports import ROOT
from tests.devices.test_profile import DELIVERED

COMMON = ROOT.parent / "shared" / "data" / "devices_common.json"


def versions(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split()[0].split("."))


@pytest.mark.parametrize(
    ("l4t", "jetpack"),
    [
        ("35.2.1", "5.1"),
        ("35.6.3", "5.1.5"),
        ("36.3.0", "6.0"),
        ("36.4.3", "6.2"),
        ("36.4.7", "6.2.1"),
        ("38.2", "7.0"),
        ("38.2.1", "7.0"),
        ("38.4.0", "7.1"),
        ("39.0", "7.2"),
        ("39.1.2", "7.2"),
        ("36.5.2", "6.2.3"),
        ("36.4.2", "6.1 (rev 1)"),
        ("36.2", "6.0 (developer preview)"),
        ("38.1", "7.0"),
        ("35.1", "5.0.2"),
        ("34.1.1", "5.0.1"),
        ("32.7.1", "4.6.1"),
    ],
)
def test_release_of(l4t: str, jetpack: str) -> None:
    release = jetpack_of(l4t)
    assert release is not None
    assert release.jetpack == jetpack


@pytest.mark.parametrize(
    ("l4t", "jetpack"),
    [
        ("36.4.30", "6.2.1"),
        ("36.4", "6.1"),
        ("36.1", "6.0 (developer preview)"),
        ("36.5.9", "6.2.3"),
        ("36.12.0", "6.2.3"),
        ("38.3.7", "7.0"),
        ("38.9.0", "7.1"),
        ("35.7.0", "5.1.6"),
        ("32.1", "4.4"),
    ],
)
def test_release_that_is_not_listed_is_the_nearest_of_its_major(l4t: str, jetpack: str) -> None:
    release = jetpack_of(l4t)
    assert release is not None
    assert (release.jetpack, release.nearest) == (jetpack, True)


@pytest.mark.parametrize("l4t", ["", "36", "390.1", "31.1", "99.0", "36.x", "not a version"])
def test_unknown_release(l4t: str) -> None:
    assert jetpack_of(l4t) is None


def test_releases_are_oldest_first() -> None:
    names = [versions(release.jetpack) for release in jetpacks()]
    assert names == sorted(names)
    assert len({release.jetpack for release in jetpacks()}) == len(names)
    for field in ("cuda", "tensorrt"):
        numbers = [versions(getattr(release, field)) for release in jetpacks()]
        assert numbers == sorted(numbers)


def test_a_jetson_linux_belongs_to_one_release() -> None:
    known = [l4t for release in jetpacks() for l4t in release.l4t]
    assert len(known) == len(set(known))
    for release in jetpacks():
        assert all(jetpack_of(l4t) is release for l4t in release.l4t)


def test_modules_are_those_of_the_profiles() -> None:
    modules = {module for release in jetpacks() for module in release.modules}
    ours = {profile.jetson for profile in DELIVERED.values() if profile.jetson}
    assert modules == ours | {"nano", "tx2"}  # which edgelm does not run on


def test_profiles_name_a_tensorrt_that_their_jetpack_brings() -> None:
    for profile in DELIVERED.values():
        named = {engine.version for engine in profile.engines if engine.name.startswith("tensorrt")}
        brought = {release.tensorrt for release in jetpacks() if profile.jetson in release.modules}
        assert not profile.jetson or named <= brought, profile.name


@pytest.mark.skipif(not COMMON.exists(), reason=f"needs {COMMON}")
def test_table_is_the_one_that_was_collected() -> None:
    collected = {row["jetpack"]: row for row in json.loads(COMMON.read_text())["jetpack"]}
    ours = [release for release in jetpacks() if release.jetpack in collected]
    assert [release.jetpack for release in ours] == list(collected)
    for release in ours:
        row = collected[release.jetpack]  # in words here and there: `Orin + Thor`, `38.2.x`
        assert (release.cuda, release.tensorrt) == (row["cuda"].split()[0], row["tensorrt"])
        assert set(release.modules) == set(re.findall("xavier|orin|thor", row["modules"].lower()))
        assert row["l4t"].startswith(release.l4t[0])
