"""The methods that quantize a matrix, by name.

| method | text | what it does |
|---|---|---|
| `rtn`  | yes | round to nearest; scales, but fp8's, searched with errors weighted by mean square |
| `awq`  | yes | the same, after activation-aware scaling of input channels |
| `gptq` | yes | column by column with error compensation, by the Hessian of the inputs |
| `hqq`  | no  | levels and grid in turn, robust to outliers; fp8 and nvfp4 to nearest |
| `auto` | yes | `awq`, then `gptq` at 4 bits and fp8; `rtn` at int8, where `gptq` gains nothing |
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

import torch

from edgelm.export.quantize.hqq import hqq
from edgelm.quantize.gptq import gptq
from edgelm.quantize.precision import W8A8, Fp8, Int4, Int8, Nvfp4, WeightPrecision
from edgelm.quantize.rtn import Quantized, quantize

Rounding = Literal["rtn", "gptq", "hqq"]
Scaling = Literal["none", "awq"]
_COARSE = frozenset({Int4, Nvfp4, Fp8})
_EIGHT_BIT = frozenset({Int8, W8A8})
ReadHessian = Callable[[], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Method:
    """How matrices are quantized.

    rounding: of coarse formats: int4, nvfp4, fp8.
    int8_rounding: of int8.
    scaling: of input channels, before rounding to a coarse format (see edgelm.quantize.awq).
    """

    rounding: Rounding
    int8_rounding: Rounding
    scaling: Scaling = "none"

    def needs_hessian(self, kinds: Collection[type[WeightPrecision]]) -> bool:
        """Whether any of these kinds of precision is rounded with error compensation."""
        coarse = self.rounding == "gptq" and has_coarse(kinds)
        return coarse or (self.int8_rounding == "gptq" and not _EIGHT_BIT.isdisjoint(kinds))


METHODS: dict[str, Method] = {
    "auto": Method("gptq", "rtn", "awq"),
    "rtn": Method("rtn", "rtn"),
    "gptq": Method("gptq", "gptq"),
    "awq": Method("rtn", "rtn", "awq"),
    "hqq": Method("hqq", "hqq"),
}
# What `auto` is for a source that is quantized already: scaled channels would be off its levels.
KEEPS_LEVELS = Method("gptq", "rtn")


def has_coarse(kinds: Collection[type[WeightPrecision]]) -> bool:
    """Whether any is so coarse that channel scaling and error compensation gain much."""
    return not _COARSE.isdisjoint(kinds)


def quantize_by(
    method: Method,
    weight: torch.Tensor,
    precision: Int4 | Int8,
    importance: torch.Tensor | None,
    hessian: ReadHessian | None,
    *,
    positive_scales: bool = False,
) -> Quantized:
    """Quantize [N, K] by a method.

    Args:
        method: one of METHODS.
        weight: the matrix, with its input channels scaled already if the method scales them.
        precision: what to store it as.
        importance: mean squares of the input channels [K]; None where inputs are not known.
        hessian: reads the Hessian of the inputs [K, K]; None where there is none, as for an
            embedding, which is then rounded to nearest.
        positive_scales: see `edgelm.quantize.rtn.quantize`.
    """
    rounding = method.rounding if isinstance(precision, Int4) else method.int8_rounding
    if rounding == "hqq":
        return hqq(weight, precision, positive_scales=positive_scales)
    if rounding == "gptq" and hessian:
        return gptq(weight, precision, hessian(), positive_scales=positive_scales)
    return quantize(weight, precision, importance, positive_scales=positive_scales)
