"""edgelm: compress, export and run language models on edge devices.

Importing `edgelm` only loads this file; each public name loads its package on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgelm.compress.pipeline import compress_model
    from edgelm.devices.planner.plan import plan
    from edgelm.errors import EdgeLMError
    from edgelm.export.pipeline import export_model
    from edgelm.runtime import (
        Chat,
        Chunk,
        LanguageModel,
        Message,
        Options,
        Reply,
        Sampling,
        Stream,
        load,
    )

__version__ = "0.2.0"

__all__ = [
    "Chat",
    "Chunk",
    "EdgeLMError",
    "LanguageModel",
    "Message",
    "Options",
    "Reply",
    "Sampling",
    "Stream",
    "__version__",
    "compress_model",
    "export_model",
    "load",
    "plan",
]

_RUNTIME = "edgelm.runtime"
_MODULES = {
    "Chat": _RUNTIME,
    "Chunk": _RUNTIME,
    "EdgeLMError": "edgelm.errors",
    "LanguageModel": _RUNTIME,
    "Message": _RUNTIME,
    "Options": _RUNTIME,
    "Reply": _RUNTIME,
    "Sampling": _RUNTIME,
    "Stream": _RUNTIME,
    "compress_model": "edgelm.compress.pipeline",
    "export_model": "edgelm.export.pipeline",
    "load": _RUNTIME,
    "plan": "edgelm.devices.planner.plan",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'edgelm' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
