"""A recipe: which teacher, for which device, by which stages.

A TOML file with one table per stage to run. Stages run in the order of `edgelm.compress.stages`,
whatever their order in the file:

    teacher = "HuggingFaceTB/SmolLM2-135M-Instruct"
    data = ["train.jsonl"]

    [target]
    name = "jetson-orin-nano"
    min_tokens_per_second = 30

    [search]
    [distill]
    tokens = 2_000_000
    [evaluate]
    tasks = ["perplexity:valid.jsonl"]
"""

from edgelm.compress.recipe.recipe import Recipe
from edgelm.compress.recipe.toml import read_recipe, recipe_toml

__all__ = ["Recipe", "read_recipe", "recipe_toml"]
