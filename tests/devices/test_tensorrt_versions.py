"""The table of what differs between releases."""

import sys

import pytest

from edgelm.devices.profile import load_profiles
from edgelm.devices.tensorrt_versions import (
    RTX,
    TENSORRT,
    engine_family,
    load_module,
    release_of,
    version_number,
)
from edgelm.errors import BadBundle, MissingPackage


@pytest.mark.parametrize(
    ("version", "standard", "flag"),
    [
        ("10.3.0.30", False, True),
        ("10.13.3.9", False, True),
        ("10.16.1.11", True, True),
        ("11.4.0.106", True, False),
        ("12.0.0.1", True, False),
    ],
)
def test_dialects_follow_the_version(version: str, standard: bool, flag: bool) -> None:
    release = release_of(TENSORRT, version)
    assert "decomposed" in release.dialects
    assert ("standard" in release.dialects) == standard
    assert release.typed_flag == flag
    assert not release.ahead


def test_rtx_compiles_ahead_of_time() -> None:
    assert release_of(RTX, "1.7.1.116").ahead


def test_a_version_that_is_too_old() -> None:
    with pytest.raises(BadBundle, match=r"tensorrt 8\.5\.2 is too old .* 10\.3 or later; comp"):
        release_of(TENSORRT, "8.5.2")
    with pytest.raises(BadBundle, match=r"tensorrt 10\.0\.1 is too old .*; upgrade it"):
        release_of(TENSORRT, "10.0.1")


def test_every_profile_gets_a_dialect_that_its_version_compiles() -> None:
    seen = 0
    for profile in load_profiles():
        for engine in profile.engines:
            family = engine_family(engine.name)
            if family.startswith("tensorrt") and version_number(engine.version) >= (1, 0):
                if family == TENSORRT and version_number(engine.version) < (10, 0):
                    continue  # compiled by trtexec, from the decomposed dialect in opset 17
                assert engine.dialect in release_of(family, engine.version).dialects
                seen += 1
    assert seen > 40


@pytest.mark.parametrize(
    ("family", "how"), [(RTX, r"pip install 'edgelm\[rtx\]'"), (TENSORRT, "it comes with JetPack")]
)
def test_a_module_that_is_not_there(family: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, family.replace("-", "_"), None)
    with pytest.raises(MissingPackage, match=f"{family} is not installed .*{how}"):
        load_module(family)
