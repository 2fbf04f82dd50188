"""From a checkpoint to a bundle."""

from edgelm.export.pipeline import export

__all__ = ["export"]
