"""TensorRT-RTX really compiles, ahead of time and without a GPU; and says what it cannot."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from edgelm.bundle import GraphContract
from edgelm.checkpoint.source import open_checkpoint
from edgelm.devices.tensorrt_versions import RTX, TENSORRT
from edgelm.errors import BadBundle, UnknownName
from edgelm.export.graph.write import GraphFormat, write_graph
from edgelm.export.quantize.input_stats import InputStats, input_name
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.quantize.weights import Weights
from edgelm.quantize.precision import Fp8, Fp16, Int4, Int8, Nvfp4, WeightPrecision
from edgelm.runtime.engines.tensorrt.build import Job, check_dialect, compile_engine
from tests.checkpoints.models import save_tiny
from tests.conftest import Tiny, TinyFactory
from tests.slow import slow_but

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")


FP16 = Fp16()
# Those that put different ops into the graph; the rest differ in numbers only.
DECOMPOSED = (
    *("gemma2", "falcon-h1", "gemma3n", "gemma4", "qwen3", "granite-hybrid", "granite-swa"),
    *("lfm2", "nemotron-h", "qwen3.5", "starcoder2"),
    *("cohere", "cohere2", "gpt-neox", "phi"),
)
FAMILIES = [
    *("gemma2", "gemma3", "llama-untied", "olmo2", "phi3-partial", "qwen3", "smollm3"),
    *(
        "apertus",
        "arcee",
        "cohere",
        "cohere2",
        "exaone4",
        "falcon-h1",
        "falcon-h1-norm",
        "gemma3n",
        "gemma4",
        "gemma4-dense",
        "glm4",
        "gpt-neox",
        "granite-hybrid",
        "granite-swa",
        "hunyuan",
        "lfm2",
        "ministral3",
        "nemotron-h",
        "phi",
        "qwen3.5",
        "stablelm-parallel",
        "starcoder2",
    ),
]
# In `make test`: one of each kind of layer.
COMPILED = ("gemma3", "gemma3n", "gemma4", "llama-untied", "lfm2", "nemotron-h", "qwen3.5")


TWO: dict[str, Any] = {"num_hidden_layers": 2}
# Two layers, one of each kind where there are kinds: compiling a layer again shows nothing new.
LAYERS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("gemma2", "llama-untied", "olmo2", "phi3-partial", "qwen3", "apertus"), TWO),
    **dict.fromkeys(("arcee", "glm4", "hunyuan", "ministral3"), TWO),
    **dict.fromkeys(("cohere", "gpt-neox", "phi", "stablelm-parallel", "starcoder2"), TWO),
    "cohere2": TWO | {"layer_types": ["sliding_attention", "full_attention"]},
    "gemma3": TWO | {"layer_types": ["sliding_attention", "full_attention"]},
    "gemma3n": {
        "num_hidden_layers": 3,
        "num_kv_shared_layers": 1,
        "intermediate_size": [96, 64, 96],
        "activation_sparsity_pattern": [0.9, 0.0, 0.0],
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    },
    "gemma4": {
        "num_hidden_layers": 3,
        "num_kv_shared_layers": 1,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    },
    "gemma4-dense": TWO | {"layer_types": ["sliding_attention", "full_attention"]},
    "lfm2": TWO | {"layer_types": ["conv", "full_attention"]},
    "falcon-h1": TWO,
    "falcon-h1-norm": TWO,
    "granite-hybrid": TWO | {"layer_types": ["linear_attention", "full_attention"]},
    "nemotron-h": {"layers_block_type": ["linear_attention", "full_attention", "mlp"]},
    "qwen3.5": TWO | {"layer_types": ["linear_attention", "full_attention"]},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyFactory:
    """The tiny models with fewer layers."""

    def saved(name: str) -> Tiny:
        folder = tmp_path_factory.mktemp(name)
        model = save_tiny(name, folder, **LAYERS.get(name, {} if name in FAMILIES else TWO))
        return Tiny(folder, model, open_checkpoint(folder))

    return cache(saved)


def graph(
    tiny: TinyFactory,
    folder: Path,
    name: str = "llama",
    precision: WeightPrecision = FP16,
    dialect: str = "standard",
    batch: bool = False,
) -> GraphContract:
    source = tiny(name)
    weights = Weights(source.checkpoint)
    quantizer = Quantizer(weights, positive_scales=dialect != "ort")
    assignment = dict.fromkeys(weights.groups(), precision)
    form = GraphFormat(dialect, kv="fp16", activations="fp16", context=64, batch=batch)
    return write_graph(folder, quantizer, assignment, form).contract


def job(
    folder: Path, contract: GraphContract, *compute_capabilities: int, profiles: int = 1
) -> Job:
    return Job(
        folder / contract.file,
        contract,
        RTX,
        16,
        64,
        compute_capabilities=compute_capabilities,
        profiles=profiles,
    )


@pytest.mark.parametrize(
    ("name", "dialect"),
    [
        *slow_but(
            ((name, "standard") for name in FAMILIES),
            ((name, "standard") for name in COMPILED),
        ),
        *slow_but(
            ((name, "decomposed") for name in DECOMPOSED),
            [("granite-hybrid", "decomposed")],
        ),
    ],
)
def test_every_family_compiles(name: str, dialect: str, tiny: TinyFactory, tmp_path: Path) -> None:
    said: list[str] = []
    contract = graph(tiny, tmp_path, name, dialect=dialect)
    built = compile_engine(job(tmp_path, contract, 89), said.append)
    assert built.content.nbytes > 1000
    assert built.version.startswith("1.")
    assert said[0].startswith("compiling with tensorrt-rtx 1.")


def test_one_engine_for_several_gpus(tiny: TinyFactory, tmp_path: Path) -> None:
    contract = graph(tiny, tmp_path, precision=Int4(group_size=32, symmetric=True))
    one = compile_engine(job(tmp_path, contract, 86), lambda _: None)
    three = compile_engine(job(tmp_path, contract, 86, 89, 120, profiles=2), lambda _: None)
    assert three.content.nbytes > one.content.nbytes


@pytest.mark.parametrize("precision", [Int8(group_size=0), Int4(group_size=32, symmetric=True)])
def test_quantized_weights_compile(
    precision: WeightPrecision, tiny: TinyFactory, tmp_path: Path
) -> None:
    contract = graph(tiny, tmp_path, precision=precision)
    assert compile_engine(job(tmp_path, contract, 80, 120), lambda _: None).content.nbytes > 1000


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("gemma4", Int8(group_size=0)),
        ("gemma4", Int4(group_size=32, symmetric=True)),
        pytest.param("gemma3n", Int4(group_size=32, symmetric=True), marks=pytest.mark.slow),
    ],
)
def test_a_quantized_table_for_every_layer_compiles(
    name: str, precision: WeightPrecision, tiny: TinyFactory, tmp_path: Path
) -> None:
    contract = graph(tiny, tmp_path, name, precision=precision)
    assert compile_engine(job(tmp_path, contract, 89), lambda _: None).content.nbytes > 1000


def test_turing_has_no_int4(tiny: TinyFactory, tmp_path: Path) -> None:
    contract = graph(tiny, tmp_path, precision=Int4(group_size=32, symmetric=True))
    with pytest.raises(UnknownName, match=r"sm75.*int4.*; choose another --precision"):
        compile_engine(job(tmp_path, contract, 75), lambda _: None)


def test_nvfp4_compiles_for_blackwell_only(tiny: TinyFactory, tmp_path: Path) -> None:
    contract = graph(tiny, tmp_path, precision=Nvfp4())
    assert compile_engine(job(tmp_path, contract, 120), lambda _: None).content.nbytes > 1000
    with pytest.raises(UnknownName, match=r"sm89.*; choose another --precision"):
        compile_engine(job(tmp_path, contract, 89), lambda _: None)


def test_a_gpu_that_it_does_not_compile_for(tiny: TinyFactory, tmp_path: Path) -> None:
    contract = graph(tiny, tmp_path)
    with pytest.raises(UnknownName, match=r"does not compile for SM 87; it has 75, 80, 86, 89, "):
        compile_engine(job(tmp_path, contract, 87), lambda _: None)


@pytest.mark.parametrize("damage", ["cut", "text"])
def test_a_damaged_graph(damage: str, tiny: TinyFactory, tmp_path: Path) -> None:
    contract = graph(tiny, tmp_path)
    path = tmp_path / contract.file
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"not a graph")
    with pytest.raises(BadBundle, match=r"TensorRT 1\..* cannot read .*model\.onnx"):
        compile_engine(job(tmp_path, contract, 89), lambda _: None)


def test_fused_ops_of_onnx_runtime_are_refused(tiny: TinyFactory, tmp_path: Path) -> None:
    contract = graph(tiny, tmp_path, dialect="ort")
    with pytest.raises(BadBundle, match=r"compiles the standard and decomposed dialect, .* ort;"):
        compile_engine(job(tmp_path, contract, 89), lambda _: None)


def test_an_old_version_gets_a_word_on_dialects(tiny: TinyFactory, tmp_path: Path) -> None:
    contract = graph(tiny, tmp_path)
    with pytest.raises(BadBundle, match=r"tensorrt 10\.3\.0 compiles the decomposed dialect, this"):
        check_dialect(TENSORRT, "10.3.0", contract)


def test_a_batch_axis_compiles(tiny: TinyFactory, tmp_path: Path) -> None:
    contract = graph(tiny, tmp_path, "gemma3", batch=True)
    assert contract.takes_batches
    assert compile_engine(job(tmp_path, contract, 89), lambda _: None).content.nbytes > 1000


def test_fp8_needs_ada(tiny: TinyFactory, tmp_path: Path) -> None:
    source = tiny("llama")
    weights = Weights(source.checkpoint)
    names = [input_name(weights, group) for group in weights.groups()]
    ones = dict.fromkeys(names, torch.ones(1))
    quantizer = Quantizer(weights, stats=InputStats(weights, ones, ones), positive_scales=True)
    assignment = dict.fromkeys(weights.groups(), Fp8())
    form = GraphFormat("standard", kv="fp16", activations="fp16", context=64)
    contract = write_graph(tmp_path, quantizer, assignment, form).contract
    assert compile_engine(job(tmp_path, contract, 89), lambda _: None).content.nbytes > 1000
    with pytest.raises(UnknownName, match=r"sm86.*fp8.*; choose another --precision"):
        compile_engine(job(tmp_path, contract, 86), lambda _: None)
