"""Embedding models as sentence-transformers saves them: a decoder and what pools its output.

`modules.json` lists the modules in order. Those of Qwen3-Embedding are the decoder (`Transformer`),
`Pooling` and `Normalize`; prompts are in `config_sentence_transformers.json`, the longest text in
`sentence_bert_config.json`. Other modules change the vector, so that they are refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgelm.embedding import EmbeddingSettings, Pooling
from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import MAX_BYTES, parse_json_object, read_file, read_json_object, shown
from edgelm.spec.decoder import DecoderSpec

MODULES = "modules.json"
_PROMPTS = "config_sentence_transformers.json"
_LENGTHS = "sentence_bert_config.json"
_POOLING: dict[str, Pooling] = {"lasttoken": "last", "mean": "mean", "cls": "first"}
# The flags of older versions, all of them: more than one puts several vectors side by side.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def check_causal(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise BadCheckpoint for a model with bidirectional attention (EmbeddingGemma)."""
    if config.get("use_bidirectional_attention") is True or config.get("is_causal") is False:
        raise BadCheckpoint(
            f"{folder}: config.json describes bidirectional attention (as in EmbeddingGemma); "
            "edgelm runs decoders with causal attention only, such as Qwen3-Embedding"
        )


def embedding_settings(folder: Path, spec: DecoderSpec) -> EmbeddingSettings | None:
    """How the model's hidden states become a vector; None for a folder without `modules.json`.

    Raises:
        BadCheckpoint: a file is damaged, or has something that edgelm does not compute.
    """
    try:
        content = read_file(folder / MODULES, max_bytes=MAX_BYTES)
    except FileNotFoundError:
        return None
    listed = parse_json_object(b'{"modules": ' + content + b"}", str(folder / MODULES))
    modules = _modules(folder, listed["modules"])
    kinds = [kind for kind, _ in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise BadCheckpoint(
            f"{folder / MODULES} lists the modules {', '.join(map(shown, kinds)) or 'none'}; "
            "edgelm supports Transformer and Pooling, optionally followed by Normalize, and no "
            "others (such as Dense)"
        )
    if modules[0][1] not in ("", "."):
        raise BadCheckpoint(
            f"{folder / MODULES}: the model is in the folder {shown(modules[0][1])}; edgelm "
            "expects its config.json and weights next to modules.json: save it again with the "
            "current sentence-transformers"
        )
    prompts, default = _prompts(folder)
    return EmbeddingSettings(
        _pooling(folder, modules[1][1], spec),
        len(kinds) == 3,
        prompts,
        default,
        _max_tokens(folder, spec),
    )


def without_head(spec: DecoderSpec) -> DecoderSpec:
    """The decoder without its head: only the embedding is stored, as where both are one table."""
    # The divisor of logits is folded into the last norm, whose outputs are pooled here.
    return msgspec.structs.replace(
        spec, has_head=False, tie_word_embeddings=True, logits_divisor=1.0
    )


def _modules(folder: Path, listed: object) -> list[tuple[str, str]]:
    """The class name and the folder of every module."""
    path = folder / MODULES
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise BadCheckpoint(f"{path} is not a list of modules; download it again")
    found = []
    for one in listed:
        kind, inner = one.get("type"), one.get("path", "")
        if not isinstance(kind, str) or not isinstance(inner, str):
            raise BadCheckpoint(
                f"{path}: a module has the type {shown(kind)} and the path {shown(inner)}, "
                "expected two texts"
            )
        if Path(inner).is_absolute() or ".." in Path(inner).parts or "\0" in inner:
            raise BadCheckpoint(f"{path}: the path {shown(inner)} is outside of the folder")
        found.append((kind.rpartition(".")[2], inner))
    return found


def _pooling(folder: Path, inner: str, spec: DecoderSpec) -> Pooling:
    path = folder / inner / "config.json"
    try:
        config = read_json_object(path)
    except FileNotFoundError:
        raise BadCheckpoint(
            f"{path}, which states how hidden states are pooled, is missing; download it again"
        ) from None
    modes = _modes(config)
    if len(modes) != 1 or modes[0] not in _POOLING:
        raise BadCheckpoint(
            f"{path}: the pooling is {' and '.join(map(shown, modes)) or 'not given'}, expected "
            f"one of {', '.join(_POOLING)}"
        )
    width = next(
        (
            config[name]
            for name in ("word_embedding_dimension", "embedding_dimension")
            if name in config
        ),
        spec.hidden_size,
    )
    if width != spec.hidden_size:
        raise BadCheckpoint(
            f"{path} is for vectors of {shown(width)} numbers, the model has {spec.hidden_size}; "
            "do they belong together?"
        )
    if _POOLING[modes[0]] != "last" and config.get("include_prompt", True) is not True:
        raise BadCheckpoint(
            f"{path}: include_prompt is {shown(config['include_prompt'])}; edgelm always includes "
            "the tokens of prompts when it pools"
        )
    return _POOLING[modes[0]]


def _modes(config: Mapping[str, Any]) -> list[str]:
    named = config.get("pooling_mode")
    if isinstance(named, str):
        return [named]
    if isinstance(named, list | tuple):
        return [str(one) for one in named]
    flags = {name: mode for name, mode in _FLAGS.items() if config.get(name) is True}
    return [*flags.values()]


def _prompts(folder: Path) -> tuple[dict[str, str], str | None]:
    """The prompts by name, and the name of the default one."""
    path = folder / _PROMPTS
    try:
        config = read_json_object(path)
    except FileNotFoundError:
        return {}, None
    prompts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(one, str) for one in prompts.values()):
        raise BadCheckpoint(f"{path}: prompts is {shown(prompts)}, expected texts by name")
    if default is not None and default not in [*prompts]:  # it may be a list
        raise BadCheckpoint(
            f"{path}: default_prompt_name is {shown(default)}, but prompts has "
            f"{', '.join(map(shown, prompts)) or 'none'}"
        )
    return prompts, default


def _max_tokens(folder: Path, spec: DecoderSpec) -> int:
    path = folder / _LENGTHS
    try:
        config = read_json_object(path)
    except FileNotFoundError:
        return spec.max_position_embeddings
    if config.get("do_lower_case"):
        raise BadCheckpoint(
            f"{path}: do_lower_case is set; edgelm does not change the case of texts"
        )
    given = config.get("max_seq_length")
    if given is None:
        return spec.max_position_embeddings
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise BadCheckpoint(
            f"{path}: max_seq_length is {shown(given)}, expected a number of tokens"
        )
    return min(given, spec.max_position_embeddings)
