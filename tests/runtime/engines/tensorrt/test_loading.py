"""Opening a TensorRT engine: what is wrong is found before it runs."""

import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from edgelm.bundle import CompiledEngine, EngineFile
from edgelm.errors import BadBundle, BadInput, DoesNotFit, MissingPackage
from edgelm.files.hashing import file_sha256
from edgelm.runtime.engines import cuda
from edgelm.runtime.engines.tensorrt.trt_engine import TrtEngine
from edgelm.runtime.engines.trust import trust
from tests.export.graphs import CHUNK, CONTEXT
from tests.runtime.engines.tensorrt.device import Device, Source
from tests.runtime.fake_gpu import FakeCuda


def test_another_context_than_the_graph_s(device: Device) -> None:
    if device.graph.cache.capacity is None:
        with device.open(capacity=32) as session:
            assert session.capacity == 32
        return
    with pytest.raises(BadInput, match="is fixed at 64, but 32 was requested"):
        device.open(capacity=32)


def test_an_engine_of_another_version(device: Device) -> None:
    with pytest.raises(BadBundle, match=r"compiled by TensorRT 10\.3\.0, installed is 10\.13\.3"):
        device.open(replace(device.engine, version="10.3.0"))


def test_an_engine_for_other_gpus(device: Device) -> None:
    message = r"for sm_87, this GPU \(Fake RTX 4060\) is sm_89; compile it here: edge-export --fina"
    with pytest.raises(BadBundle, match=message):
        device.open(replace(device.engine, compute_capabilities=(87,)))


def test_an_unknown_engine(device: Device) -> None:
    with pytest.raises(BadBundle, match="'tensorrt-lite'; known: tensorrt, tensorrt-rtx"):
        device.open(replace(device.engine, name="tensorrt-lite"))


@pytest.mark.parametrize(
    ("name", "message"),
    [("../x.engine", "lies outside the bundle"), ("engines/none", "cannot be read: .*No such")],
)
def test_an_engine_file_that_is_not_there(device: Device, name: str, message: str) -> None:
    with pytest.raises(BadBundle, match=message):
        device.open(replace(device.engine, file=name))


def test_a_runtime_cache_elsewhere(device: Device) -> None:
    engine = replace(device.engine, name="tensorrt-rtx", runtime_cache="../../kernels")
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
        device.open(replace(device.engine, file="engines/damaged"))


def test_an_engine_of_another_graph(device: Device) -> None:
    layers = device.graph.cache.layers
    odd = replace(layers[0], past_key="key_of_old")
    cache = replace(device.graph.cache, layers=(odd, *layers[1:]))
    segments = tuple(
        replace(one, inputs=tuple(_renamed(name, layers[0].past_key) for name in one.inputs))
        for one in device.graph.segments
    )
    device.graph = replace(device.graph, cache=cache, segments=segments)
    with pytest.raises(BadBundle, match="has no input 'key_of_old', which the manifest names"):
        device.open()


def _renamed(name: str, old: str) -> str:
    return "key_of_old" if name == old else name


def test_an_engine_of_a_graph_with_other_segments(device: Device) -> None:
    more = (*device.engine.later_segments, EngineFile("engines/more.engine"))
    parts = len(device.graph.parts)
    with pytest.raises(BadBundle, match=f"one of {parts + 1} engines, but the graph has {parts}"):
        device.open(replace(device.engine, later_segments=more))


def test_a_segment_s_engine_in_the_place_of_another_s(device: Device) -> None:
    if not device.engine.later_segments:
        pytest.skip("there is one engine")
    files = [EngineFile(device.engine.files[-1])]
    with pytest.raises(BadBundle, match=r"has no input|has an input .* that the manifest lacks"):
        device.open(replace(device.engine, later_segments=(*files, *device.engine.parts[2:])))


def test_no_memory_for_the_cache(device: Device) -> None:
    device.cuda.total = 20_000
    with pytest.raises(DoesNotFit, match=r"the key-value cache needs .* of GPU memory, .* free"):
        device.open()


def test_an_int8_cache(device: Device) -> None:
    device.graph = replace(device.graph, cache=replace(device.graph.cache, dtype="int8"))
    with pytest.raises(BadBundle, match="the cache is of type int8, TensorRT has fp32, fp16, bf16"):
        device.open()


def test_a_role_that_is_not_known(device: Device) -> None:
    odd = replace(device.graph.inputs["tokens"], name="types")
    device.graph = replace(device.graph, inputs={**device.graph.inputs, "token_types": odd})
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
        device.open(replace(device.engine, name=name))


def rtx(source: Source, **given: Any) -> CompiledEngine:
    return replace(source.engine, name="tensorrt-rtx", version="1.7.1.116", **given)


def load_real(folder: Path, source: Source, compiled: CompiledEngine) -> TrtEngine:
    return TrtEngine(folder, source.graph, compiled, capacity=CONTEXT, prefill_chunk=CHUNK)


def test_the_real_library_without_a_driver(source: Source) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx")
    pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")
    try:
        cuda.find_gpu()
    except MissingPackage:
        with pytest.raises(MissingPackage, match=r"no CUDA driver was found|CUDA sees no GPU"):
            load_real(source.folder, source, rtx(source))
    else:
        pytest.skip("there is a GPU; tests/gpu goes further")


@pytest.mark.parametrize("data", [b"", b"garbage" * 99])
def test_the_real_library_and_a_damaged_file(
    source: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: bytes
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx")
    driver = FakeCuda()
    monkeypatch.setattr(cuda, "_binding", lambda: driver)
    (tmp_path / "bad.engine").write_bytes(data)
    trust(file_sha256(tmp_path / "bad.engine"))
    message = r"serialization version.*copy the bundle again" if data else "cannot be read: .*empty"
    with pytest.raises(BadBundle, match=message):
        load_real(tmp_path, source, rtx(source, file="bad.engine"))
