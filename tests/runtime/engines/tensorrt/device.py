"""A bundle with a TensorRT engine, and a machine of our own that runs it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgelm.bundle import CompiledEngine, GraphContract
from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.session import Session
from edgelm.runtime.engines.tensorrt.trt_engine import TrtEngine
from edgelm.spec.decoder import DecoderSpec
from tests.export.graphs import CHUNK, CONTEXT
from tests.runtime.fake_gpu import FakeCuda, FakeTensorRT

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


@dataclass(frozen=True)
class Source:
    """A bundle's folder, its graph, and the decoder that the graph is of."""

    folder: Path
    graph: GraphContract
    spec: DecoderSpec
    engine: CompiledEngine


@dataclass
class Device:
    """A bundle, the same graph on ONNX Runtime, and the machine that is to run its engine."""

    folder: Path
    graph: GraphContract
    spec: DecoderSpec
    cuda: FakeCuda
    tensorrt: FakeTensorRT
    reference: Session
    engine: CompiledEngine

    @property
    def token_bytes(self) -> int:
        """Bytes of keys and values, in fp32, of one token."""
        spec = self.spec
        return 2 * 4 * spec.num_hidden_layers * spec.num_key_value_heads * spec.head_dim

    def open(
        self, compiled: CompiledEngine | None = None, *, capacity: int = CONTEXT
    ) -> EngineSession:
        engine = compiled or self.engine
        return EngineSession(
            TrtEngine(self.folder, self.graph, engine, capacity=capacity, prefill_chunk=CHUNK)
        )


def assert_same(ours: Any, theirs: Any) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def after_20_tokens(reference: Session) -> Any:
    """The reference's logits of a prefill."""
    return reference.advance(TOKENS[:20])
