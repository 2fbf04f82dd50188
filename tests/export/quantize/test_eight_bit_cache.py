"""A cache of 8 bits: scaling changes nothing by itself, and rounding little, wherever it runs."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import DynamicCache

from edgelm.export.graph.attention.ort_attention import MAX_VERIFIED
from edgelm.export.graph.dtypes import Activations
from edgelm.export.quantize.calibrate import calibrate
from edgelm.export.quantize.kv_scales import KvScaling
from edgelm.export.source.reference import Reference
from edgelm.quantize.precision import KvType
from edgelm.runtime.engines.session import Session
from edgelm.spec.decoder import DecoderSpec, LayerSpec, Rope
from tests.checkpoints.models import REPRESENTATIVE, TINY
from tests.conftest import Tiny, TinyFactory
from tests.core.spec.test_decoder import spec_of
from tests.export.graphs import build_session, cpu_engine
from tests.slow import slow_but

Array = npt.NDArray[np.float32]
LENGTH = 48
TOKENS = np.random.default_rng(0).integers(3, 128, LENGTH)
# Of the logits' spread (root mean square): 127 steps for a head's largest key and value in int8,
# a sixteenth of every value in fp8.
LONG = MAX_VERIFIED + 4  # a chunk that takes the branch for prompts
ROUNDING = {"int8": 0.03, "fp8": 0.07}


@pytest.fixture(params=slow_but(sorted(TINY), REPRESENTATIVE))
def source(request: pytest.FixtureRequest, calm: TinyFactory) -> Tiny:
    return calm(request.param)


@pytest.fixture
def scaling(source: Tiny) -> KvScaling:
    seen = calibrate(Reference(source.checkpoint), torch.from_numpy(TOKENS)[None])
    return KvScaling.from_calibration(source.checkpoint.spec, seen.kv_absmax)


@pytest.fixture
def shared(source: Tiny) -> KvScaling:
    seen = calibrate(Reference(source.checkpoint), torch.from_numpy(TOKENS)[None])
    return KvScaling.from_calibration(source.checkpoint.spec, seen.kv_absmax, shared=True)


@pytest.fixture
def expected(source: Tiny) -> Array:
    with torch.inference_mode():
        logits: Array = source.hf(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    return logits


def error_of(ours: Array, expected: Array) -> float:
    return float(np.sqrt(np.square(ours - expected).mean()) / expected.std())


def decoded(session: Session, tokens: npt.NDArray[np.int64]) -> Array:
    return np.concatenate([session.advance(token).copy() for token in tokens[:, None]])


def test_scaling_alone_changes_nothing(
    source: Tiny, scaling: KvScaling, expected: Array, tmp_path: Path
) -> None:
    with build_session(source.checkpoint, tmp_path, scaling=scaling) as session:
        ours = session.advance(TOKENS, logits=LENGTH)
    assert np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("kv", "activations", "scales"),
    [("int8", "fp32", "scaling"), ("int8", "fp16", "shared"), ("fp8", "fp32", "shared")],
    ids=["the CPU's", "CUDA's", "check of CUDA's"],
)
def test_close_to_the_source_in_prefill_and_decode(
    source: Tiny,
    request: pytest.FixtureRequest,
    expected: Array,
    tmp_path: Path,
    kv: KvType,
    activations: Activations,
    scales: str,
) -> None:
    scaling = request.getfixturevalue(scales)
    with build_session(
        source.checkpoint, tmp_path, kv=kv, activations=activations, scaling=scaling, chunk=LONG
    ) as session:
        prefilled = session.advance(TOKENS, logits=LENGTH).copy()
        session.rewind(0)
        stepped = decoded(session, TOKENS)
        session.rewind(20)
        continued = decoded(session, TOKENS[20:])
    assert error_of(prefilled, expected) <= ROUNDING[kv]
    assert error_of(stepped, expected) <= ROUNDING[kv]
    assert error_of(continued, expected[20:]) <= ROUNDING[kv]
    assert error_of(prefilled, expected) > 1e-6  # it is a rounded cache that was run


def test_prefill_and_decode_store_the_same_cache(
    source: Tiny, scaling: KvScaling, tmp_path: Path
) -> None:
    with build_session(
        source.checkpoint, tmp_path, kv="int8", scaling=scaling, chunk=LONG
    ) as session:
        # The first layer's cache depends on the tokens only, so that it must be equal.
        session.advance(TOKENS)
        prefilled = [array.copy() for array in cpu_engine(session)._cache[0]]
        session.rewind(0)
        decoded(session, TOKENS)
        stepped = cpu_engine(session)._cache[0]
    for one, other in zip(prefilled, stepped, strict=True):
        assert one.dtype == np.int8
        difference = one[:, :, :LENGTH].astype(int) - other[:, :, :LENGTH]
        # A value halfway between two levels may fall on either side.
        assert np.abs(difference).max() <= 1
        assert (difference != 0).mean() <= 0.01
        assert not one[:, :, LENGTH:].any()


def test_calibration_is_the_largest_of_hugging_faces_cache(
    source: Tiny, scaling: KvScaling
) -> None:
    spec = source.checkpoint.spec
    cache: Any = DynamicCache(config=source.hf.config if spec.is_hybrid else None)
    with torch.inference_mode():
        source.hf(torch.from_numpy(TOKENS)[None], past_key_values=cache)
    largest = [
        tuple(rows.abs().amax((0, 2)) for rows in (cache.layers[at].keys, cache.layers[at].values))
        if layer.has_cache
        else (torch.ones(spec.heads(layer)[1:]),) * 2
        for at, layer in enumerate(spec.layers)
    ]
    expected = KvScaling.from_calibration(spec, largest)
    for index in spec.cache_layers:
        ours, theirs = scaling.layers[index], expected.layers[index]
        torch.testing.assert_close(ours.key, theirs.key, rtol=1e-4, atol=0)
        torch.testing.assert_close(ours.value, theirs.value, rtol=1e-4, atol=0)
        assert ours.key_range == pytest.approx(theirs.key_range, rel=1e-4)
        assert ours.value_range == pytest.approx(theirs.value_range, rel=1e-4)


def test_calibration_is_the_largest_of_several_sequences(calm: TinyFactory) -> None:
    reference = Reference(calm("qwen3").checkpoint)
    rows = torch.from_numpy(np.random.default_rng(1).integers(3, 128, (5, 16)))
    parts = [calibrate(reference, row[None]) for row in rows]
    together = calibrate(reference, rows)
    for kind in (0, 1):  # keys, values
        largest = torch.stack([part.kv_absmax[1][kind] for part in parts]).amax(0)
        torch.testing.assert_close(together.kv_absmax[1][kind], largest)
    name = "model.layers.1.mlp.down_proj.weight"
    mean = torch.stack([part.mean_square[name] for part in parts]).mean(0)
    torch.testing.assert_close(together.mean_square[name], mean)


def one_layer(rope: Rope | None, model_type: str = "llama") -> DecoderSpec:
    spec = spec_of(model_type=model_type, num_hidden_layers=1, head_dim=4)
    return msgspec.structs.replace(spec, layers=(LayerSpec(rope),))


def test_scaling_by_hand() -> None:
    keys = torch.tensor([[1.0, 4.0, 2.0, 8.0], [1.0, 1.0, 1.0, 1.0]])
    values = torch.tensor([[3.0, 12.0, 6.0, 6.0], [12.0, 3.0, 6.0, 6.0]])
    [scaled] = KvScaling.from_calibration(one_layer(Rope(1e4, 4)), [(keys, values)]).layers
    # Channels 0 and 2 rotate into each other, and so do 1 and 3: largest 2 8 2 8 and 1 1 1 1,
    # whose geometric mean is 2; that of the values is 6.
    factors = torch.tensor([[1.0, 0.25, 1.0, 0.25], [2.0, 2.0, 2.0, 2.0]])
    torch.testing.assert_close(scaled.key, factors)
    torch.testing.assert_close(scaled.value, 6 / values)
    assert scaled.key_range == pytest.approx(2)
    assert scaled.value_range == pytest.approx(6)


def test_one_factor_for_a_whole_value_head() -> None:
    values = torch.tensor([[3.0, 1.0, 0.0, 2.0], [12.0, 0.0, 0.0, 0.0]])
    [scaled] = KvScaling.from_calibration(
        one_layer(None), [(torch.ones(2, 4), values)], values="head"
    ).layers
    torch.testing.assert_close(scaled.value, torch.tensor([[2.0] * 4, [0.5] * 4]))
    assert scaled.value_range == pytest.approx(6)


def test_one_range_for_keys_and_values() -> None:
    keys, values = torch.full((2, 4), 2.0), torch.full((2, 4), 8.0)
    [scaled] = KvScaling.from_calibration(one_layer(None), [(keys, values)], shared=True).layers
    assert scaled.key_range == scaled.value_range == pytest.approx(4)
    torch.testing.assert_close(scaled.key, torch.full((2, 4), 2.0))
    torch.testing.assert_close(scaled.value, torch.full((2, 4), 0.5))


@pytest.mark.parametrize(
    ("rope", "largest"),
    [
        (None, [1.0, 4.0, 2.0, 8.0]),
        (Rope(1e4, 2), [4.0, 4.0, 2.0, 8.0]),
        (Rope(1e4, 4), [2.0, 8.0, 2.0, 8.0]),
    ],
    ids=["no-rotation", "half-rotated", "rotated"],
)
def test_channels_that_rotate_together_share_a_factor(
    rope: Rope | None, largest: list[float]
) -> None:
    keys = torch.tensor([[1.0, 4.0, 2.0, 8.0]] * 2)
    [scaled] = KvScaling.from_calibration(one_layer(rope), [(keys, torch.ones(2, 4))]).layers
    spread = scaled.key_range / scaled.key
    assert spread.tolist() == [pytest.approx(largest)] * 2


def test_heads_that_share_a_norm_share_their_factors() -> None:
    keys = torch.tensor([[1.0, 1.0, 1.0, 1.0], [4.0, 1.0, 1.0, 9.0]])
    spec = one_layer(None, "qwen3")
    [scaled] = KvScaling.from_calibration(spec, [(keys, torch.ones(2, 4))]).layers
    spread = scaled.key_range / scaled.key
    assert spread.tolist() == [pytest.approx([4, 1, 1, 9])] * 2


def test_a_dead_channel_keeps_its_query_finite() -> None:
    keys = torch.tensor([[1.0, 1e-6, 1.0, 1e-6]] * 2)
    values = torch.tensor([[1.0] * 4, [1e-6] * 4])
    [scaled] = KvScaling.from_calibration(one_layer(None), [(keys, values)]).layers
    assert float(scaled.key.max() / scaled.key.min()) == pytest.approx(1000)
    assert float(scaled.value.max() / scaled.value.min()) == pytest.approx(1000)
