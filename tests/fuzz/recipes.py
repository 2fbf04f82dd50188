"""Recipes of edge-compress: fields with strange values; what is read means what it says."""

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from edgelm.compress.recipe import Recipe, read_recipe, recipe_toml
from edgelm.devices.planner.plan import plan
from edgelm.devices.profile import load_profile
from edgelm.spec.decoder import DecoderSpec
from tests.checkpoints.models import tiny_config
from tests.fuzz.bytewise import mutate_bytes
from tests.fuzz.kind import Case, Kind, Opened
from tests.fuzz.outcome import Wrong
from tests.fuzz.strange import mutate, mutate_number, strange_flat
from tests.fuzz.toml_text import dump_toml, toml

Tree = dict[str, Any]
_RECIPES: tuple[Tree, ...] = (
    {
        "teacher": "teacher",
        "data": ["train.jsonl"],
        "sequence_length": 128,
        "seed": 1,
        "max_tokens": 100_000,
        "dtype": "float32",
        "held_out": "valid.jsonl",
        "target": {
            "name": "jetson-orin-nano-8gb",
            "parameters": 0.5,
            "context": 64,
            "prompt": 128,
            "max_memory_bytes": 2 * 10**9,
            "min_tokens_per_second": 30.0,
            "precision": "int4",
            "max_first_token_ms": 900.0,
            "kv": "fp16",
        },
        "importance": {
            "samples": 16,
            "layers": "loss",
            "layer_samples": 4,
            "sequence_reduction": "mean",
        },
        "search": {
            "candidates": 8,
            "finalists": 2,
            "kd_rounds": 2,
            "round_steps": 10,
            "min_ratio": 0.3,
        },
        "distill": {
            "tokens": 100_000,
            "batch_size": 8,
            "micro_batch": 4,
            "learning_rate": 1e-4,
            "cross_entropy": 0.1,
            "warmup": 0.1,
            "weight_decay": 0.1,
            "gradient_clip": 1.0,
            "checkpoint_steps": 10,
            "cache": {},
        },
        "qad": {"precision": "int4", "tokens": 1000, "head": "int8", "symmetric": True},
        "evaluate": {"tasks": ["perplexity:valid.jsonl"], "limit": 10},
    },
    {
        "teacher": "teacher",
        "target": {"name": "cpu"},
        "vocabulary": {"size": 1000},
        "synthesize": {"documents": 10, "max_new_tokens": 8, "temperature": 0.7, "top_p": 0.9},
        "correct": {"tokens": 1000, "learning_rate": 1e-4, "batch_size": 8, "micro_batch": 4},
        "prune": {"num_hidden_layers": 2, "intermediate_size": 64, "merge_pruned_heads": True},
        "align": {"method": "dpo", "data": "pairs.jsonl", "epochs": 1.0, "learning_rate": 1e-5},
        "distill": {
            "tokens": 1000,
            "micro_batch": 8,
            "temperature": 2.0,
            "layer_map": [[1, 1]],
        },
    },
)


class Recipes(Kind):
    """What is read can be written and read again, and every number in it can be meant."""

    name = "recipe"

    def prepare(self, folder: Path) -> None:
        self.spec = DecoderSpec.from_hf(tiny_config("llama").to_dict())
        self.trees: list[Tree] = []
        for number, tree in enumerate(_RECIPES):
            path = folder / f"{number}.toml"
            path.write_text(toml(tree), encoding="utf-8")
            recipe = read_recipe(path)
            self._use(recipe)
            self.trees += [tree, msgspec.to_builtins(recipe)]  # and with its defaults

    def make(self, rng: Random, folder: Path) -> Case:
        tree = deepcopy(rng.choice(self.trees))
        path = folder / "recipe.toml"
        if rng.random() < 0.1:
            data, note = mutate_bytes(rng, toml(tree).encode())
            path.write_bytes(data)
            return Case(note)
        count = rng.choice((1, 1, 1, 2, 3))
        if rng.random() < 0.5:
            notes = [mutate_number(rng, tree) for _ in range(count)]
        else:
            notes = [mutate(rng, tree, value=strange_flat) for _ in range(count)]
        data, odd = dump_toml(rng, tree)
        path.write_bytes(data)
        return Case("; ".join([*notes, odd]))

    def check(self, folder: Path, case: Case, reference: Callable[[], None]) -> Opened:
        recipe = read_recipe(folder / "recipe.toml")
        self._use(recipe)
        again = folder / "again.toml"
        again.write_text(recipe_toml(recipe), encoding="utf-8")
        if read_recipe(again) != recipe:
            raise Wrong("written and read again it is another recipe")
        for name, number in _numbers(msgspec.to_builtins(recipe), "recipe"):
            # -1 is the embeddings' number in a map of layers
            if not math.isfinite(number) or (number < 0 and "layer_map" not in name):
                raise Wrong(f"{name} is {number}")
        return "equal"

    def _use(self, recipe: Recipe) -> None:
        """What the stages ask of a recipe before they work."""
        plan(self.spec, load_profile(recipe.target.name), recipe.target.budget.request)
        if recipe.qad:
            str(recipe.qad_precisions)
        if recipe.distill:
            training = recipe.training(recipe.distill, bf16=False)
            steps = training.steps
            rates = [training.learning_rate_at(step) for step in (0, 1, steps // 2, steps)]
            if not all(math.isfinite(rate) and rate >= 0 for rate in rates):
                raise Wrong(f"learning rates of {rates}")
            if not 1 <= training.last_step <= steps:
                raise Wrong(f"it ends at step {training.last_step} of {steps}")


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item, name)
    elif isinstance(value, int | float):
        yield name, value
