"""Embedding models as sentence-transformers saves them, tiny and random."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import processors

from tests.checkpoints.models import tiny_model
from tests.checkpoints.tiny_chat import VOCAB, tiny_tokenizer

QUERY = "Instruct: find the passage that answers\nQuery:"
CONTEXT = 256
END = 2  # </s>, which the tokenizer adds, as that of Qwen3-Embedding adds <|endoftext|>


def save_sentence_model(
    folder: Path,
    name: str = "qwen3",
    *,
    pooling: str = "lasttoken",
    normalize: bool = True,
    prefix: bool = False,
    **over: Any,
) -> Path:
    """Save a tiny model with a sentence-transformers layout.

    Without `prefix`, tensors have the names of a base model (Qwen3Model), without its head.
    """
    model = tiny_model(name, vocab_size=VOCAB, max_position_embeddings=CONTEXT, **over)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            if parameter.ndim > 1:
                parameter *= 0.4
    (model if prefix else model.model).save_pretrained(folder)
    if prefix:
        _drop_head(folder / "model.safetensors")
    tokenizer = tiny_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", END)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules += [("2_Normalize", "Normalize")] if normalize else []
    write(folder, "modules.json", [module(at, *one) for at, one in enumerate(modules)])
    flags = {f"pooling_mode_{one}": one == pooling for one in ("lasttoken", "mean", "cls")}
    flags["pooling_mode_mean_tokens"] = flags.pop("pooling_mode_mean")
    flags["pooling_mode_cls_token"] = flags.pop("pooling_mode_cls")
    width = {"word_embedding_dimension": model.config.hidden_size}
    write(folder, "1_Pooling/config.json", width | flags)
    prompts = {"prompts": {"query": QUERY, "document": ""}, "default_prompt_name": None}
    write(folder, "config_sentence_transformers.json", prompts)
    write(folder, "sentence_bert_config.json", {"max_seq_length": 200, "do_lower_case": False})
    return folder


def module(index: int, path: str, kind: str) -> dict[str, Any]:
    """An entry of modules.json."""
    name = f"sentence_transformers.models.{kind}"
    return {"idx": index, "name": str(index), "path": path, "type": name}


def write(folder: Path, name: str, value: Any) -> None:
    """Write a file of JSON."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def change(folder: Path, name: str, **fields: Any) -> None:
    """Set fields of a file of JSON."""
    write(folder, name, json.loads((folder / name).read_text()) | fields)


def _drop_head(path: Path) -> None:
    tensors = {name: one for name, one in load_file(path).items() if name != "lm_head.weight"}
    save_file(tensors, path, metadata={"format": "pt"})
