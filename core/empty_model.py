"""The `transformers` model of a checkpoint, built without memory for its weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from edgelm.checkpoint import Checkpoint


def hf_config(checkpoint: Checkpoint) -> Any:
    """The configuration object of `transformers` for a checkpoint of any kind."""
    from transformers import AutoConfig

    values = {key: value for key, value in checkpoint.config.items() if key != "model_type"}
    return AutoConfig.for_model(checkpoint.spec.family, **values)


def empty_model(config: Any, dtype: torch.dtype, attention: str = "eager") -> Any:
    """A causal language model whose parameters lie on the meta device; its buffers are real.

    Args:
        config: a configuration of `transformers`.
        dtype: of the parameters to come.
        attention: an implementation of `transformers`; all but eager leave out Gemma 2's soft cap.
    """
    from transformers import AutoModelForCausalLM

    with _parameters_on_meta():
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules built in this block get parameters without memory, but real buffers."""
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
