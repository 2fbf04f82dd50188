"""adapter_config.json of a PEFT LoRA: what it applies to, and how strongly."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edgelm.checkpoint.adapter.patterns import ModulePatterns
from edgelm.checkpoint.adapter.targets import Targets
from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import read_json_object, shown

CONFIG = "adapter_config.json"
# Initializations after which peft also changes the model's own weights, again when it loads the
# adapter: without that, the factors belong to other weights.
_CHANGES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
_MAX_NUMBER = 2**20  # of a rank; alphas are some times the rank
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
    dora: every module has a magnitude, too (arXiv 2402.09353).
    base: the model that it was trained on, as PEFT knew it.
    targets: the modules that it applies to.
    """

    rank: int
    alpha: float
    rank_pattern: ModulePatterns
    alpha_pattern: ModulePatterns
    rslora: bool
    dora: bool
    base: str
    targets: Targets

    def rank_of(self, module: str) -> int:
        """The rank of a module's factors."""
        return int(self.rank_pattern.value(module, self.rank))

    def scale_of(self, module: str) -> float:
        """What the product of a module's factors is multiplied by."""
        rank, alpha = self.rank_of(module), self.alpha_pattern.value(module, self.alpha)
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
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise BadCheckpoint(
            f"{folder / CONFIG}: init_lora_weights is {shown(start)}, with which peft changes the "
            "model's own weights as well; merge the adapter with peft, or convert it to a plain "
            "LoRA (model.save_pretrained(folder, path_initial_model_for_weight_conversion=...))"
        )
    return LoraSettings(
        rank=_number(folder, config, "r", 8, whole=True),
        alpha=_number(folder, config, "lora_alpha", 8),
        rank_pattern=_pattern(folder, config, "rank_pattern", whole=True),
        alpha_pattern=_pattern(folder, config, "alpha_pattern"),
        rslora=_flag(folder, config, "use_rslora"),
        dora=_flag(folder, config, "use_dora"),
        base=str(config.get("base_model_name_or_path") or ""),
        targets=Targets.read(config, partial(_wrong, folder)),
    )


def _pattern(
    folder: Path, config: Mapping[str, Any], name: str, *, whole: bool = False
) -> ModulePatterns:
    values = config.get(name) or {}
    if not isinstance(values, dict):
        raise _wrong(folder, name, values, "an object")
    for pattern in values:
        _number(folder, values, pattern, 0, whole=whole)
    return ModulePatterns(values, lambda pattern, expected: _wrong(folder, name, pattern, expected))


def _flag(folder: Path, config: Mapping[str, Any], name: str) -> bool:
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise _wrong(folder, name, value, "true or false")
    return bool(value)


def _number(
    folder: Path, config: Mapping[str, Any], name: str, default: int, *, whole: bool = False
) -> Any:
    value = config.get(name, default)
    kinds = (int,) if whole else (int, float)
    # Comparisons are false for NaN.
    if isinstance(value, bool) or not isinstance(value, kinds) or not whole <= value <= _MAX_NUMBER:
        least = "a whole number from 1" if whole else "a number from 0"
        raise _wrong(folder, name, value, f"{least} to {_MAX_NUMBER}")
    return value


def _wrong(folder: Path, name: str, value: Any, expected: str) -> BadCheckpoint:
    return BadCheckpoint(
        f"{folder / CONFIG}: {name} is {shown(value)}, expected {expected}; save the adapter again"
    )
