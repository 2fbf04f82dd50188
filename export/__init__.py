"""From a checkpoint to a bundle.

`export` is loaded when it is first asked for: planning needs this package, but not torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgelm.export.pipeline import export

__all__ = ["export"]


def __getattr__(name: str) -> Any:
    if name != "export":
        raise AttributeError(f"module 'edgelm.export' has no attribute {name!r}")
    from edgelm.export.pipeline import export

    return export
