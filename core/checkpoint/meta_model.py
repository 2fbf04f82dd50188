"""The `transformers` model of a checkpoint, built without memory for its weights."""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from edgelm.checkpoint.own_modules import fit_layers
from edgelm.checkpoint.source import Checkpoint
from edgelm.errors import BadCheckpoint
from edgelm.spec.config.layer_sizes import listed_heads
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.families.table import FAMILIES
from edgelm.spec.own_sizes import FIELD as OWN_SIZES
from edgelm.spec.own_sizes import own_sizes

# Fields that classes read although they no longer declare them.
_OLD_FIELDS = {
    *("rope_scaling", "rope_theta", "partial_rotary_factor", "rope_local_base_freq"),
    *("original_max_position_embeddings", "sliding_window_pattern", "block_ff_dim"),
    "full_attention_interval",
    *("rotary_emb_base", "rotary_pct"),
    "hybrid_override_pattern",
}
_FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf}
# Classes that build a window's mask even if no layer has a window.
_ALWAYS_MASK = {"gemma2", "gemma3_text", "gemma3n_text", "ministral", "olmo3", "granite_swa"}


def hf_config(checkpoint: Checkpoint) -> Any:
    """The configuration object of `transformers` for a checkpoint of any kind.

    It only has fields that describe the decoder: `config.json` may also contain general ones, such
    as a million labels or another form of results.

    Raises:
        BadCheckpoint: transformers rejects the configuration.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    spec = checkpoint.spec
    read = _fields_read(spec.family)
    values = {key: _plain(value) for key, value in checkpoint.config.items() if key in read}
    if values.get("sliding_window", 0) is None and spec.family in _ALWAYS_MASK:
        del values["sliding_window"]  # no layer uses the mask, but the class would build it
    names = checkpoint.config.get("architectures")
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        values["architectures"] = names  # for the record: the family's class is built
    if (own := own_sizes(spec)) is not None:
        values[OWN_SIZES] = own
    if FAMILIES[spec.family].global_heads:
        values["per_layer_config"] = listed_heads(spec.layers)
    values |= {"head_dim": spec.head_dim, "tie_word_embeddings": spec.tie_word_embeddings}
    try:
        # A copy, because the class changes nested values in place.
        config = AutoConfig.for_model(spec.family, **deepcopy(values))
    except (StrictDataclassError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise _refused(checkpoint, error) from None
    if config.pad_token_id is not None and not -1 <= config.pad_token_id < spec.vocab_size:
        config.pad_token_id = None  # outside the embedding; only training reads it
    return config


def _plain(value: Any) -> Any:
    """A value whose infinities are written as Transformers writes them: `{"__float__": ...}`."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict) and value.keys() == {"__float__"}:
        return _FLOATS.get(str(value["__float__"]), value)
    return value


def _fields_read(family: str) -> set[str]:
    """The fields of a family's class that describe its decoder."""
    from transformers import CONFIG_MAPPING, PretrainedConfig

    ours, common = (
        {field.name for field in dataclasses.fields(one)}
        for one in (CONFIG_MAPPING[family], PretrainedConfig)
    )
    aliases = CONFIG_MAPPING[family].attribute_map
    return ours - common | _OLD_FIELDS | {*aliases, *aliases.values()}


def _refused(checkpoint: Checkpoint, error: Exception) -> BadCheckpoint:
    reason = " ".join(str(error).split())[:300]
    return BadCheckpoint(
        f"{checkpoint.path}: transformers rejects config.json ({reason}); correct the field, or "
        "use the configuration that the model was published with"
    )


def empty_model(config: Any, dtype: torch.dtype, attention: str = "eager") -> Any:
    """A causal language model with parameters on the meta device and real buffers.

    Args:
        config: a configuration of `transformers`.
        dtype: type of the parameters.
        attention: an implementation of `transformers`; only eager has Gemma 2's soft cap.
    """
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    # Drawing values that nobody sees takes most of the time of building a model.
    with _parameters_on_meta(), no_init_weights():
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
        )
        if getattr(config, OWN_SIZES, None):
            fit_layers(model, DecoderSpec.from_hf(config.to_dict()))
    remove_step_limits(model)
    return model


def remove_step_limits(model: nn.Module) -> None:
    """Compute time steps of prompts like those of single tokens.

    Nemotron-H's class limits dt to `time_step_min` in prompts only, and its training had no limit.
    """
    for module in model.modules():
        if hasattr(module, "time_step_limit"):
            module.__dict__["time_step_limit"] = (0.0, math.inf)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """In this block modules are built with parameters without memory, but real buffers."""
    register = nn.Module.register_parameter

    def register_empty(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(self, name, param)
        if param is not None:
            empty = torch.empty_like(param, device="meta")
            self._parameters[name] = nn.Parameter(empty, requires_grad=False)

    nn.Module.register_parameter = register_empty  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
