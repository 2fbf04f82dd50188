"""From a checkpoint to a bundle: `edgelm.export(source, output)`."""

from typing import TYPE_CHECKING

from edgelm.callable_room import make_callable

if TYPE_CHECKING:
    from edgelm.export.pipeline import export

__all__ = ["export"]

make_callable(__name__, "export", "edgelm.export.pipeline")
