"""Who takes part: bundles by name, peers that are installed, reasons for those that are not."""

from dataclasses import replace
from pathlib import Path

import pytest

from edgelm.bench.peers.engines import (
    PEERS,
    _is_quantized,
    bundle_engines,
    peer_engines,
    peer_environments,
)
from edgelm.bench.peers.install import OPTIMUM, SHARED, interpreter, missing_reason, peers_folder
from edgelm.bench.peers.sources import Source, Sources
from edgelm.bundle import read_manifest
from edgelm.checkpoint.source import open_checkpoint
from edgelm.errors import UnknownName
from tests.bench.fake_peers import make_peers
from tests.checkpoints.gguf_files import write_gguf
from tests.checkpoints.models import tiny_model


@pytest.fixture
def sources(source: Path, tmp_path: Path) -> Sources:
    return Sources(Source(open_checkpoint(source), "0" * 64), tmp_path / "cache")


def test_a_bundle_s_name_says_its_precision(bundle: Path, int8_bundle: Path) -> None:
    manifests = {path: read_manifest(path) for path in (bundle, int8_bundle)}
    names = [engine.name for engine in bundle_engines(manifests)]
    assert names == ["edgelm fp32 tiny-fp32", "edgelm int8 tiny-int8"]


def test_the_folder_at_hand_has_a_name_too(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle)
    [engine] = bundle_engines({Path(): read_manifest(Path())})
    assert engine.name == "edgelm fp32 tiny-fp32"


def test_peers_that_are_not_installed_are_absent_with_a_reason(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELM_PEERS", str(tmp_path / "nowhere"))
    present, skipped = peer_engines(list(PEERS), sources)
    assert present == []
    names = ["llama.cpp", "onnxruntime-genai", "transformers", "optimum", "transformers-static"]
    assert [peer.name for peer in skipped] == names
    places = {
        peer.name: "nowhere/optimum" if peer.name == "optimum" else "nowhere" for peer in skipped
    }
    assert {peer.name: peer.reason for peer in skipped} == {
        name: f"not installed: no environment at {tmp_path}/{place}; edge-bench --setup-peers"
        for name, place in places.items()
    }


def test_an_environment_without_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELM_PEERS", str(make_peers(tmp_path / "peers")))
    reason = missing_reason("no_such_engine")
    assert reason == (
        "not installed: ModuleNotFoundError: No module named 'no_such_engine'; "
        "edge-bench --setup-peers"
    )
    assert missing_reason("json") is None


def test_an_environment_that_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELM_PEERS", str(make_peers(tmp_path / "peers", "exit 3")))
    assert missing_reason("json") == "not installed: no message; edge-bench --setup-peers"


def test_unknown_peer(sources: Sources) -> None:
    message = "unknown peer 'ollama'; known: llama.cpp, onnxruntime-genai, transformers,"
    with pytest.raises(UnknownName, match=message):
        peer_engines(["transformers", "ollama"], sources)


def test_peers_run_with_their_own_interpreter(
    sources: Sources, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELM_PEERS", str(make_peers(tmp_path / "peers", "exit 0")))
    make_peers(tmp_path / "peers" / "optimum", "exit 0")
    present, skipped = peer_engines(list(PEERS), sources)
    assert skipped == []
    assert [engine.name for engine in present] == [
        "llama.cpp Q4_0",
        "llama.cpp Q4_K_M",
        "onnxruntime-genai int4",
        "transformers unquantized",
        "optimum fp32",
        "optimum int8",
        "transformers-static fp16",
    ]
    own = {engine.name for engine in present if engine.python == interpreter(OPTIMUM)}
    assert own == {"optimum fp32", "optimum int8"}
    assert {engine.python for engine in present} == {interpreter(), interpreter(OPTIMUM)}
    assert present[-1].prepare() == source


def test_only_the_environments_of_the_requested_peers() -> None:
    assert peer_environments(["optimum"]) == [OPTIMUM]
    assert peer_environments(["llama.cpp", "transformers", "optimum"]) == [SHARED, OPTIMUM]


def test_all_parts_of_a_split_gguf_source_count(tmp_path: Path) -> None:
    model = tiny_model("llama", vocab_size=4096)
    path = write_gguf(model, tmp_path / "F16.gguf", "F16")
    checkpoint = open_checkpoint(path)
    halves = [tmp_path / f"part-{number}" for number in range(2)]
    size = path.stat().st_size
    for half in halves:
        half.write_bytes(bytes(size // 2))
    split = replace(checkpoint, weight_files=tuple(halves))
    # Either half alone is small enough to look like a quantized model.
    assert size / 2 < 1.5 * checkpoint.spec.parameters < size
    assert not _is_quantized(Sources(Source(split, "0" * 64), tmp_path / "cache"))


def test_a_quantized_gguf_source_also_runs_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELM_PEERS", str(make_peers(tmp_path / "peers", "exit 0")))
    # A vocabulary large enough that the file is mostly its weights.
    model = tiny_model("llama", vocab_size=4096)
    for kind, expected in (("Q8_0", True), ("F16", False)):
        path = write_gguf(model, tmp_path / f"{kind}.gguf", kind)
        sources = Sources(Source(open_checkpoint(path), kind), tmp_path / "cache")
        present, _ = peer_engines(["llama.cpp"], sources)
        as_it_is = [c for c in present if c.name == "llama.cpp source file"]
        assert [c.prepare() for c in as_it_is] == [path] * expected


def test_the_environment_lies_where_the_user_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELM_PEERS", str(tmp_path))
    assert peers_folder() == tmp_path
    assert interpreter() == tmp_path / "bin" / "python"
    monkeypatch.delenv("EDGELM_PEERS")
    assert peers_folder() == Path.home() / ".cache" / "edgelm" / "peers"
