"""Every profile loads and makes sense; a wrong one is refused by file and field."""

from pathlib import Path

import msgspec
import pytest

from edgelm.devices.profile import Profile, load_profile, profile_names, read_profile
from edgelm.errors import BadInput, UnknownName
from edgelm.precision import KV_BYTES, PRECISIONS

_CPU = Path(__file__).resolve().parents[2] / "devices" / "profiles" / "cpu.toml"


def test_cpu_is_known() -> None:
    assert "cpu" in profile_names()


@pytest.mark.parametrize("name", profile_names())
def test_profile_makes_sense(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert set(profile.precisions) <= set(PRECISIONS)
    assert set(profile.kv) <= set(KV_BYTES)
    # `auto` is planned with int4's arithmetic.
    assert {*profile.precisions, "int4"} <= set(profile.dense_gflops)
    assert min(profile.dense_gflops.values()) > 0
    assert profile.bandwidth_gb_s > 0
    assert 0 < profile.usable_fraction <= 1
    assert 0 < profile.efficiency.bandwidth <= 1
    assert 0 < profile.efficiency.prefill <= 1
    assert 0 < profile.prefill_chunk <= profile.default_context


@pytest.mark.parametrize("name", profile_names())
def test_numbers_have_their_source_beside_them(name: str) -> None:
    text = _CPU.with_name(f"{name}.toml").read_text()
    assert any(word in text for word in ("measured", "datasheet", "http"))


def test_budget_of_a_fixed_memory() -> None:
    profile = msgspec.structs.replace(load_profile("cpu"), memory_bytes=1000, usable_fraction=0.75)
    assert profile.budget_bytes == 750


def test_budget_of_the_machine_at_hand() -> None:
    profile = load_profile("cpu")
    assert profile.memory_bytes == 0
    assert profile.budget_bytes > 100_000_000


@pytest.mark.parametrize("name", ["cpus", "CPU", "cp"])
def test_unknown_target_suggests_the_nearest(name: str) -> None:
    near = r"did you mean cpu\? " if name != "CPU" else ""
    with pytest.raises(
        UnknownName, match=rf"unknown target '{name}'; {near}.*known: cpu.*edge-export --list-targ"
    ):
        load_profile(name)


@pytest.mark.parametrize("name", ["", "../profiles/cpu", "/etc/passwd", "zzzzzz"])
def test_unknown_target_without_a_neighbour(name: str) -> None:
    with pytest.raises(UnknownName, match=f"unknown target '{name}'; ") as caught:
        load_profile(name)
    assert "known: cpu" in str(caught.value)


def write(path: Path, old: str, new: str) -> Path:
    text = _CPU.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("memory_bytes", "memory", "missing required field `memory_bytes`"),
        ("bandwidth_gb_s = 40.0", 'bandwidth_gb_s = "fast"', r"`\$\.bandwidth_gb_s`"),
        ("prefill = 0.72", "prefil = 0.72", r"missing required field `prefill` - at `\$\.effic"),
        ("int8 = 460.0", "int8 = true", r"`\$\.dense_gflops\[\.\.\.\]`"),
        ('name = "cpu"', "name = cpu", "Invalid value .*line 4"),
    ],
    ids=["missing", "wrong-type", "nested-missing", "table-entry", "syntax"],
)
def test_malformed_file_names_file_and_field(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = write(tmp_path / "orin.toml", old, new)
    with pytest.raises(BadInput, match=message) as caught:
        read_profile(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "orin.toml"
    path.write_bytes(b"\xff\xfe name")
    with pytest.raises(BadInput, match=r"orin\.toml: "):
        read_profile(path)


def test_unchanged_copy_reads(tmp_path: Path) -> None:
    profile: Profile = read_profile(write(tmp_path / "copy.toml", "cpu", "cpu"))
    assert profile == load_profile("cpu")
