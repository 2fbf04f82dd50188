"""edgelm: language models on edge devices, from a teacher checkpoint to a measured bundle.

The public face is lazy: importing `edgelm` costs nothing but this file, and each name below
loads its room when it is first called.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgelm.compress.pipeline import compress
    from edgelm.devices.plan import plan
    from edgelm.errors import EdgeLMError
    from edgelm.export import export
    from edgelm.runtime import Completion, LanguageModel, Message, Options, Piece, Sampling, load

__version__ = "0.1.0"

__all__ = [
    "Completion",
    "EdgeLMError",
    "LanguageModel",
    "Message",
    "Options",
    "Piece",
    "Sampling",
    "__version__",
    "compress",
    "export",
    "load",
    "plan",
]

_RUNTIME = "edgelm.runtime"
_ROOMS = {
    "Completion": _RUNTIME,
    "EdgeLMError": "edgelm.errors",
    "LanguageModel": _RUNTIME,
    "Message": _RUNTIME,
    "Options": _RUNTIME,
    "Piece": _RUNTIME,
    "Sampling": _RUNTIME,
    "compress": "edgelm.compress",
    "export": "edgelm.export",
    "load": _RUNTIME,
    "plan": "edgelm.devices.plan",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'edgelm' has no attribute {name!r}")
    room = import_module(_ROOMS[name])
    # `edgelm.export` is a room as well as a function (`callable_room`).
    return room if room.__name__ == f"edgelm.{name}" else getattr(room, name)
