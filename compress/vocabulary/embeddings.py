"""Embeddings and head with a part of the vocabulary."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from edgelm.compress.model import Model
from edgelm.compress.vocabulary.pieces import check_ascending
from edgelm.errors import BadCheckpoint, BadInput

_IDS = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
)
_SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")


def trim_embeddings(model: Model, keep: Sequence[int]) -> Model:
    """Copy a model with only the kept rows of its embedding and head.

    The logits' last axis shrinks to `len(keep)`: entry `i` is the old entry `keep[i]`. Token ids in
    the configuration and the generation defaults are renumbered. Rows beyond the tokenizer's ids,
    which some models have as padding, are treated like any other.

    Args:
        model: a causal language model of `transformers`, head tied or not, with or without bias.
        keep: old ids, ascending.

    Raises:
        BadInput: ids that are not ascending, or that lack one of the configuration's.
        BadCheckpoint: an id beyond the model's rows.
    """
    check_ascending(keep)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    rows = embedding.weight.shape[0]
    if keep[-1] >= rows:
        raise BadCheckpoint(
            f"tokenizer and model vocabulary disagree: the tokenizer's ids go up to {keep[-1]:,} "
            f"or more, the model has embeddings for {rows:,}; is the tokenizer from another model?"
        )
    new_ids = {old: new for new, old in enumerate(keep)}
    missing = sorted(config_ids(model) - new_ids.keys())
    if missing:
        raise BadInput(
            f"the model's configuration uses token {missing[0]} (beginning, end or padding), which "
            f"is not among the {len(keep):,} kept ones; add it to `keep`"
        )
    index = torch.tensor(keep, device=embedding.weight.device)
    full = [embedding.weight, head.weight, head.bias]
    trimmed_parameters = {
        id(parameter): nn.Parameter(parameter.detach()[index], parameter.requires_grad)
        for parameter in full
        if parameter is not None
    }
    per_layer = getattr(model.base_model, "embed_tokens_per_layer", None)
    if per_layer is not None:
        table = per_layer.weight
        rows_of_kept = _per_layer_rows(keep, len(table)).to(table.device)
        trimmed_parameters[id(table)] = nn.Parameter(
            table.detach()[rows_of_kept], table.requires_grad
        )
    # A tied head stays tied in the copy; the full matrices are never copied.
    trimmed = copy.deepcopy(model, trimmed_parameters)
    trimmed.get_input_embeddings().num_embeddings = len(keep)
    if per_layer is not None:
        trimmed.base_model.embed_tokens_per_layer.num_embeddings = len(keep)
        trimmed.config.vocab_size_per_layer_input = len(keep)
    trimmed.get_output_embeddings().out_features = len(keep)
    for module in trimmed.modules():
        if getattr(module, "vocab_size", None) == rows:
            module.vocab_size = len(keep)
        if getattr(module, "padding_idx", None) is not None:
            module.padding_idx = new_ids.get(module.padding_idx)
    trimmed.config.vocab_size = len(keep)
    for config in _configs(trimmed):
        _renumber(config, new_ids)
    return trimmed


def _per_layer_rows(keep: Sequence[int], rows: int) -> torch.Tensor:
    """The kept rows of the embedding for every layer (Gemma 3n and 4).

    Gemma 3n's may lack the last tokens, which have its first row.
    """
    return torch.tensor([token if token < rows else 0 for token in keep])


def config_ids(model: Model) -> set[int]:
    """Ids in the model's configuration and generation defaults; -1 stands for none."""
    found: set[Any] = set()
    for config in _configs(model):
        for field in _IDS:
            value = getattr(config, field, None)
            found |= set(value if isinstance(value, list) else [value])
    return {token for token in found if token is not None and token >= 0}


def _configs(model: Model) -> list[Any]:
    generation = getattr(model, "generation_config", None)
    return [model.config, generation] if generation else [model.config]


def _renumber(config: Any, new_ids: Mapping[int, int]) -> None:
    for field in _IDS:
        value = getattr(config, field, None)
        if isinstance(value, list):
            setattr(config, field, [new_ids[token] for token in value])
        elif value is not None and value >= 0:
            setattr(config, field, new_ids[value])
    for field in _SUPPRESSED:
        value = getattr(config, field, None)
        if value:
            setattr(config, field, _still_possible(value, new_ids))


def _still_possible(
    suppressed: Sequence[int | list[int]], new_ids: Mapping[int, int]
) -> list[int | list[int]] | None:
    """Suppressed tokens and sequences, without those that no longer exist."""
    found: list[int | list[int]] = []
    for entry in suppressed:
        if isinstance(entry, int):
            found += [new_ids[entry]] if entry in new_ids else []
        elif all(token in new_ids for token in entry):
            found.append([new_ids[token] for token in entry])
    return found or None
