import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgelm.bundle.records.gates import SourceCheck
from edgelm.checkpoint.source import Checkpoint, open_checkpoint
from edgelm.errors import BadCheckpoint, GateFailed
from edgelm.export.source.reference import Reference
from edgelm.export.source_check import second_opinion
from edgelm.export.source_check.second_opinion import check_source
from tests.checkpoints.gguf_files import ARCHITECTURES, write_gguf
from tests.checkpoints.models import TINY, save_tiny, tiny_model
from tests.checkpoints.weight_folders import INDEX, edit_config, store_shards, tensors_of
from tests.conftest import TinyFactory
from tests.core.checkpoint.gguf.test_config import llama3_factors

LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
TOKENS = torch.randint(3, 128, (2, 64), generator=torch.Generator().manual_seed(1))


def opinion(checkpoint: Checkpoint, scratch: Path, *, context: int = 128) -> SourceCheck:
    reference = Reference(checkpoint, context=context)
    return check_source(reference, TOKENS, context=context, scratch=scratch)


@pytest.mark.parametrize("name", TINY)
def test_every_family_is_read_as_transformers_reads_it(
    name: str, tiny: TinyFactory, tmp_path: Path
) -> None:
    found = opinion(tiny(name).checkpoint, tmp_path)
    assert found.agrees
    assert found.layers == tiny(name).checkpoint.spec.num_hidden_layers
    assert found.reach == 128
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("metadata", [..., None, [], "all"])
def test_an_index_without_metadata_is_completed(
    metadata: Any, tiny: TinyFactory, tmp_path: Path
) -> None:
    folder, scratch = tmp_path / "model", tmp_path / "scratch"
    shutil.copytree(tiny("llama").folder, folder)
    scratch.mkdir()
    tensors = tensors_of(folder)
    names = sorted(tensors)
    store_shards(folder, *({name: tensors[name] for name in names[i::2]} for i in range(2)))
    index = json.loads((folder / INDEX).read_text()) | {"metadata": metadata}
    if metadata is ...:
        del index["metadata"]
    (folder / INDEX).write_text(json.dumps(index))
    assert opinion(open_checkpoint(folder), scratch).agrees
    assert list(scratch.iterdir()) == []


def test_another_form_of_results_changes_nothing(tiny: TinyFactory, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny("llama").folder, folder)
    edit_config(folder, return_dict=False, output_hidden_states=True, output_attentions=True)
    assert opinion(open_checkpoint(folder), tmp_path).agrees


def test_generation_settings_that_transformers_refuses(tiny: TinyFactory, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny("llama").folder, folder)
    (folder / "generation_config.json").write_text('{"max_new_tokens": -5}')
    with pytest.raises(
        BadCheckpoint, match=r"generation_config\.json: transformers cannot load it"
    ):
        opinion(open_checkpoint(folder), tmp_path)


def test_limited_time_steps_of_prompts_are_no_difference(tmp_path: Path) -> None:
    """Neither model applies `time_step_min` (edgelm.checkpoint.meta_model)."""
    save_tiny("nemotron-h", tmp_path / "model", time_step_min=0.1)
    assert opinion(open_checkpoint(tmp_path / "model"), tmp_path).agrees


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"])
def test_a_gguf_file_is_compared_apart_from_its_neighbours(name: str, tmp_path: Path) -> None:
    model = save_tiny(name, tmp_path / "model")
    assert model.config.model_type in ARCHITECTURES
    path = write_gguf(model, tmp_path / "model.gguf")
    (tmp_path / "config.json").write_text("{")
    assert opinion(open_checkpoint(path), tmp_path).agrees


def test_llama3_rope_factors_of_a_gguf_file(tmp_path: Path) -> None:
    scaling = LLAMA3 | {"rope_theta": 500_000.0, "factor": 8.0}
    model = tiny_model("llama", rope_parameters=scaling, head_dim=64, tie_word_embeddings=True)
    factors = llama3_factors(500_000.0, 64, 8.0)
    path = write_gguf(model, tmp_path / "m.gguf", tensors={"rope_freqs.weight": factors})
    assert opinion(open_checkpoint(path), tmp_path).agrees


def test_a_tensor_that_is_read_otherwise_fails(tiny: TinyFactory, tmp_path: Path) -> None:
    checkpoint = tiny("llama").checkpoint
    name = "model.layers.3.mlp.down_proj.weight"

    def read(tensor: str) -> torch.Tensor:
        found = checkpoint.read(tensor)
        return found * 1.02 if tensor == name else found

    with pytest.raises(GateFailed, match="has other logits when transformers loads it"):
        opinion(_replaced(checkpoint, read=read), tmp_path)


def test_a_window_that_is_ignored_fails(tmp_path: Path) -> None:
    # 64 tokens of the beginning see no difference: it starts beyond the window.
    save_tiny("mistral", tmp_path / "model", sliding_window=100)
    checkpoint = open_checkpoint(tmp_path / "model")
    config = {**checkpoint.config, "sliding_window": None}
    with pytest.raises(GateFailed):
        opinion(_replaced(checkpoint, config=config), tmp_path)


def test_a_rope_scaling_that_is_ignored_fails(tiny: TinyFactory, tmp_path: Path) -> None:
    checkpoint = tiny("yarn-rope").checkpoint
    config = {key: value for key, value in checkpoint.config.items() if "rope" not in key}
    with pytest.raises(GateFailed):
        opinion(_replaced(checkpoint, config={**config, "rope_theta": 10_000.0}), tmp_path)


def test_nan_is_a_difference(tiny: TinyFactory, tmp_path: Path) -> None:
    checkpoint = tiny("llama").checkpoint

    def read(tensor: str) -> torch.Tensor:
        return checkpoint.read(tensor) * float("nan")

    with pytest.raises(GateFailed):
        opinion(_replaced(checkpoint, read=read), tmp_path)


def test_weights_with_which_every_reader_computes_nan(tmp_path: Path) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.norm.weight.fill_(3e38)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(BadCheckpoint, match="computes NaN or infinity in fp32, in transformers as"):
        opinion(open_checkpoint(tmp_path / "model"), tmp_path)


def test_a_tensor_that_only_we_find_is_an_error(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "model")
    checkpoint = open_checkpoint(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({key: value for key, value in tensors.items() if key != name}, file)
    kept = _replaced(checkpoint, read=lambda tensor: tensors[tensor])
    with pytest.raises(BadCheckpoint, match=r"finds no model\.layers\.1\.mlp\.up_proj"):
        opinion(kept, tmp_path)


def test_with_little_memory_the_first_layers_are_compared(
    tiny: TinyFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny("gemma3").checkpoint.spec
    layer = 4 * (spec.parameters - spec.embedding_parameters) / spec.num_hidden_layers
    room = 4 * spec.embedding_parameters + 2.5 * layer
    monkeypatch.setattr(second_opinion, "available_bytes", lambda: int(room / 0.3))
    reference = Reference(tiny("gemma3").checkpoint)
    found = check_source(reference, TOKENS, context=128, scratch=tmp_path)
    assert found.layers == 2
    assert found.agrees
    # The reference has all its layers again.
    assert reference.model.config.num_hidden_layers == 7


def test_remote_code_is_not_run(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    path.write_text(json.dumps(config))
    proof = tmp_path / "ran"
    (tmp_path / "model" / "evil.py").write_text(f"open({str(proof)!r}, 'w')\n")
    assert opinion(open_checkpoint(tmp_path / "model"), tmp_path).agrees
    assert not proof.exists()


def _replaced(checkpoint: Checkpoint, **changes: Any) -> Checkpoint:
    return replace(checkpoint, **changes)


@pytest.mark.parametrize(
    "name", ["llama", "llama-untied", "apertus", "gemma3n", "gemma4", "lfm2", "olmoe"]
)
def test_large_weights_that_transformers_cannot_load_are_streamed(
    name: str, tiny: TinyFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tiny(name).checkpoint
    monkeypatch.setattr(Checkpoint, "loads_elsewhere", False)
    monkeypatch.setattr(second_opinion, "_MAX_KEPT_BYTES", 0)
    monkeypatch.setattr(second_opinion, "available_bytes", lambda: 1)
    reads: Counter[str] = Counter()

    def read(tensor: str) -> torch.Tensor:
        reads[tensor] += 1
        return checkpoint.read(tensor)

    found = opinion(_replaced(checkpoint, read=read), tmp_path)
    assert found.agrees
    assert found.weights == "edgelm"
    assert found.layers == checkpoint.spec.num_hidden_layers  # whatever memory there is
    # By two models, at both ends of the context at least: nothing was kept in between.
    assert reads[_a_matrix(checkpoint)] >= 4


def _a_matrix(checkpoint: Checkpoint) -> str:
    shapes = checkpoint.shapes.items()
    return next(name for name, shape in shapes if ".layers.0." in name and len(shape) > 1)


def test_a_difference_shows_where_weights_are_streamed(
    tiny: TinyFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tiny("yarn-rope").checkpoint
    monkeypatch.setattr(Checkpoint, "loads_elsewhere", False)
    monkeypatch.setattr(second_opinion, "_MAX_KEPT_BYTES", 0)
    config = {key: value for key, value in checkpoint.config.items() if "rope" not in key}
    with pytest.raises(GateFailed):
        opinion(_replaced(checkpoint, config={**config, "rope_theta": 10_000.0}), tmp_path)
