"""Profile files: a wrong one is refused by file and field, one's own go before ours."""

import os
from pathlib import Path

import pytest

from edgelm.devices.profile import (
    ENVIRONMENT,
    load_profile,
    load_profiles,
    profile_names,
    profile_paths,
    read_profile,
)
from edgelm.errors import BadInput, UnknownName
from tests.devices.test_profile import DELIVERED, FOLDER


@pytest.fixture(autouse=True)
def no_profiles_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("cpus", "cpu"),
        ("RTX-4061-Laptop", "rtx-4060-laptop"),
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
        load_profile("t400")


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("4060", "laptop-rtx-4060 or rtx-4060 or rtx-4060-laptop"),
        ("Thor-T400", "jetson-thor-t4000 or "),
        ("orin-nano-8", "jetson-orin-nano-8gb or jetson-orin-nano-8gb-super or "),
    ],
)
def test_names_that_hold_the_text_go_before_those_that_look_like_it(text: str, near: str) -> None:
    with pytest.raises(UnknownName) as caught:
        load_profile(text)
    assert str(caught.value).startswith(f"unknown target {text!r}; did you mean {near}")


@pytest.mark.parametrize("name", ["", "../profiles/cpu", "/etc/passwd", "zzzzzz"])
def test_unknown_target_without_a_neighbour(name: str) -> None:
    known = f"`edge-devices list` prints the {len(DELIVERED)} known ones"
    with pytest.raises(UnknownName) as caught:
        load_profile(name)
    assert str(caught.value) == f"unknown target '{name}'; {known}"


def changed(path: Path, old: str, new: str) -> Path:
    """The cpu profile with one passage replaced, as another file."""
    text = (FOLDER / "cpu.toml").read_text()
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "this', 'label = "the', "Object contains unknown field `label`"),
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
        ("value = 95_000_000", "value = -1", "engines[onnxruntime].runtime_bytes.value is -1.0"),
        ("value = 300_000_000", "value = -1", "memory.reserved_bytes.value is -1.0, expected"),
        ("value = 40,", "value = 0,", "power mode 'default' needs a bandwidth and dense peaks"),
        (
            'power_mode = "default"',
            'power_mode = "MAXN"',
            "power_mode is 'MAXN', expected one of ['default']",
        ),
        ('kind = "host"', 'kind = "shared"', "memory.bytes is missing; shared memory needs it"),
        (
            "schema_version = 1",
            "schema_version = 2",
            "schema_version 2, expected 1: the file is for another version of edgelm",
        ),
        ("schema_version = 1", "", "Object missing required field `schema_version`"),
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
        "no-version",
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


ENGINE = "engines[onnxruntime]"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("context = 8192", "context = 1", "default_context 1 and prefill_chunk 128: expected at"),
        ("chunk = 128", "chunk = 0", "prefill_chunk 0: expected at least 2 and 1"),
        ("value = 0.38", "value = 0", "needs a bandwidth and dense peaks, all above zero"),
        ('"int8", "int4"]', '"int8", "int3"]', f"{ENGINE}.precisions has 'int3'; known: fp32, "),
        ('["fp32", "int8", "int4"]', "[]", f"{ENGINE} needs at least one precision and one kv"),
        ('kv = ["fp32", "int8"]', "kv = []", f"{ENGINE} needs at least one precision and one kv"),
        (
            'source = "host"\n\n[engines',
            'source = "x"\n\n[engines',
            f"{ENGINE}.source 'x' is not in the table [sources]",
        ),
        (
            'band = 0.3\nsource = "host"',
            'band = 0.3\nsource = "x"',
            f"{ENGINE}.measured.source 'x' is not in the table [sources]",
        ),
        (
            "\nbandwidth = { fp32 = 0.8",
            "\nbandwidth = { fp32 = 0",
            f"{ENGINE}.measured.bandwidth is {{'fp32': 0.0, ",
        ),
        ("bandwidth = { fp32 = 0.8, int8 = 0.25 }", "bandwidth = { int8 = -1 }", ".cache_bandwid"),
        ("compute = { fp32", "compute = { fp16", "expected shares above zero by fp32, int8, int4"),
        ("compute = { fp32 = 0.72, int8 = 0.72, int4 = 0.72 }", "compute = {}", "compute is {}, "),
        ("band = 0.3", "band = 0", f"{ENGINE}.measured.band is 0.0, expected between 0 and 1"),
        ("band = 0.3", "band = 1", f"{ENGINE}.measured.band is 1.0, expected between 0 and 1"),
        ("band = 0.3", "band = nan", f"{ENGINE}.measured.band is nan, expected between 0 and 1"),
        (
            "layer_us = 45",
            "layer_us = -1",
            f"{ENGINE}.measured has the costs ",
        ),
        ("attention = 0.72", "attention = 0", f"{ENGINE}.measured.attention is 0"),
    ],
    ids=[
        *("default-context", "chunk", "peak", "precision", "no-precision", "no-cache"),
        *("engine-source", "measured-source", "no-share", "cache-share", "not-with-it"),
        *("no-shares", "no-band", "whole-band", "nan-band", "cost", "attention"),
    ],
)
def test_figures_that_cannot_be_planned_with_are_refused(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(BadInput) as caught:
        read_profile(changed(tmp_path / "cpu.toml", old, new))
    assert str(caught.value).startswith(f"{tmp_path / 'cpu.toml'}: ")
    assert message in str(caught.value)


def test_a_mode_without_peaks(tmp_path: Path) -> None:
    head, _, rest = (FOLDER / "cpu.toml").read_text().partition("fp32 = { value")
    (tmp_path / "cpu.toml").write_text(head + "\n" + rest[rest.index("[[engines]]") :])
    with pytest.raises(BadInput, match="power mode 'default' needs a bandwidth and dense peaks"):
        read_profile(tmp_path / "cpu.toml")


def test_version_is_looked_at_before_anything_else(tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_text('schema_version = 2\nname = 3\nfigures = "of another kind"\n')
    with pytest.raises(BadInput, match=r"other\.toml: schema_version 2, expected 1: the file"):
        read_profile(path)


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
    text = text.replace("this machine (CPU), ONNX Runtime", title)
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
    assert len(load_profiles()) == len(DELIVERED) + 1


def test_own_aliases_go_before_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    own(first, "toaster", "a toaster", '"jetson-orin"')
    own(second, "kettle", "a kettle", '"jetson-orin", "jetson-thor"')
    assert load_profile("jetson-orin").name == "jetson-agx-orin-64gb"
    monkeypatch.setenv(ENVIRONMENT, os.pathsep.join([str(first), str(second)]))
    assert load_profile("jetson-orin").name == "toaster"
    assert load_profile("jetson-thor").name == "kettle"
    assert load_profile("jetson-agx-orin-64gb") == DELIVERED["jetson-agx-orin-64gb"]


def test_broken_profile_of_ones_own_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.toml").write_text("name = ")
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    assert load_profile("jetson-thor").name == "jetson-thor-t5000"
    with pytest.raises(BadInput, match=r"broken\.toml: Invalid value"):
        load_profile("broken")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("value = 40,", "value = 1e-320,", "needs a bandwidth and dense peaks, all above zero"),
        (
            "bandwidth_gb_s = {",
            'measured_gb_s = { value = 0, source = "host" }\nbandwidth_gb_s = {',
            "all above zero, as are measured bandwidth, clock and multiprocessors",
        ),
        ("value = 40,", "value = 1e300,", "expected a number from 0 up to 1e+18"),
        ("context = 8192", f"context = {2**62}", "expected at most 2147483648"),
        ('name = "onnxruntime"', 'name = "x"', "engines[x].name: unknown engine; known: onnx"),
        ('dialect = "ort"', 'dialect = "x"', "dialect is 'x'; known: ort, standard, decomposed"),
        ("attention = 0.72", "attention = 1e-320", f"{ENGINE}.measured.attention is"),
    ],
    ids=["bandwidth", "measured", "large", "context", "engine", "dialect", "attention"],
)
def test_figures_that_make_no_finite_plan_are_refused(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(BadInput) as caught:
        read_profile(changed(tmp_path / "cpu.toml", old, new))
    assert message in str(caught.value)
