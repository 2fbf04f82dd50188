"""Packages that are callable: `edgelm.export(...)` runs what the room is for.

The function's module is imported when it is first needed: importing a room to plan, or to read
its help, needs no torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


def make_callable(room: str, function: str, module: str) -> None:
    """Let a package be called as one function of one of its modules."""

    class CallableRoom(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return getattr(self, function)(*args, **kwargs)

        def __getattr__(self, name: str) -> Any:
            if name != function:
                raise AttributeError(f"module {room!r} has no attribute {name!r}")
            return getattr(import_module(module), function)

    sys.modules[room].__class__ = CallableRoom
