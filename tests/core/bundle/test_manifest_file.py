"""Reading bundle.json: what no bundle may say, and files that are not manifests at all."""

import json
import math
import os
import random
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgelm.bundle import (
    CompiledEngine,
    EngineRequirement,
    FileEntry,
    Manifest,
    encode_manifest,
    read_manifest,
    write_manifest,
)
from edgelm.bundle.manifest_file import contents_sha256
from edgelm.bundle.records.gates import Figures, GateResult
from edgelm.errors import BadBundle
from tests.devices.checks.recorded import manifest

ENGINE = CompiledEngine(
    file="engines/sm87.engine",
    name="tensorrt",
    version="10.16.1.11",
    compute_capabilities=(87,),
    graph_sha256="ab",
    profiles=2,
    build_seconds=12.5,
    machine="Orin",
    runtime_cache="engines/sm87.cache",
)
GATE = GateResult("4-bit", Figures(0.05, 0.9, 1.01, 12.5, 512), True, True, "text", "00")
Values = dict[str, Any]


def compiled() -> Manifest:
    """A manifest with every optional part."""
    whole = manifest(
        "standard", engine=EngineRequirement("tensorrt", "10.16", (87,)), engines=(ENGINE,)
    )
    return msgspec.structs.replace(
        whole,
        gate=GATE,
        files={**whole.files, ENGINE.file: FileEntry(3, "00"), "a/b c.txt": FileEntry(0, "")},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_manifest(tmp_path, compiled())
    return tmp_path


def values_of(folder: Path) -> Values:
    values: Values = json.loads((folder / "bundle.json").read_bytes())
    return values


def put(folder: Path, values: Any, *, hashed: bool = True) -> None:
    """Write a manifest as somebody would who knows how, its own hash included."""
    if hashed:
        values = {**values, "sha256": contents_sha256(values)}
    (folder / "bundle.json").write_text(json.dumps(values))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a tree."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))
        else:
            yield (*path, key)


def at(values: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        values = values[key]
    return values


def test_everything_comes_back(folder: Path) -> None:
    assert read_manifest(folder) == compiled()


def test_a_manifest_of_0_1_has_no_hash(folder: Path) -> None:
    values = values_of(folder)
    del values["sha256"]
    put(folder, values, hashed=False)
    assert read_manifest(folder) == compiled()


def test_how_it_is_laid_out_is_not_its_contents(folder: Path) -> None:
    values = dict(reversed(values_of(folder).items()))
    (folder / "bundle.json").write_text(json.dumps(values, indent=8))
    assert read_manifest(folder) == compiled()


def test_the_hash_can_be_computed_by_others(folder: Path) -> None:
    """As docs/reference/bundle.md describes it."""
    values = values_of(folder)
    given = values.pop("sha256")
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    assert given == sha256(text.encode()).hexdigest()


def test_one_changed_character_is_found(folder: Path) -> None:
    """Whatever loads is what was written: a digit, a letter, a name."""
    path = folder / "bundle.json"
    raw = path.read_bytes()
    draw = random.Random(0)
    refused = 0
    for _ in range(300):
        place = draw.randrange(len(raw))
        new = bytes([draw.choice(b"0123456789abcdefxyz.-")])
        path.write_bytes(raw[:place] + new + raw[place + 1 :])
        try:
            assert read_manifest(folder) == compiled()  # e.g. the same character, or a blank
        except BadBundle:
            refused += 1
    assert refused > 200


WILD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 7, 99, 2**31, 2**40, 2**63, 2**70, -(2**63), 10**30),
    *(0.5, -0.0, 1e308, -1e308, "", "x", "0", "-1", "tensorrtevil", "../x", "/etc/passwd", "a\0b"),
    *("\ud800", "é" * 300, "x" * 5000, [], {}, [[]], [1], {"a": 1}, [None] * 50, {"../x": {}}),
)


@pytest.mark.parametrize("seed", range(4))
def test_wild_values_are_refused_or_make_no_difference(folder: Path, seed: int) -> None:
    """With a matching hash too: no other error, and no number that memory is sized by changes."""
    whole = values_of(folder)
    draw = random.Random(seed)
    every = sorted(places(whole), key=str)
    for _ in range(120):
        values = json.loads(json.dumps(whole))
        path = draw.choice(every)
        at(values, path[:-1])[path[-1]] = draw.choice(WILD)
        put(folder, values)
        try:
            read = read_manifest(folder)
        except BadBundle:
            continue
        assert sizes(read) == sizes(compiled()) or path[0] in ("limits", "weight_bytes"), path
        assert read.limits.prefill_chunk <= read.limits.context <= 1 << 24
        for name in (*read.files, *(engine.file for engine in read.engines)):
            assert Path(os.path.normpath(folder / name)).is_relative_to(folder)


def sizes(manifest: Manifest) -> tuple[Any, ...]:
    """What memory is sized by."""
    spec, cache = manifest.spec, manifest.graph.cache
    logits = manifest.graph.outputs["logits"].shape
    counts = (len(cache.layers), cache.num_key_value_heads, cache.head_dim, cache.dtype)
    return (spec.vocab_size, spec.num_hidden_layers, *counts, logits)


BAD_NAMES = (
    *("../x", "..", ".", "", "/etc/passwd", "//x", "a/../../x", "a/./b", "a//b", "a/", "x/.."),
    *("C:/x", "c:x", "a\\b", "..\\x", "a\0b", "a\nb", "a" * 256, "ab/" * 600 + "a"),
)


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("field", ["files", "graph", "data", "engine", "cache"])
def test_a_name_that_is_no_plain_relative_one(folder: Path, name: str, field: str) -> None:
    values = values_of(folder)
    entries: dict[str, Callable[[], object]] = {
        "files": lambda: values["files"].update({name: {"bytes": 1, "sha256": "00"}}),
        "graph": lambda: values["graph"].update(file=name),
        "data": lambda: values["graph"].update(data=name),
        "engine": lambda: values["engines"][0].update(file=name),
        "cache": lambda: values["engines"][0].update(runtime_cache=name or " "),
    }
    entries[field]()
    put(folder, values)
    with pytest.raises(BadBundle, match="do not use this bundle"):
        read_manifest(folder)


@pytest.mark.parametrize(
    "name",
    ["model.onnx", "x.engine", "engines/x", "engines/.engine", "engines/a/x.engine", "b/x.engine"],
)
def test_an_engine_is_in_its_own_folder(folder: Path, name: str) -> None:
    values = values_of(folder)
    values["engines"][0]["file"] = name
    put(folder, values)
    with pytest.raises(BadBundle, match=r"not have the form engines/NAME\.engine; do not use"):
        read_manifest(folder)


def test_kernels_never_overwrite_an_engine(folder: Path) -> None:
    values = values_of(folder)
    values["engines"][0]["runtime_cache"] = "engines/sm87.engine"
    put(folder, values)
    with pytest.raises(BadBundle, match=r"not have the form engines/NAME\.cache"):
        read_manifest(folder)


Change = Callable[[Values], object]
EMPTY: Values = {"name": "logits", "dtype": "float32", "shape": [1, "P", 1]}
CONTRADICTIONS: dict[str, tuple[Change, str]] = {
    "schema-0": (lambda v: v.update(schema_version=0), "schema_version is 0, expected 1 to 1"),
    "schema-negative": (lambda v: v.update(schema_version=-1), "schema_version is -1"),
    "context-negative": (lambda v: v["limits"].update(context=-5), r"`\$\.limits\.context`"),
    "context-1": (lambda v: v["limits"].update(context=1), r"`\$\.limits\.context`"),
    "context-huge": (lambda v: v["limits"].update(context=10**12), r"`\$\.limits\.context`"),
    "chunk-0": (lambda v: v["limits"].update(prefill_chunk=0), r"`\$\.limits\.prefill_chunk`"),
    "chunk-over-context": (
        lambda v: v["limits"].update(prefill_chunk=32769),
        "prefill_chunk is 32769, expected at most limits.context, 32768",
    ),
    "fixed-capacity": (
        lambda v: v["graph"]["cache"].update(capacity=64),
        "capacity is 64, expected limits.context, 32768",
    ),
    "open-capacity": (
        lambda v: v["graph"]["inputs"].pop("cache_positions"),
        "cache.capacity is null and graph.inputs has no cache_positions",
    ),
    "role-missing": (lambda v: v["graph"]["inputs"].pop("tokens"), "has the roles .*, expected"),
    "role-unknown": (
        lambda v: v["graph"]["inputs"].update(types=v["graph"]["inputs"]["tokens"]),
        "has the roles .*types, expected",
    ),
    "role-type": (
        lambda v: v["graph"]["inputs"]["tokens"].update(dtype="int32"),
        r"tokens is int32 \[1, 'T'\], expected int64",
    ),
    "role-shape": (lambda v: v["graph"]["inputs"]["tokens"].update(shape=[1]), "tokens is int64"),
    "logits": (
        lambda v: v["graph"]["outputs"].update(logits=dict(EMPTY)),
        r"graph.outputs: logits",
    ),
    "vocabulary": (lambda v: v["spec"].update(vocab_size=49153), "logits is float32"),
    "dialect": (lambda v: v["graph"].update(dialect="evil"), "known: ort, standard, decomposed"),
    "layers": (lambda v: v["graph"]["cache"]["layers"].pop(), "layers is 31, expected 32"),
    "heads": (
        lambda v: v["graph"]["cache"].update(num_key_value_heads=9),
        "heads is 9, expected 3",
    ),
    "head-size": (lambda v: v["graph"]["cache"].update(head_dim=65), "head_dim is 65, expected 64"),
    "cache-type": (
        lambda v: v["graph"]["cache"].update(dtype="fp8"),
        "is fp8, expected int8, the value of kv",
    ),
    "same-present": (
        lambda v: v["graph"]["cache"]["layers"][3].update(present_key="k.2"),
        r"two tensors of the graph are named '\w+\.2'|named 'k\.2'",
    ),
    "same-input": (
        lambda v: v["graph"]["inputs"]["tokens"].update(name="positions"),
        "two tensors of the graph are named 'positions'",
    ),
    "heads-0": (lambda v: v["spec"].update(num_attention_heads=0), "num_attention_heads is 0"),
    "spec-layers": (lambda v: v["spec"]["layers"].pop(), "31 entries, num_hidden_layers is 32"),
    "spec-mlp": (
        lambda v: v["spec"]["layers"][3].update(intermediate_size=1 << 20),
        r"layers\[3\].intermediate_size is 1048576, expected 0 to spec.intermediate_size",
    ),
    "spec-heads": (
        lambda v: v["spec"]["layers"][3].update(num_attention_heads=3, num_key_value_heads=2),
        r"layers\[3\].num_attention_heads is 3, expected a multiple of the layer's 2 key heads",
    ),
    "head-multiple": (lambda v: v["spec"].update(num_attention_heads=10), "10 is not a multiple"),
    "size": (lambda v: v["files"]["model.onnx.data"].update(bytes=-1), r"`\$\.files"),
    "weights": (lambda v: v.update(weight_bytes=-1), r"`\$\.weight_bytes`"),
    "group-size": (
        lambda v: v["precision"]["decoder"].update(group_size=-32),
        "group_size is -32, expected 0 to",
    ),
    "engine-version": (lambda v: v["engine"].update(version="new"), r"`\$\.engine\.version`"),
    "built-version": (
        lambda v: v["engines"][0].update(version="x"),
        r"`\$\.engines\[0\]\.version`",
    ),
    "gpu": (lambda v: v["engine"].update(sms=[-87]), r"`\$\.engine\.sms"),
    "profiles": (lambda v: v["engines"][0].update(profiles=0), r"\.profiles`"),
    "two-engines": (lambda v: v["engines"].append(v["engines"][0]), "two engines have the file"),
    "figures": (lambda v: v["gate"]["figures"].update(top1=1.5), "gate's figures are not numbers"),
    "null-figure": (lambda v: v["gate"]["figures"].update(kl=None), r"`\$\.gate\.figures\.kl`"),
}


@pytest.mark.parametrize(("change", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_what_no_bundle_says(folder: Path, change: Change, message: str) -> None:
    values = values_of(folder)
    change(values)
    put(folder, values)
    with pytest.raises(BadBundle, match=message):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema_version": 1, "schema_version": 1}', "the key 'schema_version' appears twice"),
        ('{"schema_version": 1, "note": {"a": 1, "b": 2, "a": 3}}', "the key 'a' appears twice"),
        ('{"schema_version": 1, "note": ' + "[" * 100_000, "damaged"),
        (
            '{"schema_version": 1, "note": ' + "[" * 100_000 + "]" * 100_000 + "}",
            "nested too deeply",
        ),
        ('{"schema_version": 1, "note": [' + "{}," * 1_000_001 + "0]}", "more than 1000000 values"),
        ('{"schema_version": 1, "note": NaN}', "damaged"),
        ('{"schema_version": 1, "note": ' + "9" * 10_000 + "}", "damaged"),
        ("[]", "damaged"),
        ("null", "damaged"),
        ('{"schema_version": 1, "note": "\\ud800"}', "damaged"),
    ],
    ids=[
        "twice",
        "twice-below",
        "cut-deep",
        "deep",
        "many",
        "nan",
        "long-number",
        "list",
        "null",
        "surrogate",
    ],
)
def test_json_that_is_no_manifest(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bundle.json").write_text(text)
    with pytest.raises(BadBundle, match=message):
        read_manifest(tmp_path)


def test_text_that_is_not_utf_8(folder: Path) -> None:
    path = folder / "bundle.json"
    path.write_bytes(path.read_bytes().replace(b"org/model", b"org/m\xffdel"))
    with pytest.raises(BadBundle, match="damaged: it is not UTF-8"):
        read_manifest(folder)


def _folder(path: Path) -> None:
    path.mkdir()


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(16 * 2**20 + 1)


def _circle(path: Path) -> None:
    path.symlink_to(path.name)


def _link_out(path: Path) -> None:
    outside = path.parent.parent / "outside.json"
    outside.write_bytes(encode_manifest(compiled()))
    path.symlink_to(outside)


@pytest.mark.parametrize("make", [_folder, _pipe, _device, _large, _circle, _link_out])
def test_a_manifest_that_is_no_small_plain_file(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    make(folder / "bundle.json")
    with pytest.raises(BadBundle):
        read_manifest(folder)


@pytest.mark.parametrize("kl", [math.nan, math.inf])
def test_what_could_not_be_read_is_not_written(tmp_path: Path, kl: float) -> None:
    figures = msgspec.structs.replace(GATE.figures, kl=kl)
    gate = msgspec.structs.replace(GATE, figures=figures)
    with pytest.raises(BadBundle, match=r"cannot be written: .*KL (nan|inf)"):
        write_manifest(tmp_path, msgspec.structs.replace(compiled(), gate=gate))
    engine = msgspec.structs.replace(ENGINE, file="../x.engine")
    with pytest.raises(BadBundle, match=r"cannot be written: .*lies outside the bundle"):
        write_manifest(tmp_path, msgspec.structs.replace(compiled(), engines=(engine,)))
    assert not (tmp_path / "bundle.json").exists()
