"""From a teacher to a student that fits a device: `edgelm.compress(recipe, output)`."""

from typing import TYPE_CHECKING

from edgelm.callable_room import make_callable

if TYPE_CHECKING:
    from edgelm.compress.pipeline import compress

__all__ = ["compress"]

make_callable(__name__, "compress", "edgelm.compress.pipeline")
