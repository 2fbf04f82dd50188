"""From a checkpoint to a bundle.

The package is callable: `edgelm.export(source, output)` is `edgelm.export.pipeline.export`. That
module is imported when it is first needed, since planning needs this package, but not torch.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgelm.export.pipeline import export

__all__ = ["export"]


def __getattr__(name: str) -> Any:
    if name != "export":
        raise AttributeError(f"module 'edgelm.export' has no attribute {name!r}")
    from edgelm.export.pipeline import export

    return export


class _CallableRoom(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return __getattr__("export")(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableRoom
