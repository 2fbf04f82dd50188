"""The TensorRT session: its bookkeeping on a GPU of our own, its errors on the real library."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from edgelm.bundle import CompiledEngine, EngineRequirement, Manifest
from edgelm.errors import (
    BadBundle,
    BadInput,
    ContextFull,
    DoesNotFit,
    EdgeLMError,
    MissingPackage,
)
from edgelm.files.hashing import file_sha256
from edgelm.runtime.engines import cuda
from edgelm.runtime.engines.ort import OrtSession
from edgelm.runtime.engines.session import Session
from edgelm.runtime.engines.tensorrt.session import TrtSession
from edgelm.runtime.engines.trust import trust
from tests.conftest import TinyFactory
from tests.export.graphs import CHUNK, CONTEXT, DialectName, bare_manifest, build_session
from tests.runtime.fake_gpu import TITLE, FakeCuda, FakeTensorRT

TOKENS = np.random.default_rng(0).integers(3, 128, 50)
ENGINE = CompiledEngine(
    file="engines/sm89.engine",
    name="tensorrt",
    version="10.13.3",
    compute_capabilities=(86, 89),
    graph_sha256="",
    profiles=2,
    build_seconds=1.0,
    machine="a test",
)


@dataclass
class Device:
    """A bundle, the same graph on ONNX Runtime, and the machine that is to run its engine."""

    folder: Path
    manifest: Manifest
    cuda: FakeCuda
    tensorrt: FakeTensorRT
    reference: OrtSession

    def open(self, engine: CompiledEngine = ENGINE, *, capacity: int = CONTEXT) -> TrtSession:
        return TrtSession(self.folder, self.manifest, engine, capacity=capacity)


@pytest.fixture(scope="module", params=["standard", "decomposed"])
def graph(
    request: pytest.FixtureRequest, tiny: TinyFactory, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Manifest]:
    """A bundle's graph and manifest: its cache is written in place, or appended to."""
    dialect: DialectName = request.param
    folder = tmp_path_factory.mktemp(f"trt-{dialect}")
    checkpoint = tiny("qwen3").checkpoint
    with build_session(checkpoint, folder, dialect=dialect) as session:
        contract = session._graph
    manifest = bare_manifest(
        checkpoint.spec,
        contract,
        target="jetson-orin-nano-8gb",
        engine=EngineRequirement("tensorrt"),
        engines=(ENGINE,),
    )
    path = folder / ENGINE.file
    path.parent.mkdir()
    path.write_bytes(TITLE + str(folder / contract.file).encode())
    trust(file_sha256(path))
    return folder, manifest


@pytest.fixture
def device(graph: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    folder, manifest = graph
    driver = FakeCuda()
    library = FakeTensorRT(driver, ENGINE.version, chunk=CHUNK)
    monkeypatch.setattr(cuda, "_binding", lambda: driver)
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", library)
    with OrtSession(folder, manifest, capacity=CONTEXT, threads=1) as reference:
        yield Device(folder, manifest, driver, library, reference)


def assert_same(ours: Any, theirs: Any) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


# CHUNK is 16: within one chunk, its border, several; and one row, a few, over chunks, all.
@pytest.mark.parametrize("count", [1, 16, 17, 50])
@pytest.mark.parametrize("logits", [1, 3, 17, 50])
def test_prefill_is_that_of_onnxruntime(device: Device, count: int, logits: int) -> None:
    with device.open() as session:
        ours = session.advance(TOKENS[:count], logits=logits)
        assert_same(ours, device.reference.advance(TOKENS[:count], logits=logits))
        assert session.length == count


def test_decoding_is_that_of_onnxruntime(device: Device) -> None:
    with device.open() as session:
        for both in (session, device.reference):
            both.advance(TOKENS[:20])
        for token in range(20, 40):
            ours, theirs = (
                one.advance(TOKENS[token : token + 1]) for one in (session, device.reference)
            )
            assert_same(ours, theirs)
        assert session.length == 40
        assert device.cuda.launches == 19  # the first step ran plainly


def test_prefill_between_tokens_and_rewinding(device: Device) -> None:
    with device.open() as session:
        for length, tokens in (
            (0, TOKENS[:30]),
            (30, TOKENS[30:31]),
            (31, TOKENS[31:32]),
            (11, TOKENS[::-1][:21]),
            (32, TOKENS[:1]),
            (5, TOKENS[5:6]),
            (6, TOKENS[6:40]),
            (0, TOKENS[9:10]),
        ):
            ours, theirs = (
                (one.rewind(length), one.advance(tokens.copy()))[1]
                for one in (session, device.reference)
            )
            assert_same(ours, theirs)
        assert session.length == 1


@pytest.mark.parametrize("profiles", [1, 2])
def test_the_decoding_context_has_the_last_profile(device: Device, profiles: int) -> None:
    with device.open(replace(ENGINE, profiles=profiles)) as session:
        session.advance(TOKENS[:4])
        assert_same(session.advance(TOKENS[4:5]), _after(device.reference, 4))
    assert [context.profile for context in device.tensorrt.contexts] == [0, profiles - 1]


def _after(reference: OrtSession, count: int) -> Any:
    reference.advance(TOKENS[:count])
    return reference.advance(TOKENS[count : count + 1])


def test_without_a_graph_where_the_context_cannot_be_recorded(device: Device) -> None:
    device.tensorrt.capturable = False
    with device.open() as session:
        for one in (session, device.reference):
            one.advance(TOKENS[:4])
        for at in range(4, 8):
            ours, theirs = (one.advance(TOKENS[at : at + 1]) for one in (session, device.reference))
            assert_same(ours, theirs)
    assert device.cuda.launches == 0


@pytest.mark.parametrize("at", ["cudaStreamBeginCapture", "cudaGraphInstantiate"])
def test_without_a_graph_where_recording_fails(device: Device, at: str) -> None:
    device.cuda.status[at] = 900
    with device.open() as session:
        session.advance(TOKENS[:4])
        session.advance(TOKENS[4:5])
        assert_same(session.advance(TOKENS[5:6])[0], _after_two(device.reference))
    assert device.cuda.launches == 0


def _after_two(reference: OrtSession) -> Any:
    _after(reference, 4)
    return reference.advance(TOKENS[5:6])[0]


def test_rtx_replays_by_itself_and_keeps_its_kernels(device: Device) -> None:
    rtx = replace(ENGINE, name="tensorrt-rtx", version="1.7.1", runtime_cache="engines/kernels")
    with device.open(rtx) as session:
        session.advance(TOKENS[:4])
        session.advance(TOKENS[4:5])
        assert_same(session.advance(TOKENS[5:6])[0], _after_two(device.reference))
    assert device.cuda.launches == 0
    prefill, decode = (context.how for context in device.tensorrt.contexts)
    assert decode.cuda_graph_strategy == "whole"
    assert decode.dynamic_shapes_kernel_specialization_strategy == "eager"
    assert not hasattr(prefill, "cuda_graph_strategy")
    assert decode.runtime_cache is prefill.runtime_cache
    assert (device.folder / "engines/kernels").read_bytes() == b"kernels"


def test_kernels_that_came_with_the_bundle_are_not_loaded(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    rtx = replace(ENGINE, name="tensorrt-rtx", version="1.7.1", runtime_cache="foreign")
    (device.folder / "foreign").write_bytes(b"native code of somebody")
    with caplog.at_level("INFO"):
        device.open(rtx).close()
    assert "foreign was not written here; its kernels are compiled again" in caplog.text


def test_kernels_that_cannot_be_kept(device: Device) -> None:
    nowhere = replace(ENGINE, name="tensorrt-rtx", runtime_cache="no/such/folder/kernels")
    device.open(nowhere).close()


def test_a_full_cache_and_what_was_not_there(device: Device) -> None:
    with device.open() as session:
        session.advance(TOKENS[:40])
        with pytest.raises(ContextFull, match="40 tokens and 25 more do not fit in a context of"):
            session.advance(TOKENS[:25])
        with pytest.raises(BadInput, match="cannot rewind to 41: the cache holds 40 tokens"):
            session.rewind(41)
        assert session.length == 40


def test_a_failed_run_leaves_the_length(device: Device) -> None:
    with device.open() as session:
        session.advance(TOKENS[:5])
        device.cuda.status["cudaStreamSynchronize"] = 700
        for count in (1, 20):
            with pytest.raises(EdgeLMError, match="CUDA error 700: illegal address"):
                session.advance(TOKENS[:count])
            assert session.length == 5
            device.cuda.queue.clear()
        device.cuda.status.clear()
        assert_same(session.advance(TOKENS[5:20]), _whole(device.reference))


def _whole(reference: OrtSession) -> Any:
    return reference.advance(TOKENS[:20])


def test_closing_frees_everything(device: Device) -> None:
    session = device.open()
    row = session.advance(TOKENS[:1])
    before = row.copy()
    session.close()
    session.close()
    # The row that was returned is the last thing that lives, until it goes.
    assert np.array_equal(row, before)
    assert sum(len(block) for block in device.cuda.blocks.values()) < 10_000
    del row, session
    assert not device.cuda.blocks


def test_it_is_a_session(device: Device) -> None:
    with device.open() as session:
        as_protocol: Session = session
        assert (as_protocol.length, as_protocol.capacity) == (0, CONTEXT)
        assert as_protocol.vocab_size == 128
        spec = device.manifest.spec
        per_token = 2 * 4 * spec.num_hidden_layers * spec.num_key_value_heads * spec.head_dim
        assert session.cache_bytes == CONTEXT * per_token


def test_another_context_than_the_graph_s(device: Device) -> None:
    with pytest.raises(BadInput, match="context of this bundle is fixed at 64, 32 was asked"):
        device.open(capacity=32)


def test_an_engine_of_another_version(device: Device) -> None:
    with pytest.raises(BadBundle, match=r"compiled by TensorRT 10\.3\.0, installed is 10\.13\.3"):
        device.open(replace(ENGINE, version="10.3.0"))


def test_an_engine_for_other_gpus(device: Device) -> None:
    message = r"for sm_87, this GPU \(Fake RTX 4060\) is sm_89; compile it here: edge-export --fina"
    with pytest.raises(BadBundle, match=message):
        device.open(replace(ENGINE, compute_capabilities=(87,)))


def test_an_unknown_engine(device: Device) -> None:
    with pytest.raises(BadBundle, match="'tensorrt-lite'; known: tensorrt, tensorrt-rtx"):
        device.open(replace(ENGINE, name="tensorrt-lite"))


@pytest.mark.parametrize(
    ("name", "message"),
    [("../x.engine", "lies outside the bundle"), ("engines/none", "cannot be read: .*No such")],
)
def test_an_engine_file_that_is_not_there(device: Device, name: str, message: str) -> None:
    with pytest.raises(BadBundle, match=message):
        device.open(replace(ENGINE, file=name))


def test_a_runtime_cache_elsewhere(device: Device) -> None:
    engine = replace(ENGINE, name="tensorrt-rtx", runtime_cache="../../kernels")
    with pytest.raises(BadBundle, match="lies outside the bundle"):
        device.open(engine)


@pytest.mark.parametrize(
    ("complaint", "error", "message"),
    [
        ("magicTag failed", BadBundle, "cannot load it: magicTag failed; copy the bundle again"),
        ("out of memory", DoesNotFit, r"damaged needs .* of GPU memory, .* are free; close"),
    ],
)
def test_an_engine_that_does_not_load(
    device: Device, complaint: str, error: type[Exception], message: str
) -> None:
    (device.folder / "engines/damaged").write_bytes(b"garbage")
    trust(file_sha256(device.folder / "engines/damaged"))
    device.tensorrt.complaint = complaint
    with pytest.raises(error, match=message):
        device.open(replace(ENGINE, file="engines/damaged"))


def test_an_engine_of_another_graph(device: Device) -> None:
    layers = device.manifest.graph.cache.layers
    odd = replace(layers[0], past_key="key_of_old")
    cache = replace(device.manifest.graph.cache, layers=(odd, *layers[1:]))
    device.manifest = replace(device.manifest, graph=replace(device.manifest.graph, cache=cache))
    with pytest.raises(BadBundle, match="has no input 'key_of_old', which the manifest names"):
        device.open()


def test_a_profile_that_is_smaller_than_the_manifest_s_chunk(device: Device) -> None:
    device.tensorrt.chunk = 8  # the engine's, the manifest says 16
    with device.open() as session:
        assert_same(session.advance(TOKENS[:20]), _whole(device.reference))


def test_no_memory_for_the_cache(device: Device) -> None:
    device.cuda.total = 20_000
    with pytest.raises(DoesNotFit, match=r"the key-value cache needs .* of GPU memory, .* free"):
        device.open()


def test_an_int8_cache(device: Device) -> None:
    graph = device.manifest.graph
    graph = replace(graph, cache=replace(graph.cache, dtype="int8"))
    device.manifest = replace(device.manifest, graph=graph)
    with pytest.raises(BadBundle, match="the cache is of type int8, TensorRT has fp32, fp16, bf16"):
        device.open()


def test_a_role_that_is_not_known(device: Device) -> None:
    graph = device.manifest.graph
    odd = replace(graph.inputs["tokens"], name="types")
    graph = replace(graph, inputs={**graph.inputs, "token_types": odd})
    device.manifest = replace(device.manifest, graph=graph)
    with pytest.raises(BadBundle, match="an input 'token_types' of type int64"):
        device.open()


@pytest.mark.parametrize(
    ("name", "module", "hint"),
    [
        ("tensorrt", "tensorrt", "venv --system-site-packages"),
        ("tensorrt-rtx", "tensorrt_rtx", r"pip install 'edgelm\[rtx\]'"),
    ],
)
def test_no_library(
    device: Device, monkeypatch: pytest.MonkeyPatch, name: str, module: str, hint: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackage, match=f"{name} is not installed .*{hint}"):
        device.open(replace(ENGINE, name=name))


RTX = replace(ENGINE, name="tensorrt-rtx", version="1.7.1.116")


@pytest.fixture
def real() -> Callable[..., TrtSession]:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx")
    pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")
    try:
        cuda.find_gpu()
    except MissingPackage:
        return TrtSession
    pytest.skip("there is a GPU; tests/gpu goes further")


def test_the_real_library_without_a_driver(
    graph: tuple[Path, Manifest], real: Callable[..., TrtSession]
) -> None:
    with pytest.raises(MissingPackage, match=r"no CUDA driver was found|CUDA sees no GPU"):
        real(*graph, RTX, capacity=CONTEXT)


@pytest.mark.parametrize("data", [b"", b"garbage" * 99])
def test_the_real_library_and_a_damaged_file(
    graph: tuple[Path, Manifest],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    data: bytes,
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx")
    driver = FakeCuda()
    monkeypatch.setattr(cuda, "_binding", lambda: driver)
    (tmp_path / "bad.engine").write_bytes(data)
    trust(file_sha256(tmp_path / "bad.engine"))
    message = r"serialization version.*copy the bundle again" if data else "cannot be read: .*empty"
    with pytest.raises(BadBundle, match=message):
        TrtSession(tmp_path, graph[1], replace(RTX, file="bad.engine"), capacity=CONTEXT)
