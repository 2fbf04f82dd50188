"""Text of mixtures of experts, and the operators that they become."""

from pathlib import Path

import numpy as np
import pytest
import torch

from edgelm.bundle import GraphContract
from edgelm.export.graph.write import GraphFormat, data_bytes, write_graph
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.quantize.weights import Weights
from edgelm.quantize.precision import Fp32, Int4, Int8, WeightPrecision
from tests.checkpoints.models import MIXTURES
from tests.conftest import Tiny, TinyFactory
from tests.export.graphs import cpu_session
from tests.slow import slow_but

CONTEXT = 128
PROMPT = np.random.default_rng(1).integers(3, 128, 11)
NEW = 100


def write(source: Tiny, folder: Path, precision: WeightPrecision) -> GraphContract:
    quantizer = Quantizer(Weights(source.checkpoint))
    assignment = dict.fromkeys(quantizer.weights.groups(), precision)
    form = GraphFormat("ort", "fp32", "fp32", CONTEXT)
    written = write_graph(folder, quantizer, assignment, form)
    size = (folder / "model.onnx.data").stat().st_size
    assert size == data_bytes(quantizer, assignment, form)
    return written.contract


@pytest.mark.parametrize("name", slow_but(MIXTURES, ("gpt-oss", "qwen3-moe")))
def test_greedy_text_is_that_of_transformers(name: str, tiny: TinyFactory, tmp_path: Path) -> None:
    source = tiny(name)
    graph = write(source, tmp_path, Fp32())
    with torch.inference_mode():
        theirs = source.hf.generate(
            torch.from_numpy(PROMPT)[None], max_new_tokens=NEW, do_sample=False, eos_token_id=[]
        )[0, len(PROMPT) :].tolist()
    with cpu_session(tmp_path, graph, capacity=CONTEXT, threads=1) as session:
        ours = [int(session.advance(PROMPT)[-1].argmax())]
        while len(ours) < NEW:
            ours.append(int(session.advance(np.array(ours[-1:]))[-1].argmax()))
    assert ours == theirs
    assert len(set(ours)) > 3


@pytest.mark.parametrize("precision", [Int4(32), Int8(32), Int4(32, symmetric=True)])
def test_sizes_are_known_before_anything_is_quantized(
    precision: WeightPrecision, tiny: TinyFactory, tmp_path: Path
) -> None:
    write(tiny("gpt-oss"), tmp_path, precision)
