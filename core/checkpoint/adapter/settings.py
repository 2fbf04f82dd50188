"""adapter_config.json of a PEFT LoRA: what it applies to, and how strongly."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import read_json_object, shown

CONFIG = "adapter_config.json"
# Matching a repeated group can take time exponential in the length of a name.
_SLOW = re.compile(r"\)[*+{]")
# Options with which an adapter is not a sum of a matrix and two low-rank factors.
_REFUSED = {
    "target_parameters": "it adapts the parameters of experts",
    "layer_replication": "it repeats layers of the model",
    "trainable_token_indices": "it trains single rows of the embedding",
    "alora_invocation_tokens": "it is active from a certain token on",
    "use_qalora": "it pools its inputs",
    "use_bdlora": "its factors are diagonal blocks",
    "arrow_config": "it chooses among adapters at every token",
    "monteclora_config": "it is random while the model runs",
    "kasa_config": "its factors have a scale of their own",
    "velora_config": "its activations are compressed",
    "megatron_config": "it belongs to a Megatron model",
}


@dataclass(frozen=True)
class LoraSettings:
    """The options of a LoRA adapter (arXiv 2106.09685).

    rank, alpha: of modules without a pattern of their own.
    rank_pattern, alpha_pattern: of modules whose names end in a match.
    rslora: the scale is alpha over the square root of the rank (arXiv 2312.03732).
    base: the model that it was trained on, as PEFT knew it.
    """

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rslora: bool
    base: str

    def rank_of(self, module: str) -> int:
        """The rank of a module's factors."""
        return int(_matched(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        """What the product of a module's factors is multiplied by."""
        rank, alpha = self.rank_of(module), _matched(self.alpha_pattern, module, self.alpha)
        return float(alpha / (rank**0.5 if self.rslora else rank))


def read_settings(folder: Path) -> LoraSettings:
    """The options of an adapter.

    Raises:
        BadCheckpoint: it is damaged, not a LoRA, or has an option that cannot be merged.
    """
    try:
        config = read_json_object(folder / CONFIG)
    except FileNotFoundError:
        raise BadCheckpoint(
            f"{folder} has no {CONFIG}; expected the folder of a PEFT LoRA"
        ) from None
    kind = config.get("peft_type")
    if kind != "LORA":
        raise BadCheckpoint(
            f"{folder} is an adapter of the type {shown(kind)}, expected LORA; merge it with peft "
            "(model.merge_and_unload().save_pretrained(folder)) and export the result"
        )
    for name, why in _REFUSED.items():
        if config.get(name):
            raise BadCheckpoint(
                f"{folder / CONFIG}: {name} is not supported: {why}; merge the adapter with peft, "
                "if it can be merged, and export the result"
            )
    return LoraSettings(
        rank=_number(folder, config, "r", 8, whole=True),
        alpha=_number(folder, config, "lora_alpha", 8),
        rank_pattern=_pattern(folder, config, "rank_pattern", whole=True),
        alpha_pattern=_pattern(folder, config, "alpha_pattern"),
        rslora=config.get("use_rslora") is True,
        base=str(config.get("base_model_name_or_path") or ""),
    )


def _matched(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that a module's name ends in, as PEFT matches them."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _pattern(
    folder: Path, config: Mapping[str, Any], name: str, *, whole: bool = False
) -> dict[str, Any]:
    values = config.get(name) or {}
    if not isinstance(values, dict):
        raise _wrong(folder, name, values, "an object")
    for pattern in values:
        _number(folder, values, pattern, 0, whole=whole)
        try:
            re.compile(pattern)
        except re.error:
            raise _wrong(folder, name, pattern, "regular expressions") from None
        if _SLOW.search(pattern):
            raise _wrong(folder, name, pattern, "patterns without repeated groups")
    return values


def _number(
    folder: Path, config: Mapping[str, Any], name: str, default: int, *, whole: bool = False
) -> Any:
    value = config.get(name, default)
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or value < whole:
        raise _wrong(folder, name, value, "a whole number above zero" if whole else "a number")
    return value


def _wrong(folder: Path, name: str, value: Any, expected: str) -> BadCheckpoint:
    return BadCheckpoint(
        f"{folder / CONFIG}: {name} is {shown(value)}, expected {expected}; save the adapter again"
    )
