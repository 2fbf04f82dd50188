"""The ways to round a matrix, by name.

| method | text | what it does |
|---|---|---|
| `rtn`  | yes | nearest levels; scales, but fp8's, searched with errors weighted by energy |
| `awq`  | yes | the same, after input channels have been evened out |
| `gptq` | yes | column by column with compensation, by second moments |
| `hqq`  | no  | levels and grid in turn, robust to outliers; fp8 and nvfp4 to nearest |
| `auto` | yes | `gptq` after evening out at 4 bits and fp8; `rtn` at int8, which gains nothing |
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch

from edgelm.export.quantize.hqq import hqq
from edgelm.quantize.gptq import gptq
from edgelm.quantize.precision import Fp8, Int4, Int8, Nvfp4, WeightPrecision
from edgelm.quantize.rtn import Quantized, quantize

_COARSE = frozenset({Int4, Nvfp4, Fp8})
Moments = Callable[[], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Method:
    """What a method needs beside the weights.

    smooths: input channels are evened out first (see edgelm.quantize.awq).
    compensates: coarse matrices (int4, nvfp4, fp8) are rounded by second moments; `everywhere`:
        int8 ones too.
    weighs: errors count by the energy of their channel.
    """

    smooths: bool = False
    compensates: bool = False
    everywhere: bool = False
    weighs: bool = True


METHODS: dict[str, Method] = {
    "auto": Method(smooths=True, compensates=True),
    "rtn": Method(),
    "gptq": Method(compensates=True, everywhere=True),
    "awq": Method(smooths=True),
    "hqq": Method(weighs=False),
}


def has_coarse(kinds: Collection[type[WeightPrecision]]) -> bool:
    """Whether any is so coarse that evening out channels and compensation gain much."""
    return not _COARSE.isdisjoint(kinds)


def quantize_by(
    method: Method,
    weight: torch.Tensor,
    precision: Int4 | Int8,
    importance: torch.Tensor | None,
    moments: Moments | None,
    *,
    positive_scales: bool = False,
) -> Quantized:
    """Quantize [N, K] by a method.

    Args:
        method: one of METHODS.
        weight: the matrix, smoothed already if the method smooths.
        precision: what to store it as.
        importance: mean squares of the input channels [K]; None where inputs are not known.
        moments: reads the inputs' second moments [K, K]; None where there are none, as for an
            embedding, which is then rounded to nearest.
        positive_scales: see `edgelm.quantize.rtn.quantize`.
    """
    if not method.weighs:
        return hqq(weight, precision, positive_scales=positive_scales)
    if method.compensates and moments and (method.everywhere or isinstance(precision, Int4)):
        return gptq(weight, precision, moments(), positive_scales=positive_scales)
    return quantize(weight, precision, importance, positive_scales=positive_scales)
