"""The tensors of a PEFT LoRA, by the tensor of the model that each changes.

DoRA (arXiv 2402.09353) has a magnitude for every output in addition to the two factors.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgelm.checkpoint.adapter.settings import LoraSettings, read_settings
from edgelm.checkpoint.quantized.packed import FLOATS
from edgelm.checkpoint.text_part import canonical_text_name
from edgelm.checkpoint.weights.safetensors_header import StoredTensor, read_header
from edgelm.checkpoint.weights.values import check_finite, read_tensor
from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import shown

if TYPE_CHECKING:
    import torch

WEIGHTS = "adapter_model.safetensors"
_PREFIX = re.compile(r"^base_model\.model\.")
_FACTOR = re.compile(r"^(.*)\.lora_(embedding_)?([AB])(?:\.weight)?$")
_MAGNITUDE = re.compile(r"^(.*)\.lora_magnitude_vector(?:\.weight)?$")
_WRAPPED = re.compile(r"\.(base_layer|modules_to_save|original_module)(?=\.)")
_TYPES = (*FLOATS, "F64")


@dataclass(frozen=True)
class Factors:
    """What changes one matrix [N, K].

    down: [rank, K]; of an embedding [rank, N].
    up: [N, rank]; of an embedding [K, rank].
    magnitude: [N], of an embedding [K]; None without DoRA.
    """

    scale: float
    down: StoredTensor
    up: StoredTensor
    magnitude: StoredTensor | None
    embedding: bool

    @property
    def shape(self) -> tuple[int, int]:
        """[N, K]."""
        outputs, inputs = self.up.shape[0], self.down.shape[1]
        return (inputs, outputs) if self.embedding else (outputs, inputs)

    def apply(self, weight: "torch.Tensor") -> "torch.Tensor":
        """The changed matrix, fp32 [N, K]."""
        import torch

        change = (values(self.up) @ values(self.down)) * self.scale
        merged = weight.float() + (change.T if self.embedding else change)
        if self.magnitude is None:
            return merged
        over = 0 if self.embedding else 1  # of an embedding every channel has a magnitude
        factors = values(self.magnitude).flatten() / torch.linalg.norm(merged, dim=over)
        scaled: torch.Tensor = merged * factors.unsqueeze(over)
        return scaled


@dataclass(frozen=True)
class Lora:
    """An adapter.

    factors: by the name of the matrix that they change.
    replaced: tensors that take the place of the model's (`modules_to_save`, trained biases).
    """

    folder: Path
    settings: LoraSettings
    factors: Mapping[str, Factors]
    replaced: Mapping[str, StoredTensor]

    @property
    def path(self) -> Path:
        """The file with its tensors."""
        return self.folder / WEIGHTS


def read_lora(folder: Path) -> Lora:
    """Read an adapter's options and the shapes of its tensors.

    Raises:
        BadCheckpoint: it is damaged, pickled, not a LoRA, or of a kind that cannot be merged.
    """
    settings = read_settings(folder)
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        raise BadCheckpoint(
            f"{folder} has no {WEIGHTS}"
            + (", only pickled weights, which can run any code when loaded" if pickled else "")
            + "; save the adapter as safetensors (peft: model.save_pretrained(folder))"
        )
    parts: dict[str, dict[str, StoredTensor]] = {}
    replaced: dict[str, StoredTensor] = {}
    for stored, tensor in read_header(folder / WEIGHTS).items():
        if tensor.dtype not in _TYPES:
            raise _wrong(tensor, f"is stored as {tensor.dtype}, expected {' or '.join(_TYPES)}")
        bare = _PREFIX.sub("", stored)
        name = canonical_text_name(bare)
        if (one := _FACTOR.match(bare)) is not None:
            _check_target(folder, settings, _WRAPPED.sub("", f"{one[1]}.").rstrip("."))
        if match := _FACTOR.match(name):
            parts.setdefault(match[1], {})[f"{match[2] or ''}{match[3]}"] = tensor
        elif match := _MAGNITUDE.match(name):
            parts.setdefault(match[1], {})["magnitude"] = tensor
        elif "lora_" in name:
            raise _wrong(tensor, "is not a part of a LoRA that can be merged")
        else:
            replaced[_WRAPPED.sub("", name)] = tensor
    if not parts and not replaced:
        raise BadCheckpoint(f"{folder / WEIGHTS} has no tensors; save the adapter again")
    factors = {}
    for module, found in parts.items():
        module = _WRAPPED.sub("", f"{module}.").rstrip(".")
        factors[f"{module}.weight"] = _factors(folder, settings, module, found)
    return Lora(folder, settings, factors, replaced)


def _check_target(folder: Path, settings: LoraSettings, module: str) -> None:
    targets = settings.targets
    if (field := targets.why_not(module)) is not None:
        raise BadCheckpoint(
            f"{folder / WEIGHTS} has factors of {shown(module)}, which {field} in "
            "adapter_config.json leaves out: peft would not apply them; remove them, or correct "
            f"{field}"
        )


def values(stored: StoredTensor) -> "torch.Tensor":
    """A tensor of an adapter in fp32.

    Raises:
        BadCheckpoint: it has NaN or infinite values.
    """
    tensor = read_tensor(stored).float()
    check_finite(tensor, f"{stored.path}: {shown(stored.name)}")
    return tensor


def _factors(
    folder: Path, settings: LoraSettings, module: str, found: Mapping[str, StoredTensor]
) -> Factors:
    embedding = "embedding_A" in found or "embedding_B" in found
    names = ("embedding_A", "embedding_B") if embedding else ("A", "B")
    missing = [name for name in names if name not in found]
    if missing:
        raise BadCheckpoint(
            f"{folder / WEIGHTS}: {module} lacks lora_{missing[0]}; save the adapter again"
        )
    down, up = (found[name] for name in names)
    rank = settings.rank_of(module)
    for tensor, axis in ((down, 0), (up, 1)):
        if len(tensor.shape) != 2 or tensor.shape[axis] != rank:
            raise _wrong(
                tensor, f"has shape {list(tensor.shape)}, expected two dimensions, one of {rank}"
            )
    if settings.dora != ("magnitude" in found):
        stored = "is stored" if "magnitude" in found else "is missing"
        raise BadCheckpoint(
            f"{folder / WEIGHTS}: use_dora is {str(settings.dora).lower()}, but the magnitude "
            f"(lora_magnitude_vector) of {module} {stored}; save the adapter again"
        )
    made = Factors(settings.scale_of(module), down, up, found.get("magnitude"), embedding)
    if made.magnitude is not None and max(made.magnitude.shape, default=0) != up.shape[0]:
        raise _wrong(made.magnitude, f"has shape {list(made.magnitude.shape)}")
    return made


def _wrong(tensor: StoredTensor, what: str) -> BadCheckpoint:
    return BadCheckpoint(
        f"{tensor.path}: {shown(tensor.name)} {what}; merge the adapter with peft and export the "
        "result"
    )
