"""Loading: what is checked first, and how the context shrinks to the memory given."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

import edgelm
from edgelm.bench.engines import edgelm_worker
from edgelm.bundle import hash_files, read_manifest, verify, write_manifest
from edgelm.bundle.manifest_file import contents_sha256
from edgelm.devices.planner.memory.memory_need import loaded_bytes
from edgelm.errors import BadBundle, BadInput, DoesNotFit
from edgelm.runtime import loading
from edgelm.runtime.engines import unchanged_bundle
from edgelm.runtime.engines.open import open_session
from edgelm.runtime.generation.sampling.settings import Sampling
from tests.checkpoints.tiny_chat import CONTEXT

LARGE = 4096


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundle, tmp_path / "bundle")


@pytest.fixture
def large(copy: Path) -> Path:
    """The same bundle with a manifest that allows 4,096 tokens; only allocation looks at it."""
    manifest = read_manifest(copy)
    limits = msgspec.structs.replace(manifest.limits, context=LARGE)
    write_manifest(copy, msgspec.structs.replace(manifest, limits=limits))
    return copy


def edit_manifest(folder: Path, **fields: Any) -> None:
    path = folder / "bundle.json"
    values = {**json.loads(path.read_text()), **fields}
    values.pop("sha256")
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("name", ["model.onnx.data", "tokenizer.json", "chat_template.jinja"])
def test_a_changed_byte_is_found(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(BadBundle, match=rf"{name} does not match its SHA-256 in bundle\.json"):
        edgelm.load(copy)


def test_a_truncated_file_is_found(copy: Path) -> None:
    path = copy / "model.onnx.data"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadBundle, match=r"model\.onnx\.data has \d+ bytes, the manifest says \d+"):
        edgelm.load(copy)


def test_a_missing_file_is_found(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    with pytest.raises(BadBundle, match=r"lacks tokenizer\.json"):
        edgelm.load(copy)


def test_hashes_can_be_left_out(copy: Path) -> None:
    (copy / "README.md").write_text("changed")
    with edgelm.load(copy, check_hashes=False) as lm:
        assert lm.generate("a", max_tokens=1).tokens


def test_a_newer_manifest(copy: Path) -> None:
    edit_manifest(copy, schema_version=99)
    with pytest.raises(BadBundle, match="schema version 99, this edgelm reads up to 1; upgrade"):
        edgelm.load(copy)


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BadBundle, match=f"{tmp_path} is not a bundle .*edge-export MODEL"):
        edgelm.load(tmp_path)


@pytest.mark.parametrize("threads", [0, -2])
def test_threads_below_one(bundle: Path, threads: int) -> None:
    with pytest.raises(BadInput, match=f"threads is {threads}, expected at least 1"):
        edgelm.load(bundle, threads=threads)


@pytest.mark.parametrize("threads", [10**6, 10**30])
def test_threads_beyond_use(bundle: Path, threads: int) -> None:
    with pytest.raises(BadInput, match=f"threads is {threads}, expected at most"):
        edgelm.load(bundle, threads=threads)


@pytest.mark.parametrize("threads", [True, 2.0, "2"])
def test_threads_that_are_no_number(bundle: Path, threads: Any) -> None:
    with pytest.raises(BadInput, match="expected an integer"):
        edgelm.load(bundle, threads=threads)


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """As somebody who computes the manifest's own hash too."""
    path = folder / "bundle.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps({**values, "sha256": contents_sha256(values)}))


def test_the_longest_context_there_is_shrinks_at_once(copy: Path) -> None:
    change_manifest(copy, lambda values: values["limits"].update(context=1 << 24))
    budget = loaded_bytes(read_manifest(copy), 512)
    with edgelm.load(copy, max_memory=budget) as lm:
        assert lm.context == 512


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "input": lambda v: v["graph"]["inputs"]["tokens"].update(name="token"),
    "logits": lambda v: v["graph"]["outputs"]["logits"].update(name="logit"),
    "cache": lambda v: v["graph"]["cache"]["layers"][0].update(past_key="past"),
    "cache-type": lambda v: (v.update(kv="fp16"), v["graph"]["cache"].update(dtype="fp16")),
    "cache-type-of-gpus": lambda v: (v.update(kv="fp8"), v["graph"]["cache"].update(dtype="fp8")),
    "vocabulary": lambda v: (
        v["spec"].update(vocab_size=64),
        v["graph"]["outputs"]["logits"].update(shape=[1, "P", 64]),
    ),
    "heads": lambda v: (
        v["spec"].update(num_key_value_heads=1),
        v["graph"]["cache"].update(num_key_value_heads=1),
    ),
    "engine-from-the-future": lambda v: v["engine"].update(version="99"),
    "unknown-engine": lambda v: v["engine"].update(name="tensorrtevil"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_manifest_of_another_graph(
    copy: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    """Each is consistent in itself; what contradicts it is the graph, or this machine."""
    change_manifest(copy, change)
    with pytest.raises(BadBundle):
        edgelm.load(copy)


@pytest.fixture
def other(copy: Path, tmp_path: Path) -> Path:
    """The same model with other weights, by its own manifest as whole as the first."""
    folder = shutil.copytree(copy, tmp_path / "other")
    data = bytearray((folder / "model.onnx.data").read_bytes())
    data[::4] = bytes(len(data[::4]))
    (folder / "model.onnx.data").write_bytes(data)
    manifest = read_manifest(folder)
    write_manifest(folder, msgspec.structs.replace(manifest, files=hash_files(folder)))
    return folder


def test_a_bundle_that_is_replaced_while_it_loads(
    copy: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the new one is loaded: never its graph with the old one's hashes."""
    with edgelm.load(other, threads=1) as lm:
        expected = lm.generate("The miller", max_tokens=4).tokens
    swapped: list[Path] = []

    def then_swap(*given: Any, **named: Any) -> None:
        verify(*given, **named)
        if not swapped:
            swapped.append(copy.rename(copy.with_name("old")))
            other.rename(copy)

    monkeypatch.setattr(unchanged_bundle, "verify", then_swap)
    with edgelm.load(copy, threads=1) as lm:
        assert lm.generate("The miller", max_tokens=4).tokens == expected
    assert swapped


@pytest.mark.parametrize("name", ["model.onnx.data", "tokenizer.json", "bundle.json"])
def test_a_file_that_is_replaced_each_time(
    copy: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []

    def rewrite(*given: Any, **named: Any) -> Any:
        opened.append(open_session(*given, **named))
        content = (copy / name).read_bytes()
        (copy / "new").write_bytes(content)
        (copy / "new").replace(copy / name)
        return opened[-1]

    monkeypatch.setattr(loading, "open_session", rewrite)
    with pytest.raises(BadBundle, match="was replaced while it was loaded; load it again"):
        edgelm.load(copy)
    assert len(opened) == 2


def test_nothing_is_opened_that_does_not_match_its_hash(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is opened: an engine is native code, and runs when it is."""
    (copy / "README.md").write_text("changed")
    monkeypatch.setattr(loading, "open_session", None)
    with pytest.raises(BadBundle, match=r"README\.md has 7 bytes"):
        edgelm.load(copy)
    monkeypatch.setattr(edgelm_worker, "open_session", None)
    with pytest.raises(BadBundle, match=r"README\.md has 7 bytes"):
        edgelm_worker.EdgeLM().load({"path": str(copy), "threads": 1, "context": 64})


def test_a_configuration_that_does_not_load_leaves_no_session(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []
    session = SimpleNamespace(close=lambda: closed.append(True))
    monkeypatch.setattr(loading, "open_session", lambda *given, **named: session)
    (copy / "generation_config.json").write_text("garbage")
    with pytest.raises(BadBundle):
        edgelm.load(copy, check_hashes=False)
    assert closed


@pytest.mark.parametrize("check_hashes", [True, False])
def test_a_template_that_nobody_lists(copy: Path, check_hashes: bool) -> None:
    change_manifest(copy, lambda values: values["files"].pop("chat_template.jinja"))
    (copy / "chat_template.jinja").write_text("{{ 'whatever' }}")
    with pytest.raises(BadBundle, match=r"contains chat_template\.jinja, which bundle\.json"):
        edgelm.load(copy, check_hashes=check_hashes)


def test_the_whole_context_if_it_fits(large: Path, caplog: pytest.LogCaptureFixture) -> None:
    enough = loaded_bytes(read_manifest(large), LARGE)
    with edgelm.load(large, max_memory=enough) as lm:
        assert lm.context == LARGE
    with edgelm.load(large) as lm:
        assert lm.context == LARGE
    assert not caplog.records


@pytest.mark.parametrize("context", [256, 320, 1600, 4032])
def test_context_shrinks_to_the_memory_and_says_so(
    large: Path, caplog: pytest.LogCaptureFixture, context: int
) -> None:
    budget = loaded_bytes(read_manifest(large), context)
    with caplog.at_level(logging.WARNING), edgelm.load(large, max_memory=budget + 1) as lm:
        assert lm.context == context
        assert lm.session.capacity == context
    expected = f"context reduced from {LARGE} to {context} tokens to stay within "
    assert [record.message.startswith(expected) for record in caplog.records] == [True]


def test_max_memory_as_text(large: Path) -> None:
    budget = loaded_bytes(read_manifest(large), 512) / 1e6
    with edgelm.load(large, max_memory=f"{budget + 0.001:.3f}MB") as lm:
        assert lm.context == 512


def test_too_little_memory(large: Path) -> None:
    need = loaded_bytes(read_manifest(large), 256)
    message = rf"a context of 256 needs about {need / 1e6:.1f} MB, max_memory is 10\.0 MB"
    with pytest.raises(DoesNotFit, match=message):
        edgelm.load(large, max_memory="10MB")
    with pytest.raises(DoesNotFit, match="a context of 256 needs about"):
        edgelm.load(large, max_memory=need - 1)


def test_a_small_context_is_not_shrunk_further(bundle: Path) -> None:
    need = loaded_bytes(read_manifest(bundle), CONTEXT)
    with pytest.raises(DoesNotFit, match=f"a context of {CONTEXT} needs about"):
        edgelm.load(bundle, max_memory=need - 1)


@pytest.mark.parametrize("size", ["lots", "", "12 apples", "-5MB"])
def test_max_memory_that_is_no_size(bundle: Path, size: str) -> None:
    with pytest.raises(BadInput, match=f"max_memory: '{size}' is not a size; expected e.g. 98MB"):
        edgelm.load(bundle, max_memory=size)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, Sampling()),
        ({"temperature": 0.6, "top_k": 20}, Sampling()),
        ({"do_sample": False, "temperature": 0.6}, Sampling()),
        ({"do_sample": True}, Sampling(temperature=1.0)),
        (
            {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": None},
            Sampling(temperature=0.6, top_k=20, top_p=0.95),
        ),
        (
            {"do_sample": True, "repetition_penalty": 1.05, "max_length": 100},
            Sampling(temperature=1.0, repetition_penalty=1.05),
        ),
    ],
    ids=["nothing", "settings alone", "greedy", "sampling", "settings", "penalty"],
)
def test_defaults_are_the_authors_recommendation(
    copy: Path, config: dict[str, Any], expected: Sampling
) -> None:
    (copy / "generation_config.json").write_text(json.dumps(config))
    with edgelm.load(copy, check_hashes=False) as lm:
        assert lm._defaults == expected


@pytest.mark.parametrize(
    ("config", "ends"),
    [('{"eos_token_id": 5}', {5}), ('{"eos_token_id": [5, 6]}', {5, 6}), ("{}", set())],
    ids=["one", "several", "none"],
)
def test_ends(copy: Path, config: str, ends: set[int]) -> None:
    (copy / "generation_config.json").write_text(config)
    with edgelm.load(copy, check_hashes=False) as lm:
        assert lm.eos_token_ids == ends


def test_generation_config_that_is_no_json(copy: Path) -> None:
    (copy / "generation_config.json").write_text("{")
    with pytest.raises(BadBundle, match=r"generation_config\.json is not valid JSON"):
        edgelm.load(copy, check_hashes=False)


def test_the_tokenizer_is_read_before_weights_are(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Reading it takes more memory than it keeps, which must not come on top of the weights.
    order: list[str] = []

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            order.append(name)
            return function(*args, **options)

        return call

    for name in ("Tokenizer", "open_session"):
        monkeypatch.setattr(loading, name, noted(name, getattr(loading, name)))
    edgelm.load(bundle).close()
    assert order == ["Tokenizer", "open_session"]
