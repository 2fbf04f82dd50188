"""Recipes as TOML files: reading, writing, paths relative to the file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from edgelm.compress.recipe.recipe import Recipe
from edgelm.errors import BadInput
from edgelm.files.toml_files import convert_toml, read_toml

_MOVED = {
    ("distill", "sequence_length"): "sequence_length, at the top of the recipe",
    ("distill", "seed"): "seed, at the top of the recipe",
    ("distill", "bf16"): 'arithmetic = "auto", "bf16" or "fp32", at the top of the recipe',
    ("search", "round_tokens"): "round_steps, optimizer steps of each round",
}
_RENAMED = {
    ("importance", "tokens"): "sequence_reduction",
    ("importance", "over_samples"): "batch_reduction",
    ("prune", "fold_heads"): "merge_pruned_heads",
    ("search", "scored"): "candidates",
    ("search", "rounds"): "kd_rounds",
    ("search", "least"): "min_ratio",
}


def read_recipe(path: Path) -> Recipe:
    """Read a recipe; files in it are relative to the recipe's folder.

    Raises:
        BadInput: not TOML; a field that is unknown, renamed, missing, of the wrong type or out of
            range (it is named); or stages that cannot be combined.
    """
    try:
        values = read_toml(path)
    except OSError as error:
        raise BadInput(f"cannot read the recipe {path}: {error.strerror}") from None
    _check_renamed(values, path)
    recipe = convert_toml(values, Recipe, path)
    recipe.check()
    return _resolved(recipe, path.parent)


def _check_renamed(values: dict[str, Any], path: Path) -> None:
    """Raise BadInput for names of earlier versions, with the name of today."""
    for (table, old), new in _RENAMED.items():
        if isinstance(fields := values.get(table), dict) and old in fields:
            raise BadInput(f"{path}: [{table}] {old} is now called {new}; rename it")
    for (table, old), place in _MOVED.items():
        if isinstance(fields := values.get(table), dict) and old in fields:
            raise BadInput(f"{path}: [{table}] {old} is now {place}; move it there")
    importance = values.get("importance")
    if isinstance(importance, dict) and importance.get("layers") == "influence":
        raise BadInput(f'{path}: [importance] layers = "influence" is now "block_influence"')


def recipe_toml(recipe: Recipe) -> str:
    """A recipe as TOML, which `read_recipe` reads back."""
    return "\n".join(_toml_lines(msgspec.to_builtins(recipe), ""))[1:] + "\n"


def _toml_lines(table: dict[str, Any], name: str) -> Iterator[str]:
    yield f"\n[{name}]" if name else ""
    known = {key: value for key, value in table.items() if value is not None}
    for key, value in known.items():
        if not isinstance(value, dict):
            # JSON's numbers, strings and lists are TOML's too.
            yield f"{key} = {json.dumps(value, ensure_ascii=False)}"
    for key, value in known.items():
        if isinstance(value, dict):
            yield from _toml_lines(value, f"{name}.{key}" if name else key)


def _resolved(recipe: Recipe, folder: Path) -> Recipe:
    def resolve(name: str) -> str:
        beside = folder / name
        try:
            return str(beside) if name and beside.exists() else name
        except OSError:  # too long for a file name; opening it reports that
            return name

    def resolve_task(task: str) -> str:
        kind, _, name = task.partition(":")
        return f"{kind}:{resolve(name)}" if name else task

    changed: dict[str, Any] = {
        "teacher": resolve(recipe.teacher),
        "data": tuple(map(resolve, recipe.data)),
        "held_out": recipe.held_out and resolve(recipe.held_out),
        "student": recipe.student and resolve(recipe.student),
        "importance": msgspec.structs.replace(
            recipe.importance, layer_task=resolve_task(recipe.importance.layer_task)
        ),
    }
    if recipe.evaluate:
        tasks = tuple(map(resolve_task, recipe.evaluate.tasks))
        changed["evaluate"] = msgspec.structs.replace(recipe.evaluate, tasks=tasks)
    if recipe.align:
        changed["align"] = msgspec.structs.replace(recipe.align, data=resolve(recipe.align.data))
    if recipe.synthesize and recipe.synthesize.prompts:
        prompts = resolve(recipe.synthesize.prompts)
        changed["synthesize"] = msgspec.structs.replace(recipe.synthesize, prompts=prompts)
    if recipe.draft and recipe.draft.prompts:
        prompts = resolve(recipe.draft.prompts)
        changed["draft"] = msgspec.structs.replace(recipe.draft, prompts=prompts)
    return msgspec.structs.replace(recipe, **changed)
