"""Undo what TRL changes on a model besides its weights, and silence it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy

from edgelm.compress.model import Model

_CHANGED = ("bos_token_id", "eos_token_id", "pad_token_id", "use_cache")


@contextmanager
def restored_after_training(model: Model) -> Iterator[None]:
    """Restore everything on the model except its weights after the training.

    TRL and Accelerate replace `forward`, tag the model, and write the tokenizer's special tokens
    into its configurations.
    """
    from transformers import GenerationConfig

    config, generation = model.config, model.generation_config
    special = {name: getattr(config, name) for name in _CHANGED if hasattr(config, name)}
    before, tags = set(vars(model)), copy(model.model_tags)
    # A clean one: some models ship settings that `transformers` reads but does not save.
    model.generation_config = GenerationConfig(eos_token_id=config.eos_token_id)
    try:
        yield
    finally:
        if hasattr(model, "activation_checkpointing_disable"):
            model.activation_checkpointing_disable()
        else:
            model.gradient_checkpointing_disable()
        for name in set(vars(model)) - before:
            delattr(model, name)
        model.generation_config = generation
        if "model_tags" in before:
            model.model_tags = tags
        for name, value in special.items():
            setattr(config, name, value)
        model.zero_grad(set_to_none=True)


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no usage report within the context."""
    import datasets
    from huggingface_hub import constants
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled(), datasets.are_progress_bars_disabled()
    report, tqdm = constants.HF_HUB_DISABLE_TELEMETRY, os.environ.get("TQDM_DISABLE")
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    constants.HF_HUB_DISABLE_TELEMETRY = True
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY = report
        if bars[0]:
            logging.enable_progress_bar()
        if not bars[1]:
            datasets.enable_progress_bars()
        if tqdm is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = tqdm
