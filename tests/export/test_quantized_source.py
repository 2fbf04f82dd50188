"""From a quantized checkpoint to a bundle: levels are kept, and the graph computes with them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgelm.checkpoint.source import Checkpoint, open_checkpoint
from edgelm.devices.kernels import KERNELS
from edgelm.errors import BadInput
from edgelm.export.cli import main
from edgelm.export.pipeline import export_model
from edgelm.export.precision.source import assign_source
from edgelm.export.source.reference import Reference
from edgelm.quantize.precision import Fp32, Int4, Int8
from tests.checkpoints.quantized_folders import (
    AWQ,
    GPTQ,
    Grid,
    awq_parts,
    gptq_parts,
    modelopt_int4_parts,
    random_grid,
    replace_matrices,
)
from tests.checkpoints.weight_folders import Tensors
from tests.conftest import TinyFactory
from tests.export.graphs import DialectName, build_session

TOKENS = np.arange(3, 43)


def as_gptq(orders: dict[int, torch.Tensor]) -> Any:
    """GPTQ with act-order, where matrices with the same number of inputs share an order."""

    def parts(grid: Grid) -> Tensors:
        order = orders.setdefault(grid.levels.shape[1], grid.order)
        return gptq_parts(Grid(4, grid.levels, grid.scales, grid.zeros, order))

    return parts


def with_factors(grid: Grid) -> Tensors:
    factors = torch.linspace(0.5, 2, grid.levels.shape[1])
    return modelopt_int4_parts(grid) | {"pre_quant_scale": factors}


SOURCES: dict[str, tuple[Any, Any, bool]] = {
    "awq": (awq_parts, AWQ, False),
    "act-order": (as_gptq({}), GPTQ | {"desc_act": True}, True),
    "factors": (with_factors, {"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"}, False),
}


def quantize(folder: Path, name: str) -> None:
    parts, config, act_order = SOURCES[name]

    def stored(_: str, weight: torch.Tensor) -> Tensors:
        grid = random_grid(weight, symmetric=True, act_order=act_order)
        # As spread as the weight was, so that rounding costs what it costs a model.
        scales = grid.scales * float(weight.std() / grid.matrix.std())
        return parts(Grid(4, grid.levels, scales, grid.zeros, grid.order))  # type: ignore[no-any-return]

    replace_matrices(folder, stored, config)


def logits_of(checkpoint: Checkpoint) -> torch.Tensor:
    reference = Reference(checkpoint)
    hidden = reference.hidden_states(torch.from_numpy(TOKENS)[None])[0]
    return reference.logits(hidden, reference.head())


@pytest.mark.parametrize("dialect", ["standard", "decomposed"])
@pytest.mark.parametrize("source", SOURCES)
def test_the_graph_computes_with_the_levels(
    tiny: TinyFactory, tmp_path: Path, source: str, dialect: DialectName
) -> None:
    folder = shutil.copytree(tiny("llama").folder, tmp_path / "model")
    quantize(folder, source)
    checkpoint = open_checkpoint(folder)
    found = assign_source(checkpoint, KERNELS["tensorrt-rtx"], ["int4"], Fp32())
    assert found.converted == ()
    with build_session(
        checkpoint, tmp_path / "graph", found.assignment, dialect=dialect
    ) as session:
        logits = torch.from_numpy(session.advance(TOKENS, logits=len(TOKENS)).copy())
    expected = logits_of(checkpoint)
    assert float((logits - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize("source", SOURCES)
def test_export_keeps_the_levels(tiny_chat: Path, tmp_path: Path, source: str) -> None:
    folder = shutil.copytree(tiny_chat, tmp_path / "model")
    quantize(folder, source)
    lines: list[str] = []
    manifest = export_model(folder, tmp_path / "bundle", progress=lines.append)
    assert manifest.precision["layers.0.mlp.down"] == Int4(32, symmetric=True)
    assert manifest.precision["lm_head"] == Fp32()
    assert manifest.gate is not None
    assert manifest.gate.passed
    assert manifest.kv == "int8"
    # What is left is the cache and the rounding of inputs in the kernels.
    assert manifest.gate.figures.kl < 5e-3
    assert manifest.source is not None
    assert manifest.source.weights == "edgelm"
    assert manifest.source.agrees
    text = "\n".join(lines)
    assert "levels of 16 of 17 matrices are kept: 16 as int4 g32" in text
    assert "lm_head is not quantized in the source" in text


def test_exceptions_and_other_precisions(tiny_chat: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_chat, tmp_path / "model")
    quantize(folder, "awq")
    manifest = export_model(
        folder, tmp_path / "bundle", exceptions={"lm_head": "int8"}, kv="fp32", gate="off"
    )
    assert manifest.precision["lm_head"] == Int8()
    assert manifest.precision["layers.1.attention.qkv"] == Int4(32, symmetric=True)
    with pytest.raises(BadInput, match="leave out --group-size"):
        export_model(folder, tmp_path / "other", precision="source", group_size=32)
    with pytest.raises(BadInput, match="is not quantized, so there is nothing to keep"):
        export_model(tiny_chat, tmp_path / "other", precision="source")


def test_the_plan_says_so(
    tiny_chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny_chat, tmp_path / "model")
    quantize(folder, "awq")
    assert main([str(folder), "--plan", "--target", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "source, int8 cache" in printed
    assert "AWQ, 4 bits" in printed
    assert "16 of 17 matrices are kept" in printed
    assert main([str(folder), "--plan", "--target", "jetson-orin-nano-8gb"]) == 0
    (
        folder / "model.safetensors"
    ).unlink()  # as of a hub id, of which only the configuration is read
    capsys.readouterr()
    assert main([str(folder), "--plan", "--target", "cpu"]) == 0
    alone = capsys.readouterr().out
    assert "planned from its configuration alone" in alone
    sizes = [
        next(one for one in text.splitlines() if "weights" in one) for text in (alone, printed)
    ]
    assert sizes[0] == sizes[1]
    assert main([str(tiny_chat), "--plan", "--precision", "source"]) == 2
