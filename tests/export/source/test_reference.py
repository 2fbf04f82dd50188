"""The streamed reference computes what Hugging Face computes, without holding its weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from edgelm.checkpoint.adapter.lora import read_lora
from edgelm.checkpoint.adapter.merge import merged
from edgelm.checkpoint.source import open_checkpoint
from edgelm.export.source import head
from edgelm.export.source.reference import Reference
from edgelm.files import file_range
from tests.checkpoints.models import TINY, tiny_model
from tests.checkpoints.own_sizes import save_own_sizes
from tests.conftest import Tiny, TinyFactory

TOKENS = torch.from_numpy(np.random.default_rng(0).integers(3, 128, (2, 40)))


@pytest.fixture(params=sorted(TINY))
def source(request: pytest.FixtureRequest, tiny: TinyFactory) -> Tiny:
    return tiny(request.param)


def test_hidden_states_and_logits_are_hugging_faces(source: Tiny) -> None:
    reference = Reference(source.checkpoint)
    with torch.inference_mode():
        expected = source.hf(TOKENS)
        states = source.hf.base_model(TOKENS).last_hidden_state
    hidden = reference.hidden_states(TOKENS)
    torch.testing.assert_close(hidden, states, rtol=1e-5, atol=1e-5)
    logits = reference.logits(hidden.flatten(0, 1), reference.head())
    torch.testing.assert_close(logits, expected.logits.flatten(0, 1), rtol=1e-5, atol=1e-4)


def test_a_large_head_is_read_for_each_product(
    tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = Reference(tiny("llama-untied").checkpoint)
    hidden = reference.hidden_states(TOKENS).flatten(0, 1)
    expected = reference.logits(hidden, reference.head())
    monkeypatch.setattr(head, "_LARGE", 0)
    monkeypatch.setattr("edgelm.export.source.reference._PART", 64 * 50)
    in_file = reference.head()
    assert isinstance(in_file, head.HeadInFile)
    assert [len(part) for part in in_file.split(50)] == [50, 50, 28]
    torch.testing.assert_close(reference.logits(hidden, in_file), expected)


@pytest.mark.parametrize("kind", ["plain", "adapter", "own sizes"])
def test_a_large_head_is_read_once_for_a_product(
    tiny: TinyFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "own sizes":
        checkpoint = open_checkpoint(save_own_sizes("llama-untied", tmp_path))
    else:
        checkpoint = tiny("llama-untied").checkpoint
    if kind == "adapter":
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(
            tiny_model("llama-untied"), peft.LoraConfig(r=2, target_modules=["q_proj"])
        )
        model.save_pretrained(tmp_path)
        checkpoint = merged(checkpoint, read_lora(tmp_path))
    monkeypatch.setattr(head, "_LARGE", 0)
    monkeypatch.setattr("edgelm.export.source.reference._PART", 64 * 8)
    reference = Reference(checkpoint)
    hidden = torch.randn(3, checkpoint.spec.hidden_size)
    expected = hidden @ checkpoint.tensor("lm_head.weight").float().T
    counts: list[int] = []
    fill = file_range._fill

    def counted(file: Any, out: memoryview) -> None:
        counts.append(len(out))
        fill(file, out)

    monkeypatch.setattr(file_range, "_fill", counted)
    in_file = reference.head()
    assert not counts
    torch.testing.assert_close(reference.logits(hidden, in_file), expected)
    assert sum(counts) == 128 * 64 * 4  # the vocabulary, the hidden size, fp32


def test_weights_are_dropped_after_use(source: Tiny) -> None:
    reference = Reference(source.checkpoint)
    reference.hidden_states(TOKENS)
    names = {name for name, _ in reference.model.named_parameters()}
    on_meta = {name for name, value in reference.model.named_parameters() if value.is_meta}
    assert on_meta == names != set()


def test_each_tensor_is_read_once_a_pass(tiny: TinyFactory) -> None:
    source = tiny("qwen3")
    read: list[str] = []

    class Counting:
        def __getattr__(self, name: str) -> object:
            return getattr(source.checkpoint, name)

        def tensor(self, name: str) -> torch.Tensor:
            read.append(name)
            return source.checkpoint.tensor(name)

        def rows(self, name: str, rows: torch.Tensor) -> torch.Tensor:
            return self.tensor(name)[rows]

    Reference(Counting()).hidden_states(TOKENS)  # type: ignore[arg-type]
    expected = set(source.checkpoint.shapes) - {"lm_head.weight"}
    assert sorted(read) == sorted(expected)


def test_cached_weights_are_read_once_for_several_calls(tiny: TinyFactory) -> None:
    reference = Reference(tiny("llama").checkpoint)
    hidden = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(0))
    mlp: Any = reference.layers[0].mlp
    with reference.cached_reads(), torch.inference_mode():
        first = mlp(hidden)
        assert reference._cached is not None
        assert sorted(reference._cached) == [
            f"model.layers.0.mlp.{part}_proj.weight" for part in ("down", "gate", "up")
        ]
        torch.testing.assert_close(mlp(hidden), first)
    assert reference._cached is None


def test_override_stands_in_for_a_weight(tiny: TinyFactory) -> None:
    source = tiny("llama")
    reference = Reference(source.checkpoint)
    before = reference.hidden_states(TOKENS)
    name = "model.layers.2.mlp.down_proj.weight"
    reference.overrides = {name: torch.zeros(64, 96)}
    changed = reference.hidden_states(TOKENS)
    reference.overrides = {}
    assert (changed - before).abs().max() > 0.01
    torch.testing.assert_close(reference.hidden_states(TOKENS), before, rtol=0, atol=0)


def test_building_one_leaves_torch_as_it_was(tiny: TinyFactory) -> None:
    Reference(tiny("llama").checkpoint)
    layer = torch.nn.Linear(2, 2)
    assert not layer.weight.is_meta
    assert layer.weight.requires_grad


def test_half_precision_sources_run_in_fp32(tmp_path: Path) -> None:
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.inference_mode():
        expected = model(TOKENS, output_hidden_states=True).hidden_states[-1]
    hidden = Reference(open_checkpoint(tmp_path)).hidden_states(TOKENS)
    assert hidden.dtype == torch.float32
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-4)
