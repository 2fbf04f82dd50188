"""A tiny teacher with text to compress it on, and recipes for it."""

import json
from pathlib import Path
from typing import Any

import torch

from edgelm.checkpoint.student import StageRecord, StudentRecord
from edgelm.compress.model import load_model
from edgelm.compress.recipe import read_recipe
from edgelm.export.source.text import CALIBRATION
from tests.checkpoints.tiny_chat import save_tiny_chat

LENGTH = 32
TEACHER = f"""\
teacher = "teacher"
data = ["train.jsonl"]
held_out = "valid.jsonl"
sequence_length = {LENGTH}
dtype = "float32"
arithmetic = "fp32"
"""
SEARCH = """
[target]
parameters = 0.7
[importance]
samples = 16
[search]
candidates = 6
finalists = 2
kd_rounds = 2
round_steps = 2
settled_rounds = 0
held_out_rows = 4
"""
PRUNE = """
[importance]
samples = 16
[prune]
num_hidden_layers = 3
hidden_size = 48
"""
DISTILL = """
[distill]
tokens = 1024
batch_size = 4
micro_batch = 2
learning_rate = 3e-3
checkpoint_steps = 2
"""
QAD = """
[qad]
group_size = 32
tokens = 256
batch_size = 4
micro_batch = 2
"""
EVALUATE = """
[evaluate]
tasks = ["perplexity:valid.jsonl", "kl:valid.jsonl"]
limit = 4
"""
CORRECT = """
[correct]
tokens = 512
batch_size = 4
micro_batch = 2
"""


def workshop(folder: Path, **over: Any) -> Path:
    """A folder with `teacher`, `train.jsonl`, `valid.jsonl` and `chat.jsonl`."""
    save_tiny_chat(folder / "teacher", **over)
    texts = [json.loads(line)["text"] for line in CALIBRATION.read_text().splitlines()]
    write_texts(folder / "train.jsonl", [text[:1200] for text in texts])
    write_texts(folder / "valid.jsonl", [text[1200:1600] for text in texts])
    talks = [
        {
            "messages": [
                {"role": "user", "content": f"What is {number}?"},
                {"role": "assistant", "content": f"It is {number} stones."},
            ]
        }
        for number in range(16)
    ]
    (folder / "chat.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    return folder


def write_texts(path: Path, texts: list[str]) -> Path:
    """Write JSONL documents."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def write_recipe(folder: Path, *parts: str, name: str = "recipe") -> Path:
    """Write a recipe beside the teacher."""
    path = folder / f"{name}.toml"
    path.write_text("".join(parts))
    return path


def recipe_of(folder: Path, *parts: str) -> Any:
    """A recipe as it is read from a file beside the teacher."""
    return read_recipe(write_recipe(folder, TEACHER, *parts))


def stage(record: StudentRecord, name: str) -> StageRecord:
    """A stage of a record by name."""
    return next(one for one in record.stages if one.name == name)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """All weights of a checkpoint."""
    return dict(load_model(folder).named_parameters())
