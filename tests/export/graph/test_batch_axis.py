"""A run over several sequences computes for each what a run over it alone computes."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from edgelm.bundle import GraphContract
from edgelm.export.graph.attention.ort_attention import MAX_VERIFIED
from edgelm.export.quantize.calibrate import calibrate
from edgelm.export.quantize.kv_scales import KvScaling
from edgelm.export.source.reference import Reference
from edgelm.quantize.precision import PRECISIONS
from edgelm.runtime.engines.engine_session import EngineSession
from tests.checkpoints.models import MIXTURES, REPRESENTATIVE, TINY
from tests.conftest import TinyFactory
from tests.export.graphs import build_session, cpu_engine
from tests.slow import slow_but

TOKENS = np.random.default_rng(3).integers(3, 120, (4, 40))
LENGTHS = (1, 30, 7, 19)
STEPS = 5
SHARES_ROWS = ("gemma3n", "gemma4")  # layers read the keys and values of another layer


def _contract(session: EngineSession) -> GraphContract:
    return cpu_engine(session)._graph


def _largest_difference(first: EngineSession) -> float:
    """Between batched and single steps of four sequences, as a share of the largest logit."""
    with ExitStack() as stack:
        sessions = [first, *(stack.enter_context(first.sibling()) for _ in LENGTHS[1:])]
        alone = []
        for session, tokens, length in zip(sessions, TOKENS, LENGTHS, strict=True):
            session.advance(tokens[:length])
            steps = tokens[length : length + STEPS]
            alone.append([session.advance(np.array([one])).copy() for one in steps])
            session.rewind(length)
        worst = 0.0
        for step in range(STEPS):
            given = [int(tokens[at + step]) for tokens, at in zip(TOKENS, LENGTHS, strict=True)]
            for rows, expected in zip(
                EngineSession.advance_each(sessions, given), alone, strict=True
            ):
                worst = max(
                    worst,
                    float(np.abs(rows - expected[step]).max() / np.abs(expected[step]).max()),
                )
        return worst


@pytest.mark.parametrize("name", slow_but(sorted(TINY), REPRESENTATIVE))
def test_every_family(name: str, tiny: TinyFactory, tmp_path: Path) -> None:
    checkpoint = tiny(name).checkpoint
    one_by_one = checkpoint.spec.is_hybrid or name in SHARES_ROWS
    with build_session(checkpoint, tmp_path) as session:
        assert _contract(session).takes_batches != one_by_one
        if not one_by_one:
            assert _largest_difference(session) <= 1e-5


@pytest.mark.parametrize("precision", ["int4", "int8"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "ministral3", "hunyuan"])
def test_quantized(name: str, precision: str, tiny: TinyFactory, tmp_path: Path) -> None:
    source = tiny(name)
    seen = calibrate(Reference(source.checkpoint), torch.from_numpy(TOKENS[:1]))
    scaling = KvScaling.from_calibration(source.checkpoint.spec, seen.kv_absmax)
    with build_session(
        source.checkpoint, tmp_path, PRECISIONS[precision], kv="int8", scaling=scaling
    ) as session:
        assert _contract(session).takes_batches
        # The kernel for 4 bits adds in another order, by which an activation may be rounded to the
        # next level of 8 bits. That for 8 bits computes the same.
        assert _largest_difference(session) <= (0.03 if precision == "int4" else 1e-5)


@pytest.mark.parametrize(("precision", "limit"), [("fp16", 5e-3), ("int8", 1e-4), ("int4", 0.03)])
@pytest.mark.parametrize("name", slow_but(["llama", "qwen3", "gemma2"], ["qwen3"]))
def test_in_16_bits(
    name: str, precision: str, limit: float, tiny: TinyFactory, tmp_path: Path
) -> None:
    """The graph for CUDA: the CPU provider has its operators in fp16, too."""
    with build_session(
        tiny(name).checkpoint, tmp_path, PRECISIONS[precision], activations="fp16", batch=True
    ) as session:
        assert _contract(session).takes_batches
        assert _contract(session).cache.dtype == "fp16"
        assert _largest_difference(session) <= limit


# Those without a mixture of experts, which the dialect lacks.
STANDARD_FAMILIES = sorted(set(TINY) - set(MIXTURES))


@pytest.mark.parametrize("name", slow_but(STANDARD_FAMILIES, ("gemma2", "gemma4", "qwen3")))
def test_every_family_in_the_standard_dialect(name: str, tiny: TinyFactory, tmp_path: Path) -> None:
    checkpoint = tiny(name).checkpoint
    with build_session(checkpoint, tmp_path, dialect="standard", batch=True) as session:
        assert _contract(session).takes_batches != bool(checkpoint.spec.states)
        if _contract(session).takes_batches:
            assert _largest_difference(session) <= 1e-5


def test_segments_of_the_standard_dialect(tiny: TinyFactory, tmp_path: Path) -> None:
    checkpoint = tiny("qwen3").checkpoint
    with build_session(checkpoint, tmp_path, dialect="standard", batch=True, segments=3) as session:
        graph = _contract(session)
        assert {link.shape[0] for link in graph.links if len(link.shape) == 3} == {"B"}
        assert _largest_difference(session) <= 1e-5


def test_a_graph_for_tensorrt_takes_one_sequence_by_default(
    tiny: TinyFactory, tmp_path: Path
) -> None:
    for dialect in ("standard", "decomposed"):
        with build_session(
            tiny("llama").checkpoint, tmp_path / dialect, dialect=dialect
        ) as session:
            assert not _contract(session).takes_batches
            assert session.engine.batch is None


def test_more_tokens_than_the_decode_kernel_takes_are_of_one_sequence() -> None:
    assert MAX_VERIFIED == 16, "GraphContract says so"
