"""Several residual streams, which every layer predicts and corrects."""

from typing import Annotated

import msgspec

from edgelm.spec.layers.mixers import Shapes

MAX_STREAMS = 64
MIN_SQUARE = 1e-5  # mean square of a stream's projection, whose root is divided by


class AltUp(msgspec.Struct, frozen=True):
    """Residual streams of which a layer computes one (Gemma 3n; arXiv 2301.13310).

    Projections of the embedding make the other streams. A layer predicts all of them as sums of all
    of them, computes the `active` one, and adds a part of what that changed to each. Coefficients
    of both follow from a router, tanh of a product with the normed active stream. At the end,
    projections of the other streams and the first one are averaged.
    """

    streams: Annotated[int, msgspec.Meta(ge=2, le=MAX_STREAMS)]
    active: int = 0
    scales_output: bool = True
    """The corrected active stream is scaled by a vector before it meets the per-layer inputs."""

    @property
    def entry(self) -> dict[str, tuple[str, ...]]:
        """The group of matrices before the layers, and its modules."""
        return {"altup.entry": tuple(f"altup_projections.{at}" for at in range(self.streams - 1))}

    @property
    def exit(self) -> dict[str, tuple[str, ...]]:
        """The groups of matrices after the layers, each of which has a stream as its input."""
        return {
            f"altup.exit.{at}": (f"altup_unembed_projections.{at}",)
            for at in range(self.streams - 1)
        }

    def modules(self, hidden: int) -> Shapes:
        """Outputs and inputs of the modules that are matrices, all outside the layers."""
        names = [name for names in (self.entry | self.exit).values() for name in names]
        return dict.fromkeys(names, (hidden, hidden))

    def vectors(self, hidden: int) -> Shapes:
        """A layer's tensors; their matrices are small and are never quantized."""
        count = self.streams
        return {
            "altup.correct_output_scale": (hidden,),
            "altup.correction_coefs.weight": (count, count),
            "altup.prediction_coefs.weight": (count**2, count),
            "altup.modality_router.weight": (count, hidden),
            "altup.router_norm.weight": (hidden,),
        }
