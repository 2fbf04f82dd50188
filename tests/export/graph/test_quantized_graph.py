"""A quantized graph computes what the source computes with dequantized weights."""

from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import AutoModelForCausalLM

from edgelm.export.quantize.weights import Weights
from edgelm.quantize.precision import Fp32, Int4, Int8, WeightPrecision
from edgelm.quantize.rtn import quantize
from tests.checkpoints.models import REPRESENTATIVE, TINY
from tests.conftest import Tiny, TinyFactory
from tests.export.graphs import build_session
from tests.slow import slow_but

Array = npt.NDArray[np.float32]
Assignment = dict[str, WeightPrecision]
LENGTH = 40
STEPS = 5
TOKENS = np.random.default_rng(0).integers(3, 128, LENGTH)
# Of the logits' spread. MatMulNBits rounds activations to int8 in blocks, which after four layers
# is 0.5 to 2 %; rounding weights to 4 bits makes 10 to 40 %, so a fault there cannot hide.
ACTIVATION_ERROR = 0.03


def dequantized_logits(source: Tiny, assignment: Assignment) -> Array:
    """Hugging Face's logits with every matrix replaced by what the graph stores of it."""
    checkpoint, weights = source.checkpoint, Weights(source.checkpoint)
    model = AutoModelForCausalLM.from_pretrained(source.folder, attn_implementation="eager").eval()
    for group, precision in assignment.items():
        if isinstance(precision, Fp32):
            continue
        assert isinstance(precision, Int4 | Int8)
        if weights.experts(group):
            matrix = weights.matrix(group)
            rounded = quantize(matrix, precision).dequantize(matrix.shape[1])
            [(name, stack)] = weights.unfold(group, rounded).items()
            model.get_parameter(name).data.copy_(stack)
            continue
        names = weights.tensor_names(group)
        stored = [checkpoint.tensor(name).float() for name in names]
        # The graph holds the matrix with its multiplier folded in; HF multiplies afterwards.
        factor = checkpoint.spec.residual_multiplier if group.endswith((".o", ".down")) else 1.0
        matrix = torch.cat(stored) * factor
        rounded = quantize(matrix, precision).dequantize(matrix.shape[1]) / factor
        for name, part in zip(names, rounded.split([len(t) for t in stored]), strict=True):
            model.get_parameter(name).data.copy_(part)
    with torch.inference_mode():
        logits: Array = model(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    return logits


def assert_near(ours: Array, expected: Array, limit: float) -> None:
    error = np.sqrt(np.square(ours - expected).mean())
    assert error <= limit * expected.std()


def assert_mostly_near(ours: Array, expected: Array, limit: float) -> None:
    """At most positions: at a few, rounded inputs make a router choose other experts."""
    errors = np.sqrt(np.square(ours - expected).mean(-1))
    assert np.median(errors) <= limit * expected.std()


PRECISIONS: tuple[Int4 | Int8, ...] = (Int8(32), Int4(32), Int4(16, symmetric=True))


def _cases() -> list[Any]:
    """Every precision on graphs of every kind; on other families, which pack alike, one each."""
    every = (
        "llama",
        "llama-untied",
        "phi3-partial",
        "gemma3",
        "granite",
        "lfm2",
        "qwen3.5",
        "qwen3-moe",
    )
    one_each = list(zip(sorted(TINY), cycle(PRECISIONS), strict=False))
    quick = [case for case in one_each if case[0] in REPRESENTATIVE]
    cases = dict.fromkeys([*product(every, PRECISIONS), *one_each])
    return slow_but(cases, [*quick, *product(["llama"], PRECISIONS)])


@pytest.mark.parametrize(("name", "precision"), _cases(), ids=str)
def test_all_groups(
    calm: TinyFactory, tmp_path: Path, name: str, precision: WeightPrecision
) -> None:
    source = calm(name)
    assignment = dict.fromkeys(Weights(source.checkpoint).groups(), precision)
    expected = dequantized_logits(source, assignment)
    with build_session(source.checkpoint, tmp_path, assignment) as session:
        prefilled = session.advance(TOKENS, logits=LENGTH).copy()
        session.rewind(LENGTH - STEPS)
        decoded = np.concatenate([session.advance(one).copy() for one in TOKENS[-STEPS:, None]])
    check = assert_mostly_near if source.checkpoint.spec.mixtures else assert_near
    check(prefilled, expected, ACTIVATION_ERROR)
    check(decoded, expected[-STEPS:], 2 * ACTIVATION_ERROR)


@pytest.mark.parametrize(
    "over",
    [
        {"lm_head": Int4(32)},
        {"lm_head": Int8(32), "layers.1.mlp.down": Int4(16)},
        {"layers.0.attention.qkv": Int4(64, symmetric=True), "layers.3.mlp.gate_up": Int8(16)},
        {"embedding": Int4(32, symmetric=False)},
        {"embedding": Int8(64, symmetric=False), "lm_head": Int4(16)},
    ],
    ids=["head", "head+down", "qkv+gate_up", "embedding", "both-ends"],
)
@pytest.mark.parametrize("name", ["llama", "llama-untied", "phi3", "granite"])
def test_mixtures(
    calm: TinyFactory, tmp_path: Path, name: str, over: dict[str, Int4 | Int8]
) -> None:
    source = calm(name)
    groups = Weights(source.checkpoint).groups()
    chosen = {group: precision for group, precision in over.items() if group in groups}
    assignment: Assignment = {**dict.fromkeys(groups, Fp32()), **chosen}
    expected = dequantized_logits(source, assignment)
    with build_session(source.checkpoint, tmp_path, assignment) as session:
        ours = session.advance(TOKENS, logits=LENGTH)
    assert_near(ours, expected, ACTIVATION_ERROR)


def test_groups_that_do_not_divide_the_width(calm: TinyFactory, tmp_path: Path) -> None:
    """A ffn of 96 in groups of 64 and 128: the last block is padded; the embedding is not."""
    source = calm("llama")
    for group_size in (64, 128):
        assignment = dict.fromkeys(Weights(source.checkpoint).groups(), Int8(group_size))
        expected = dequantized_logits(source, dict(assignment))
        folder = tmp_path / str(group_size)
        folder.mkdir()
        with build_session(source.checkpoint, folder, dict(assignment)) as session:
            ours = session.advance(TOKENS, logits=LENGTH)
        assert_near(ours, expected, ACTIVATION_ERROR)


def test_a_tied_table_is_stored_once(calm: TinyFactory, tmp_path: Path) -> None:
    sizes = {}
    for name in ("llama", "llama-untied"):
        (tmp_path / name).mkdir()
        with build_session(calm(name).checkpoint, tmp_path / name, Int8(32)):
            sizes[name] = (tmp_path / name / "model.onnx.data").stat().st_size
    table = 128 * 64 * (1 + 2 / 32)
    biases = 4 * 4 * (64 + 2 * 32 + 64 + 2 * 96 + 64)
    assert sizes["llama-untied"] - sizes["llama"] == pytest.approx(table + biases, abs=64 * 40)


def test_products_of_a_checked_graph_keep_their_inputs_in_fp32(
    calm: TinyFactory, tmp_path: Path
) -> None:
    """Fused with int8 inputs they would be another model than the target's (2% of the spread)."""
    checkpoint = calm("llama").checkpoint
    precision = Int4(32, symmetric=True)
    rows = []
    for name, dequantized in (("packed", False), ("dequantized", True)):
        folder = tmp_path / name
        folder.mkdir()
        with build_session(
            checkpoint, folder, precision, dialect="standard", dequantized=dequantized
        ) as session:
            rows.append(session.advance(np.arange(3, 40), logits=37).copy())
    packed, plain = rows
    assert np.abs(packed - plain).max() <= 1e-4 * plain.std()
