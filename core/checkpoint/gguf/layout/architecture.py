"""What sets an architecture of llama.cpp apart: the columns of `ARCHITECTURES`."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple


class Architecture(NamedTuple):
    """One architecture.

    model_type: Hugging Face's name of it.
    names: parts of a layer (`attn_q_norm`), or its tensors (`ssm_dt.bias`), with another name in
        Hugging Face's checkpoints than elsewhere.
    top: the same for tensors outside layers.
    joined: tensors that are a part of one in Hugging Face's checkpoints, and which one of two.
    permuted: the rows of queries and keys are in the order of a rotation of neighbors.
    qkv_by_head: Hugging Face has query, key and value of a head side by side.
    experts_by_input: Hugging Face has experts as [experts, inputs, outputs], where rows of gate
        and up alternate.
    tiled_values: value heads are in the order of tiles: the first one of each key head, then the
        second ones.
    norm_plus_one: norms are stored as 1 + weight, but for those of `plain_norms`.
    rotates: queries and keys have RoPE.
    partial_rotation: RoPE may rotate a part of each head.
    windows: which layers have windows: `all`, those of a `pattern`, or those that `flags` mark;
        `none` if llama.cpp computes without them.
    scales: keys of scaling factors, and their fields in config.json.
    biases: fields of config.json that say whether a tensor exists, and that tensor in a layer.
    fields: fields of config.json that have this value in all files.
    constants: arrays of metadata that are tensors of layers in Hugging Face's checkpoints, with
        the tensors' names and shapes.
    by_transformers: whether transformers itself reads such files.
    stacks: tensors outside layers that hold several of Hugging Face's, and the names of those.
    """

    model_type: str
    names: Mapping[str, str] = {}
    top: Mapping[str, str] = {}
    joined: Mapping[str, tuple[str, int]] = {}
    permuted: bool = False
    qkv_by_head: bool = False
    experts_by_input: bool = False
    tiled_values: bool = False
    norm_plus_one: bool = False
    plain_norms: tuple[str, ...] = ()
    rotates: bool = True
    partial_rotation: bool = False
    windows: Literal["none", "all", "pattern", "flags"] = "none"
    scales: Mapping[str, str] = {}
    biases: Mapping[str, str] = {}
    fields: Mapping[str, Any] = {}
    constants: Mapping[str, tuple[str, tuple[int, ...]]] = {}
    by_transformers: bool = False
    stacks: Mapping[str, str] = {}
