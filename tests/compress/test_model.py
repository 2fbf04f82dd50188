"""Teachers and students are read by the rules of export, and as transformers reads them."""

import io
import json
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from edgelm.compress.model import load_model, load_tokenizer, save_model
from edgelm.errors import BadCheckpoint
from tests.checkpoints.gguf_files import write_gguf
from tests.checkpoints.models import tiny_model
from tests.checkpoints.tiny_chat import save_tiny_chat, tiny_tokenizer
from tests.checkpoints.weight_folders import Tensors, edit_config, store, tensors_of

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TOKENS = torch.arange(3, 40)[None]
_RUNS = "raise SystemExit('a stranger\\'s code was run')\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_chat(tmp_path / "model", tie_word_embeddings=True)


def own_head(tensors: Tensors) -> Tensors:
    return tensors | {HEAD: tensors[EMBEDDING].flip(0)}


def only_the_head(tensors: Tensors) -> Tensors:
    tensors[HEAD] = tensors.pop(EMBEDDING)
    return tensors


def base_model(tensors: Tensors) -> Tensors:
    return {name.removeprefix("model."): values for name, values in tensors.items()}


@pytest.mark.parametrize("change", [own_head, only_the_head, base_model])
def test_a_teacher_is_what_transformers_loads(
    folder: Path, tmp_path: Path, change: Callable[[Tensors], Tensors]
) -> None:
    store(folder, change(tensors_of(folder)))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ours = load_model(folder)
    with torch.inference_mode():
        expected = theirs(TOKENS).logits
        torch.testing.assert_close(ours(TOKENS).logits, expected, rtol=0, atol=0)
    save_model(ours, load_tokenizer(folder), tmp_path / "student", torch.float32)
    student = load_model(tmp_path / "student")
    with torch.inference_mode():
        torch.testing.assert_close(student(TOKENS).logits, expected, rtol=0, atol=0)


def test_what_export_refuses_is_refused(folder: Path) -> None:
    tensors = tensors_of(folder)
    store(folder, tensors | {"model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(2)})
    with pytest.raises(BadCheckpoint, match="adapter"):
        load_model(folder)
    tensors["model.norm.weight"][0] = torch.nan
    store(folder, tensors)
    with pytest.raises(BadCheckpoint, match="NaN"):
        load_model(folder)


def test_a_strangers_code_is_neither_run_nor_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    names = ("configuration_evil", "modeling_evil", "tokenization_evil")
    for name in names:
        (folder / f"{name}.py").write_text(_RUNS)
    edit_config(
        folder,
        auto_map={
            "AutoConfig": "configuration_evil.Evil",
            "AutoModelForCausalLM": "modeling_evil.Evil",
        },
    )
    tokenizer = {"auto_map": {"AutoTokenizer": ["tokenization_evil.Evil", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert load_model(folder).config.model_type == "llama"
    with suppress(BadCheckpoint):  # it may have none without that code
        load_tokenizer(folder)
    assert "[y/N]" not in "".join(capsys.readouterr())
    assert sys.stdin.read() == "y\n" * 9


def test_what_lies_beside_a_gguf_file_is_not_read(folder: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    model = tiny_model("llama", vocab_size=320)
    path = write_gguf(model, alone / "model.gguf", tokenizer=tiny_tokenizer())
    text = "The miller waits until the level outside has dropped."
    expected = load_tokenizer(path)(text).input_ids
    rotated = json.loads(tiny_tokenizer().to_str())
    vocabulary = rotated["model"]["vocab"]
    rotated["model"]["vocab"] = {
        token: (index + 1) % len(vocabulary) for token, index in vocabulary.items()
    }
    (alone / "tokenizer.json").write_text(json.dumps(rotated))
    shutil.copy(folder / "config.json", alone)
    assert load_tokenizer(path)(text).input_ids == expected
