"""ONNX Runtime, imported when it is first used: edgelm itself works without it."""

import functools
import importlib
import os
from typing import Any

from edgelm.errors import MissingPackage


class LazyOnnxRuntime:
    """The module `onnxruntime`, as an object whose attributes import it.

    Args:
        missing: what to say where it is not installed.

    Raises:
        MissingPackage: from its attributes, where it is not installed.
    """

    def __init__(self, missing: str) -> None:
        self._missing = missing

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(_module(), name)
        except ImportError:
            raise MissingPackage(self._missing) from None


@functools.cache
def _module() -> Any:
    # Official builds report usage to Microsoft unless this is set before they load.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return importlib.import_module("onnxruntime")
