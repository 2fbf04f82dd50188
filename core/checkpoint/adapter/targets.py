"""Which modules an adapter's configuration says it applies to.

PEFT builds the adapter from its configuration and leaves out stored factors of other modules, with
a warning. Merging these as well would be another model.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from edgelm.errors import BadCheckpoint

Wrong = Callable[[str, Any, str], BadCheckpoint]
"""The error for a field, its value, and what was expected."""
_FIRST_NUMBER = re.compile(r"(?:^|\.)([^.]+)\.(\d+)\.")


class Targets(NamedTuple):
    """Modules whose names end in one of `modules` but in none of `excluded`, of some layers.

    None: not restricted by a list. A regular expression in place of a list is not read.
    `layer_names` are what precedes the number of a layer; empty for the first number of all.
    """

    modules: tuple[str, ...] | None
    excluded: tuple[str, ...]
    layers: tuple[int, ...] | None
    layer_names: tuple[str, ...]

    @classmethod
    def read(cls, config: Mapping[str, Any], wrong: Wrong) -> "Targets":
        """The fields of adapter_config.json.

        Raises:
            BadCheckpoint: one of them is neither a list of names (or of layers) nor a single one.
        """
        modules, excluded = config.get("target_modules"), config.get("exclude_modules")
        stored = config.get("layers_to_transform")
        layers: list[Any] = stored if isinstance(stored, list) else [stored]
        if stored is None:
            layers = []
        if not all(isinstance(one, int) and not isinstance(one, bool) for one in layers):
            raise wrong("layers_to_transform", stored, "numbers of layers")
        return cls(
            None if isinstance(modules, str) else _names("target_modules", modules, wrong),
            () if isinstance(excluded, str) else _names("exclude_modules", excluded, wrong) or (),
            tuple(layers) if layers else None,
            _names("layers_pattern", config.get("layers_pattern"), wrong) or (),
        )

    def why_not(self, module: str) -> str | None:
        """The field because of which a module is none of the targets; None if it is one."""
        if self.modules is not None and not _ends_in(module, self.modules):
            return "target_modules"
        if _ends_in(module, self.excluded):
            return "exclude_modules"
        # PEFT takes modules that are named in full whatever their layer is.
        if self.layers is None or (self.modules is not None and module in self.modules):
            return None
        named = (
            found
            for found in _FIRST_NUMBER.finditer(module)
            if not self.layer_names or found[1] in self.layer_names
        )
        first = next(named, None)
        return None if first and int(first[2]) in self.layers else "layers_to_transform"


def _names(field: str, value: Any, wrong: Wrong) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise wrong(field, value, "a list of names")
    return tuple(names)


def _ends_in(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)
