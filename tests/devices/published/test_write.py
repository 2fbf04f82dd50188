"""The table of coefficients: what is in it, what is found in it, and how it is written."""

import math
from pathlib import Path

import msgspec
import pytest

from edgelm.devices.planner.cost_model import cost
from edgelm.devices.planner.cost_model.coefficients import Entry, Table, family
from edgelm.devices.planner.cost_model.cost import Coefficients
from edgelm.devices.profile import load_profiles
from edgelm.devices.published.fit import Fit
from edgelm.devices.published.terms import Observation
from edgelm.devices.published.validation import Ranges
from edgelm.devices.published.write import coefficient_table, write_table
from tests.devices.published.synthetic import TRUE, box, sample

_UNSEEN = Ranges({("decode", ""): 0.4, ("prefill", ""): 0.5, ("decode", "tensorrt-edge-llm"): 0.3})
_FAMILIAR = Ranges({("decode", ""): 0.2, ("prefill", ""): 0.25})
_SLOW = msgspec.structs.replace(TRUE, layer_us=2 * TRUE.layer_us)


@pytest.fixture(scope="module")
def seen() -> list[Observation]:
    """Two engines, two architectures, a device in two configurations, one with few rows."""
    return [
        *sample(box("orin-8gb", bandwidth_gb_s=70), "tensorrt-edge-llm"),
        *sample(box("orin-8gb-super", bandwidth_gb_s=100), "tensorrt-edge-llm"),
        *sample(box("orin-16gb"), "tensorrt-edge-llm", _SLOW),
        *sample(box("thor", "blackwell", bandwidth_gb_s=270), "tensorrt-edge-llm"),
        *sample(box("orin-16gb"), "vllm"),
        *sample(box("card", bandwidth_gb_s=900), "vllm", models=("llama-3.1-8b",))[:3],
    ]


@pytest.fixture(scope="module")
def table(seen: list[Observation]) -> Table:
    """The table of a fit to them."""
    return coefficient_table(seen, "made-up times", _UNSEEN, _FAMILIAR)


def test_every_group_has_one_entry(table: Table) -> None:
    assert table.fitted_on == "made-up times"
    keys = [
        (one.level, one.engine, one.architecture or one.chip, one.device) for one in table.entries
    ]
    assert len(keys) == len(set(keys))
    edge = "tensorrt-edge-llm"
    assert set(keys) == {
        ("device", edge, "", "orin-8gb"),
        ("device", edge, "", "orin-16gb"),
        ("device", edge, "", "thor"),
        ("device", "vllm", "", "orin-16gb"),
        ("device", "vllm", "", "card"),
        ("chip", edge, "ampere chip", ""),
        ("chip", edge, "blackwell chip", ""),
        ("chip", "vllm", "ampere chip", ""),
        ("architecture", edge, "ampere", ""),
        ("architecture", edge, "blackwell", ""),
        ("architecture", "vllm", "ampere", ""),
        ("engine", edge, "", ""),
        ("engine", "vllm", "", ""),
        ("architecture", "", "ampere", ""),
        ("architecture", "", "blackwell", ""),
        ("all", "", "", ""),
    }


@pytest.mark.parametrize(
    ("engine", "architecture", "device", "found"),
    [
        ("vllm", "ampere", "card", ("device", "vllm", "", "card")),
        ("tensorrt", "ampere", "orin-8gb", ("device", "tensorrt-edge-llm", "", "orin-8gb")),
        ("tensorrt", "ampere", "orin-8gb-super", ("device", "tensorrt-edge-llm", "", "orin-8gb")),
        ("tensorrt-8.5", "ampere", "new", ("architecture", "tensorrt-edge-llm", "ampere", "")),
        ("vllm", "blackwell", "thor", ("engine", "vllm", "", "")),
        ("vllm", "volta", "new", ("engine", "vllm", "", "")),
        ("onnxruntime-cuda", "ampere", "card", ("architecture", "", "ampere", "")),
        ("onnxruntime-cuda", "volta", "new", ("all", "", "", "")),
    ],
    ids=[
        "device",
        "stands-for",
        "configuration",
        "architecture",
        "engine",
        "engine-of-another-architecture",
        "any-engine",
        "all",
    ],
)
def test_the_most_particular_is_found(
    table: Table, engine: str, architecture: str, device: str, found: tuple[str, ...]
) -> None:
    entry = table.find(engine, architecture, device)
    assert (entry.level, entry.engine, entry.architecture, entry.device) == found


def test_a_relative_of_known_devices_is_found_by_its_chip(table: Table) -> None:
    entry = table.find("tensorrt", "ampere", "new", "ampere chip")
    assert (entry.level, entry.engine, entry.chip) == ("chip", "tensorrt-edge-llm", "ampere chip")
    other = table.find("tensorrt", "ampere", "new", "unheard of")
    assert (other.level, other.architecture) == ("architecture", "ampere")


def test_no_entry_for_all(table: Table) -> None:
    bare = msgspec.structs.replace(table, entries=())
    with pytest.raises(LookupError, match=r"coefficients\.toml has no entry for all"):
        bare.find("vllm", "ampere", "card")


def test_coefficients_predict_what_the_fit_predicts(seen: list[Observation], table: Table) -> None:
    fit = Fit(seen)
    for item in seen:
        row, mode = item.row, item.row.hardware.mode
        entry = table.find(row.engine, row.hardware.architecture, row.hardware.name)
        if item.kind == "decode":
            step = cost.decode_ms(row.work, mode, entry.coefficients, depth=row.depth)
        else:
            step = cost.prefill_ms(
                row.work,
                mode,
                entry.coefficients,
                tokens=row.prompt,
                arithmetic=row.arithmetic,
            )
        assert step.value == pytest.approx(fit.predict_ms(item), rel=2e-3)


def test_coefficients_are_those_the_rows_were_made_from(table: Table) -> None:
    plain = table.find("vllm", "ampere", "orin-16gb").coefficients
    slow = table.find("tensorrt", "ampere", "orin-16gb").coefficients
    assert plain.bandwidth == plain.cache_bandwidth == pytest.approx(TRUE.bandwidth, rel=0.05)
    assert plain.compute == pytest.approx(TRUE.compute, rel=0.05)
    assert plain.layer_us == pytest.approx(TRUE.layer_us, rel=0.15)
    assert slow.layer_us == pytest.approx(_SLOW.layer_us, rel=0.15)
    assert plain.prompt_layers == pytest.approx(TRUE.prompt_layers, rel=0.25)


def test_share_of_the_bandwidth_stays_below_all_of_it() -> None:
    faster_than_specified = sample(box("card"), slower=0.5)
    entries = coefficient_table(faster_than_specified, "", _UNSEEN, _FAMILIAR).entries
    assert Fit(faster_than_specified).factor("read", {}) < 1.0
    assert {one.coefficients.bandwidth for one in entries} == {0.98}


def band(width: float) -> tuple[float, float]:
    """Factors of a half width in logarithms, as they are written."""
    return round(math.exp(-width), 3), round(math.exp(width), 3)


@pytest.mark.parametrize(
    ("engine", "device", "decode", "prefill"),
    [
        ("tensorrt", "orin-16gb", 0.2, 0.25),
        ("vllm", "card", 0.4, 0.5),
        ("vllm", "new", 0.4, 0.5),
        ("tensorrt", "new", 0.3, 0.5),
    ],
    ids=["familiar", "three-rows", "unseen", "engine's-own"],
)
def test_range_is_narrower_on_a_familiar_device(
    table: Table, engine: str, device: str, decode: float, prefill: float
) -> None:
    found = table.find(engine, "ampere", device).coefficients
    assert (found.decode_band, found.prefill_band) == (band(decode), band(prefill))


def test_range_of_an_unseen_device_is_at_least_a_familiar_one(seen: list[Observation]) -> None:
    table = coefficient_table(seen, "made-up times", _FAMILIAR, _UNSEEN)
    for engine in ("vllm", "tensorrt-edge-llm"):
        known = table.find(engine, "ampere", "orin-16gb").coefficients
        new = table.find(engine, "volta", "new").coefficients
        assert new.decode_band == known.decode_band == band(_UNSEEN.width("decode", engine))
        assert new.prefill_band == known.prefill_band


@pytest.mark.parametrize(
    ("engine", "architecture", "device", "where"),
    [
        ("vllm", "ampere", "card", "vllm on card"),
        ("tensorrt", "ampere", "new", "tensorrt-edge-llm on ampere"),
        ("vllm", "volta", "new", "vllm"),
        ("onnxruntime-cuda", "ampere", "new", "all engines on ampere"),
        ("onnxruntime-cuda", "volta", "new", "all engines"),
    ],
)
def test_source_says_what_was_fitted(
    seen: list[Observation], table: Table, engine: str, architecture: str, device: str, where: str
) -> None:
    entry = table.find(engine, architecture, device)
    counted = {
        id(one.row)
        for one in seen
        if entry.engine in ("", one.row.engine)
        and entry.architecture in ("", one.row.hardware.architecture)
        and entry.device in ("", one.row.hardware.family)
    }
    assert entry.rows == len(counted)
    assert entry.coefficients.source == f"{entry.rows} published rows: {where}"


def test_a_row_with_two_times_is_one_row(seen: list[Observation], table: Table) -> None:
    rows = {id(one.row) for one in seen}
    assert table.find("onnxruntime-cuda", "volta", "new").rows == len(rows)


def test_what_is_written_is_what_is_read(table: Table, tmp_path: Path) -> None:
    path = tmp_path / "new" / "coefficients.toml"
    write_table(table, path)
    assert msgspec.toml.decode(path.read_bytes(), type=Table) == table
    assert path.read_text().startswith("# Written by `edge-devices fit`; do not edit.")


def test_names_that_toml_would_trip_over(tmp_path: Path) -> None:
    awkward = Coefficients(1e-7, 1e-7, 1e22, 0.5, 0.0, source='a "quoted" \\ name\nand é')
    entry = Entry("all", awkward)
    table = Table('fitted on "rows"', {"tensorrt-10.3": "tensorrt"}, (entry,))
    write_table(table, tmp_path / "coefficients.toml")
    assert msgspec.toml.decode((tmp_path / "coefficients.toml").read_bytes(), type=Table) == table


def test_an_old_table_is_replaced(table: Table, tmp_path: Path) -> None:
    path = tmp_path / "coefficients.toml"
    path.write_text("old")
    write_table(table, path)
    assert "old" not in path.read_text().splitlines()
    assert [one.name for one in tmp_path.iterdir()] == ["coefficients.toml"]


@pytest.mark.parametrize("exists", [True, False], ids=["old", "none"])
def test_a_failure_leaves_the_old_table_or_none(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    path = tmp_path / "coefficients.toml"
    if exists:
        path.write_text("old")

    def full(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_table(table, path)
    assert [one.read_text() for one in tmp_path.iterdir()] == (["old"] if exists else [])


def test_every_engine_that_stands_for_another_is_one_of_ours(table: Table) -> None:
    ours = {engine.name for profile in load_profiles() for engine in profile.engines}
    assert set(table.stands_for) <= ours
    assert {name for name in ours if name.startswith("tensorrt")} <= set(table.stands_for)


def test_configurations_of_a_device_are_one_family() -> None:
    assert family("orin-super") == family("orin") == "orin"
