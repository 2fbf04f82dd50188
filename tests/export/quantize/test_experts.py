"""Statistics of each expert, and experts in a graph as their source quantized them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgelm.checkpoint.quantized.fp4 import mxfp4_values
from edgelm.checkpoint.source import open_checkpoint
from edgelm.devices.kernels import kernels_of
from edgelm.export.precision.legalize import legalize
from edgelm.export.precision.source import assign_source
from edgelm.export.quantize.calibrate import calibrate
from edgelm.export.quantize.input_stats import InputStats
from edgelm.export.quantize.methods import METHODS
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.quantize.source_levels import mxfp4_from_source
from edgelm.export.quantize.weights import Weights
from edgelm.export.source.reference import Reference
from edgelm.quantize.expert_sums import ExpertSums, unseen_experts
from edgelm.quantize.precision import Fp32, Int4, Int8, Mxfp4
from edgelm.quantize.rtn import quantize
from tests.checkpoints.gguf_files import write_gguf
from tests.checkpoints.models import MIXTURES, save_tiny, tiny_model
from tests.checkpoints.mxfp4_files import quantize_experts
from tests.conftest import TinyFactory
from tests.export.graphs import build_session

TOKENS = torch.from_numpy(np.random.default_rng(0).integers(3, 128, (2, 24)))


@pytest.mark.parametrize("name", MIXTURES)
def test_inputs_of_every_expert(name: str, tiny: TinyFactory) -> None:
    """What experts read adds up to the layer's inputs, and what they compute to its outputs."""
    source = tiny(name)
    last = source.checkpoint.spec.num_hidden_layers - 1
    stack = Weights(source.checkpoint).tensor_names(f"layers.{last}.mlp.experts.gate_up")[0]
    module = source.hf.get_submodule(stack.rpartition(".")[0])
    seen: list[tuple[torch.Tensor, ...]] = []
    hook = module.register_forward_hook(lambda _, inputs, output: seen.append((*inputs, output)))
    with torch.inference_mode():
        source.hf(TOKENS)
    hook.remove()
    [(hidden, chosen, _, _)] = seen
    hidden, top_k = hidden.flatten(0, -2), chosen.shape[-1]
    found = calibrate(Reference(source.checkpoint), TOKENS)
    tokens = found.expert_tokens[stack]
    assert tokens.tolist() == chosen.flatten().bincount(minlength=len(tokens)).tolist()
    total = (found.mean_square[stack] * tokens[:, None]).sum(0)
    torch.testing.assert_close(total, top_k * hidden.square().sum(0), rtol=1e-4, atol=1e-4)
    down = stack.replace("gate_up_proj", "down_proj")
    size = source.checkpoint.spec.mixtures[-1].size
    assert found.mean_square[down].shape == (len(tokens), size)


@pytest.mark.parametrize("name", MIXTURES)
def test_inner_activations_are_those_of_transformers(name: str, tiny: TinyFactory) -> None:
    from edgelm.quantize.expert_neurons import expert_neurons
    from edgelm.spec.tensor_shapes import stacked_by_input

    source = tiny(name)
    spec = source.checkpoint.spec
    mixture = spec.layers[-1].mlp
    assert mixture is not None
    weights = Weights(source.checkpoint)
    group = f"layers.{spec.num_hidden_layers - 1}.mlp.experts.down"
    module = source.hf.get_submodule(weights.tensor_names(group)[0].rpartition(".")[0])
    rows = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    inner = expert_neurons(module, mixture, 3, rows, stacked_by_input(spec.family))
    matrix = weights.matrix(group).unflatten(0, (mixture.experts, -1))[3]
    ours = inner @ matrix.T / spec.residual_multiplier  # which is folded into the matrix
    if (bias := weights.bias(group)) is not None:
        ours = ours + bias.unflatten(0, (mixture.experts, -1))[3]
    with torch.inference_mode():
        theirs = module(rows, torch.full((5, 1), 3), torch.ones(5, 1))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_experts_without_tokens_get_the_mean_of_the_others() -> None:
    sums = ExpertSums()
    sums._add("mlp.experts.gate_up_proj", 3, 0, torch.tensor([[1.0, 2.0]]))
    sums._add("mlp.experts.gate_up_proj", 3, 2, torch.tensor([[3.0, 0.0], [3.0, 0.0]]))
    means = sums.mean_square()["mlp.experts.gate_up_proj"]
    torch.testing.assert_close(means, torch.tensor([[1.0, 4.0], [19 / 3, 4 / 3], [9.0, 0.0]]))
    message = unseen_experts(sums.tokens)
    assert message is not None
    assert message.startswith("1 of 3 experts get no token of the calibration text")
    assert unseen_experts({"gate_up": torch.ones(3)}) is None


def test_each_expert_is_rounded_by_its_own_statistics(tiny: TinyFactory) -> None:
    """Also by methods that need a Hessian: experts have none."""
    checkpoint = tiny("olmoe").checkpoint
    weights, group = Weights(checkpoint), "layers.1.mlp.experts.down"
    [name] = weights.tensor_names(group)
    generator = torch.Generator().manual_seed(0)
    mean_square = torch.rand(6, 96, generator=generator) ** 4
    stats = InputStats(weights, {name: mean_square}, {})
    for method in ("rtn", "gptq"):
        quantizer = Quantizer(weights, METHODS[method], stats=stats)
        ours = quantizer.quantize(group, lambda: weights.matrix(group), Int4(32)).dequantize(96)
        experts = weights.matrix(group).chunk(6)
        each = [
            quantize(one, Int4(32), row).dequantize(96)
            for one, row in zip(experts, mean_square, strict=True)
        ]
        assert torch.equal(ours, torch.cat(each))


@pytest.fixture
def microscaled(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    save_tiny("gpt-oss", folder)
    quantize_experts(folder)
    return folder


def test_mxfp4_experts_are_kept(microscaled: Path, tmp_path: Path) -> None:
    """The graph over MXFP4 computes what one over their fp32 values does."""
    checkpoint = open_checkpoint(microscaled)
    found = assign_source(checkpoint, kernels_of("onnxruntime"), ("fp32", "int8", "int4"), Fp32())
    assert not found.converted
    kinds = {group: type(one) for group, one in found.assignment.items()}
    assert {kinds[one] for one in kinds if ".experts." in one} == {Mxfp4}
    assert {kinds[one] for one in kinds if ".experts." not in one} == {Fp32}
    tokens = TOKENS[0].numpy()
    with build_session(checkpoint, tmp_path / "kept", found.assignment) as session:
        ours = session.advance(tokens, logits=24).copy()
    with build_session(checkpoint, tmp_path / "plain") as session:
        plain = session.advance(tokens, logits=24).copy()
    assert np.abs(ours - plain).max() <= 1e-5 * np.abs(plain).max()
    size = (tmp_path / "kept" / "model.onnx.data").stat().st_size
    experts = checkpoint.spec.mixtures[0].expert_parameters(64) * 4
    assert (tmp_path / "plain" / "model.onnx.data").stat().st_size - size > 0.85 * 4 * experts


def test_mxfp4_of_a_gguf_file_is_kept(tmp_path: Path) -> None:
    """Codes and exponents for the kernel are those of the file, in the order of the model."""
    model = tiny_model("gpt-oss", swiglu_limit=7.0)
    checkpoint = open_checkpoint(write_gguf(model, tmp_path / "model.gguf", "MXFP4"))
    weights = Weights(checkpoint)
    for module in ("gate_up", "down"):
        codes, exponents = mxfp4_from_source(weights, f"layers.1.mlp.experts.{module}")
        values = mxfp4_values(codes.unflatten(2, (-1, 16)), exponents)
        stack = checkpoint.tensor(f"model.layers.1.mlp.experts.{module}_proj")
        assert torch.equal(values, stack.mT)


@pytest.mark.parametrize(("engine", "kind"), [("onnxruntime", Mxfp4), ("onnxruntime-cuda", Int8)])
def test_where_mxfp4_has_a_kernel(microscaled: Path, engine: str, kind: type) -> None:
    checkpoint = open_checkpoint(microscaled)
    precisions = ("fp32", "fp16", "int8", "int4")
    found = assign_source(checkpoint, kernels_of(engine), precisions, Fp32())
    assert isinstance(found.assignment["layers.0.mlp.experts.down"], kind)
    assert bool(found.converted) is (kind is not Mxfp4)


def test_a_group_size_that_experts_lack() -> None:
    from edgelm.errors import UnknownName
    from edgelm.export.precision.legalize import legalize

    pair = ("layers.0.mlp.experts.gate_up", "layers.0.mlp.experts.down")
    kernels = kernels_of("onnxruntime")

    def legal(first: Int4 | Int8 | Fp32 | Mxfp4, second: Int4 | Int8 | Fp32, size: int) -> object:
        columns = dict(zip(pair, (64, size), strict=True))
        found = legalize(dict(zip(pair, (first, second), strict=True)), columns, kernels)
        assert len(set(found.values())) == 1
        return found[pair[0]]

    assert legal(Int4(64), Int4(64), 64) == Int4(64)
    assert legal(Int4(128), Int4(64), 96) == Int4(32)  # rows of experts are not padded
    assert legal(Int4(64), Int8(32), 64) == Int8(32)  # the kernel has one width
    assert legal(Fp32(), Int4(64), 64) == Fp32()
    assert legal(Mxfp4(), Int4(32), 64) == Int4(32)
    with pytest.raises(UnknownName, match="experts have 64 and 40 inputs, which are not multiples"):
        legal(Int4(64), Int4(64), 40)


GGUF_OPTIONS: dict[str, dict[str, Any]] = {
    "gpt-oss": {"swiglu_limit": 7.0},
    "qwen3-moe": {"mlp_only_layers": [], "num_hidden_layers": 1},  # its router's inputs are exact
}


@pytest.mark.parametrize(
    ("name", "kind", "tolerance"), [("gpt-oss", "MXFP4", 1e-5), ("qwen3-moe", "Q8_0", 0.03)]
)
def test_the_graph_computes_with_the_experts_of_a_gguf_file(
    tmp_path: Path, name: str, kind: str, tolerance: float
) -> None:
    """The tolerance of QMoE over 8 bits is that of its int8 arithmetic."""
    model = tiny_model(name, **GGUF_OPTIONS[name])
    checkpoint = open_checkpoint(write_gguf(model, tmp_path / "model.gguf", kind))
    found = assign_source(checkpoint, kernels_of("onnxruntime"), ("fp32", "int8", "int4"), Fp32())
    assert not found.converted
    columns = {group: Weights(checkpoint).columns(group) for group in found.assignment}
    kept = legalize(found.assignment, columns, kernels_of("onnxruntime"))
    # Other matrices are multiplied in int8 arithmetic, too.
    kept = {group: one if ".experts." in group else Fp32() for group, one in kept.items()}
    tokens = TOKENS[0].numpy()
    with build_session(checkpoint, tmp_path / "kept", kept) as session:
        ours = session.advance(tokens, logits=24).copy()
    with build_session(checkpoint, tmp_path / "plain") as session:
        plain = session.advance(tokens, logits=24).copy()
    assert np.abs(ours - plain).max() <= tolerance * np.abs(plain).max()
