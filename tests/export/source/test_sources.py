"""Exports of sources that are not a plain folder at the usual context."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from edgelm.bundle import verify
from edgelm.errors import GateFailed
from edgelm.export.pipeline import export_model
from edgelm.quantize.precision import Fp32, Int4
from tests.checkpoints.gguf_files import write_gguf
from tests.checkpoints.tiny_chat import VOCAB, save_tiny_chat, tiny_tokenizer
from tests.core.spec.test_rope import SCALINGS
from tests.export.graphs import cpu_session
from tests.short_texts import decoded
from tests.slow import slow_but

TOKENS = np.random.default_rng(0).integers(3, VOCAB, 40)


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_gguf_file(tiny_chat: Path, tmp_path: Path, kind: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_chat).eval()
    tokenizer = tiny_tokenizer()
    metadata = {"general.license": "mit"}
    path = write_gguf(model, tmp_path / "m.gguf", kind, tokenizer=tokenizer, metadata=metadata)
    manifest = export_model(path, tmp_path / "bundle", precision="fp32")
    verify(tmp_path / "bundle", manifest)
    assert manifest.lineage.license == "mit"
    assert manifest.lineage.revision is None
    with cpu_session(tmp_path / "bundle", manifest.graph, capacity=64, threads=1) as session:
        ours = session.advance(TOKENS, logits=40)
    with torch.inference_mode():
        expected = model(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    limit = 1e-4 if kind == "F32" else 0.2  # Q8_0 rounds the source's own weights
    assert np.abs(ours - expected).max() <= limit * np.abs(expected).max()


@pytest.mark.parametrize(("name", "kind"), [("lfm2", "F32"), ("granite", "Q8_0")])
def test_gguf_files_of_other_families(tmp_path: Path, name: str, kind: str) -> None:
    over = {"block_multiple_of": 32} if name == "lfm2" else {}
    source = save_tiny_chat(tmp_path / "source", name, context=512, **over)
    model = AutoModelForCausalLM.from_pretrained(source).eval()
    path = write_gguf(model, tmp_path / "m.gguf", kind, tokenizer=tiny_tokenizer())
    lines: list[str] = []
    precision = "source" if kind == "Q8_0" else "fp32"
    manifest = export_model(path, tmp_path / "bundle", precision=precision, progress=lines.append)
    assert any("it computes with the weights that edgelm reads" in line for line in lines)
    assert manifest.gate is not None
    assert manifest.gate.figures.kl < (1e-6 if kind == "F32" else 1e-3)
    if kind == "F32":
        with cpu_session(tmp_path / "bundle", manifest.graph, capacity=64, threads=1) as session:
            ours = session.advance(TOKENS, logits=40)
        with torch.inference_mode():
            expected = model(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
        assert np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.usefixtures("whole_texts")
def test_auto_on_a_gguf_file(tiny_chat: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_chat).eval()
    path = write_gguf(model, tmp_path / "m.gguf", "F32", tokenizer=tiny_tokenizer())
    manifest = export_model(path, tmp_path / "bundle")
    assert manifest.gate is not None
    assert manifest.gate.passed
    assert manifest.gate.gate_class == "4-bit"


FAMILIES = (
    *("llama-untied", "mistral", "qwen3", "smollm3", "granite", "olmo2", "phi3", "gemma3"),
    *("apertus", "glm4", "granite-swa", "lfm2", "qwen3.5"),
)


@pytest.mark.parametrize("name", slow_but(FAMILIES, ("gemma3", "lfm2")))
def test_families_pass_their_gates(tmp_path: Path, name: str) -> None:
    source = save_tiny_chat(tmp_path / "source", name)
    exact = export_model(source, tmp_path / "fp32", precision="fp32")
    rounded = export_model(source, tmp_path / "int8", precision="int8", gate="off")
    assert exact.gate is not None
    assert exact.gate.passed
    assert rounded.gate is not None
    assert rounded.gate.figures.kl < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(("apertus", "lfm2"), ("lfm2",)))
def test_families_in_a_mixture_within_the_gate(tmp_path: Path, name: str) -> None:
    source = save_tiny_chat(tmp_path / "source", name)
    mixed = export_model(source, tmp_path / "bundle")  # scaled, compensated, searched
    assert mixed.gate is not None
    assert mixed.gate.passed
    kinds = {type(precision) for precision in mixed.precision.values()}
    assert Int4 in kinds


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with attention so sharp that 8 bits, of weights or of the cache, are too few."""
    source = save_tiny_chat(tmp_path_factory.mktemp("fragile"))
    model = AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight *= 10
            layer.self_attn.k_proj.weight *= 5
            layer.mlp.down_proj.weight *= 4
    model.save_pretrained(source)
    return source


@pytest.mark.slow
def test_auto_leaves_a_fragile_model_as_it_is(fragile: Path, tmp_path: Path) -> None:
    manifest = export_model(fragile, tmp_path / "bundle", kv="fp32")
    assert set(manifest.precision.values()) == {Fp32()}
    assert manifest.gate is not None
    # The limits are those of the request, whatever was chosen.
    assert (manifest.gate.gate_class, manifest.gate.passed) == ("4-bit", True)
    assert manifest.gate.figures.kl < 1e-6


def test_failure_of_the_cache_alone_names_the_cache(fragile: Path, tmp_path: Path) -> None:
    # Neither `--precision auto`, which was requested, nor more bits of weights would help here.
    with decoded(64), pytest.raises(GateFailed, match="--kv fp32") as caught:
        export_model(fragile, tmp_path / "bundle", kv="int8")
    assert "--precision auto" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_was_not_requested_is_widened_before_an_export_fails(
    fragile: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    with decoded(64):
        manifest = export_model(fragile, tmp_path / "bundle", progress=lines.append)
    assert manifest.kv == "fp32"
    assert manifest.gate is not None
    assert manifest.gate.passed
    assert any("failed with an int8 cache: trying fp32" in line for line in lines)


@pytest.mark.parametrize("context", [1024, 512], ids=["beyond-the-original", "within-the-original"])
def test_longrope_is_measured_with_the_factors_it_runs_with(tmp_path: Path, context: int) -> None:
    """Sequences of 512 fit the original context of 600; a context of 1,024 does not."""
    scaling: dict[str, Any] = SCALINGS["longrope"] | {
        "rope_theta": 10_000.0,
        "original_max_position_embeddings": 600,
    }
    source = save_tiny_chat(
        tmp_path / "source",
        "phi3",
        context=2048,
        rope_parameters=scaling,
        original_max_position_embeddings=600,
    )
    manifest = export_model(source, tmp_path / "bundle", precision="fp32", context=context)
    assert manifest.gate is not None
    assert manifest.gate.passed


@pytest.mark.parametrize("context", [2, 7])
def test_a_context_of_next_to_nothing(tiny_chat: Path, tmp_path: Path, context: int) -> None:
    manifest = export_model(tiny_chat, tmp_path / "b", precision="fp32", context=context)
    assert manifest.limits.context == manifest.limits.prefill_chunk == context
    with cpu_session(tmp_path / "b", manifest.graph, capacity=context, threads=1) as session:
        assert session.advance(TOKENS[:context]).shape == (1, VOCAB)
