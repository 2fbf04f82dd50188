"""edgelm: compress, export and run language models on edge devices.

Importing `edgelm` only loads this file; each public name loads its package on first use. Type
checkers read the names' types in `__init__.pyi`, so that no module of core imports another package.
"""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

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
__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'edgelm' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
