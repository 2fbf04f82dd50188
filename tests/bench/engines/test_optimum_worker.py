"""optimum's worker with a fake `optimum`, which does not install beside our transformers."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

VOCAB = 16
CONFIG = SimpleNamespace(
    hidden_size=8,
    num_attention_heads=2,
    num_hidden_layers=3,
    num_key_value_heads=1,
    vocab_size=VOCAB,
)


class FakeModel:
    """The likeliest next token is the sum of all tokens so far; its cache is their list."""

    config = CONFIG

    @classmethod
    def from_pretrained(cls, folder: Path, **options: Any) -> "FakeModel":
        assert options["local_files_only"]
        assert options["session_options"].intra_op_num_threads == 2
        assert (folder / options["file_name"]).is_file()
        return cls()

    def __call__(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        past_key_values: list[int] | None,
        use_cache: bool,
    ) -> SimpleNamespace:
        assert use_cache
        past = past_key_values or []
        tokens = [*past, *input_ids[0].tolist()]
        assert attention_mask.shape == (1, len(tokens))
        sums = torch.tensor(tokens).cumsum(0)[len(past) :] % VOCAB
        logits = torch.nn.functional.one_hot(sums, VOCAB).float()[None]
        return SimpleNamespace(logits=logits, past_key_values=tokens)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    fake: Any = ModuleType("optimum.onnxruntime")
    fake.ORTModelForCausalLM = FakeModel
    monkeypatch.setitem(sys.modules, "optimum", ModuleType("optimum"))
    monkeypatch.setitem(sys.modules, "optimum.onnxruntime", fake)
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"{name} 1.0")
    name = "edgelm.bench.engines.optimum_worker"
    worker = importlib.import_module(name).Optimum()
    (tmp_path / "model_quantized.onnx").write_bytes(bytes(1000))
    loaded = worker.load({"path": str(tmp_path), "context": 64, "threads": 2})
    assert loaded["weight_bytes"] == 1000
    # keys and values of 3 layers with one head of 4, fp32
    assert loaded["kv_bytes"] == 64 * 2 * 4 * 3 * 4
    yield worker
    sys.modules.pop(name)


def test_steps_continue_the_prompt(engine: Any) -> None:
    engine.prefill(np.array([5, 6]))
    engine.step(7)
    assert engine.cache == [5, 6, 7]
    engine.reset()
    engine.step(4)
    assert engine.cache == [4]


def test_logits_are_those_of_every_position(engine: Any) -> None:
    engine.prefill(np.array([9]))
    rows = engine.logits(np.array([5, 6, 7]))
    assert rows.shape == (3, VOCAB)
    assert rows.argmax(-1).tolist() == [5, 11, 2]


def test_a_folder_with_two_graphs_is_an_error(engine: Any, tmp_path: Path) -> None:
    (tmp_path / "decoder.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match="holds 2 ONNX graphs; expected one"):
        engine.load({"path": str(tmp_path), "context": 64, "threads": 2})
