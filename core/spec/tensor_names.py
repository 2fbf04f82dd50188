"""Names of tensors: edgelm uses Llama's, and a family's checkpoint may use its own.

A canonical name such as `model.layers.3.self_attn.q_norm.weight` belongs to the module
`self_attn.q_norm`; `Family.names` maps such modules to those of the checkpoint.
"""

from collections.abc import Mapping

from edgelm.spec.families.table import FAMILIES


def stored_name(family: str, name: str) -> str:
    """The name in a checkpoint of the tensor or module with this canonical name."""
    return _renamed(name, FAMILIES[family].names)


def canonical_name(family: str, name: str) -> str:
    """The canonical name of a checkpoint's tensor or module: the inverse of `stored_name`."""
    return _renamed(name, {theirs: ours for ours, theirs in FAMILIES[family].names.items()})


def _renamed(name: str, names: Mapping[str, str]) -> str:
    parts = name.split(".")
    start = 3 if parts[1:2] == ["layers"] else 1
    for end in (len(parts), len(parts) - 1):  # of a module, of its tensor
        module = ".".join(parts[start:end])
        if module in names:
            return ".".join([*parts[:start], names[module], *parts[end:]])
    return name
