"""Names of tensors: edgelm uses Llama's, and a family's checkpoint may use its own.

A canonical name such as `model.layers.3.self_attn.q_norm.weight` belongs to the module
`self_attn.q_norm`; `Family.names` maps such modules to those of the checkpoint, and `Family.prefix`
is its word for `model`.
"""

from collections.abc import Mapping

from edgelm.spec.families.table import FAMILIES

_OURS = "model"


def stored_name(family: str, name: str) -> str:
    """The name in a checkpoint of the tensor or module with this canonical name."""
    row = FAMILIES[family]
    return _with_prefix(_renamed(name, row.names), _OURS, row.prefix)


def canonical_name(family: str, name: str) -> str:
    """The canonical name of a checkpoint's tensor or module: the inverse of `stored_name`."""
    row = FAMILIES[family]
    ours = {theirs: ours for ours, theirs in row.names.items()}
    return _renamed(_with_prefix(name, row.prefix, _OURS), ours)


def _with_prefix(name: str, old: str, new: str) -> str:
    return name if old == new or not name.startswith(f"{old}.") else new + name.removeprefix(old)


def _renamed(name: str, names: Mapping[str, str]) -> str:
    parts = name.split(".")
    start = 3 if parts[1:2] == ["layers"] else 1
    for end in (len(parts), len(parts) - 1):  # of a module, of its tensor
        module = ".".join(parts[start:end])
        if module in names:
            return ".".join([*parts[:start], names[module], *parts[end:]])
    return name
