"""Which method quantized a checkpoint, and the reader of its matrices."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from edgelm.checkpoint.quantized.formats.awq import Awq
from edgelm.checkpoint.quantized.formats.compressed_tensors import CompressedTensors
from edgelm.checkpoint.quantized.formats.fp8 import FineGrainedFp8
from edgelm.checkpoint.quantized.formats.gptq import Gptq
from edgelm.checkpoint.quantized.formats.modelopt import ModelOpt
from edgelm.checkpoint.quantized.formats.mxfp4 import Mxfp4
from edgelm.checkpoint.quantized.packed import PackedMatrix, Parts
from edgelm.checkpoint.quantized.settings import Settings
from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import read_json_object, shown
from edgelm.quantize.precision import WeightPrecision


class Reader(Protocol):
    """Reads the matrices that one method quantized.

    name: of the method.
    parts: the last names of the tensors that it stores for a matrix, besides `weight`.
    declared: the format of its matrices as its configuration describes them, for a plan without
        weights; None where none of edgelm's formats holds them.
    """

    name: str
    parts: frozenset[str]
    declared: WeightPrecision | None

    def matrix(self, parts: Parts) -> PackedMatrix:
        """The matrix of a module; raises BadCheckpoint where parts do not fit each other."""


READERS: dict[str, Callable[[Settings], Reader]] = {
    "awq": Awq,
    "gptq": Gptq,
    "compressed-tensors": CompressedTensors,
    "modelopt": ModelOpt,
    "fp8": FineGrainedFp8,
    "fbgemm_fp8": FineGrainedFp8,
    "mxfp4": Mxfp4,
}
REFUSED = {
    "bitsandbytes": "its levels index a code book, which no engine's kernel reads",
    "torchao": "its tensors are laid out by the version of torchao that wrote them",
    "auto-round": "it is not written in the layout of AWQ or GPTQ",
    "hqq": "its zero points are fractions, which no engine's kernel reads",
    "quanto": "its tensors are laid out by the version of quanto that wrote them",
    "eetq": "its layout is that of one GPU kernel",
    "aqlm": "its levels index code books, which no engine's kernel reads",
    "vptq": "its levels index code books, which no engine's kernel reads",
    "higgs": "its weights are rotated, and its levels index a code book",
    "spqr": "it keeps outliers apart, which no engine's kernel reads",
    "bitnet": "its layers round their inputs, which edgelm's graph does not",
    "quark": "its format is not read",
    "mlx": "its minima are fractions, which no engine's kernel reads",
}
# Beside config.json -> method.
_FILES = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}
_INSIDE = {"hf_quant_config.json": "quantization"}


class Quantization(NamedTuple):
    """How a checkpoint's weights are quantized: the method, and its configuration."""

    method: str
    settings: Settings

    def reader(self) -> Reader:
        """Reads its matrices.

        Raises:
            BadCheckpoint: the method, or one of its options, is not supported.
        """
        if self.method in READERS:
            return READERS[self.method](self.settings)
        why = REFUSED.get(self.method)
        because = f": {why}" if why else f"; edgelm reads {', '.join(READERS)}"
        raise BadCheckpoint(
            f"{self.settings.folder} is already quantized ({shown(self.method)[1:-1]}), which is "
            f"not supported{because}; start from the unquantized model"
        )


def quantization_of(folder: Path, config: Mapping[str, Any]) -> Quantization | None:
    """How a folder's weights are quantized; None where they are not.

    Raises:
        BadCheckpoint: the configuration of the quantization is damaged.
    """
    for field in ("quantization_config", "compression_config"):
        if value := config.get(field):
            return _from_field(folder, field, value)
        if value is not None:
            raise BadCheckpoint(
                f"{folder / 'config.json'}: {field} is {shown(value)}, which Transformers does not "
                "load either; remove it if the weights are not quantized"
            )
    for name, method in _FILES.items():
        if (folder / name).is_file():
            return _from_file(folder, name, method)
    return None


def _from_field(folder: Path, field: str, value: Any) -> Quantization | None:
    source = f"config.json, {field}"
    if not isinstance(value, dict):
        raise Settings(folder, "config.json", {}).wrong(field, value, "an object")
    method = value.get("quant_method")
    if value.get("config_groups") == {}:
        return None  # a quantized cache with unquantized weights
    if field == "compression_config" or (method is None and "config_groups" in value):
        method = "compressed-tensors"
    if not isinstance(method, str):
        raise Settings(folder, source, value).wrong("quant_method", method, "a name")
    if method == "auto-round" and isinstance(packing := value.get("packing_format"), str):
        method = {"auto_round:auto_gptq": "gptq", "auto_round:auto_awq": "awq"}.get(packing, method)
        value = {key: one for key, one in value.items() if key not in ("format", "dynamic")}
    return Quantization(method, Settings(folder, source, value))


def _from_file(folder: Path, name: str, method: str) -> Quantization | None:
    values = read_json_object(folder / name)
    inner = values.get(_INSIDE[name]) if name in _INSIDE else values
    if not isinstance(inner, dict):
        raise BadCheckpoint(
            f"{folder / name}: {_INSIDE[name]} is {shown(inner)}, expected an object; download it "
            "again"
        )
    if method == "modelopt" and inner.get("quant_algo", "") is None:
        return None  # a quantized cache with unquantized weights
    method = inner.get("quant_method", "awq" if "w_bit" in inner else method)
    return Quantization(str(method), Settings(folder, name, inner))
