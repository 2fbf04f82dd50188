"""The tensors of a Hugging Face folder under the decoder's names."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from edgelm.checkpoint.quantized.collect import collect
from edgelm.checkpoint.quantized.method import Quantization
from edgelm.checkpoint.quantized.packed import PackedMatrix
from edgelm.checkpoint.quantized.stacks import with_stacks
from edgelm.checkpoint.text_part import text_tensors
from edgelm.checkpoint.weights.expert_stacks import with_stacked_experts
from edgelm.checkpoint.weights.files import stored_tensors
from edgelm.checkpoint.weights.names import (
    Stored,
    named_as_hugging_face,
    without_leftovers,
    without_zero_biases,
)
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.tensor_shapes import tensor_shapes


class NamedTensors(NamedTuple):
    """A decoder's tensors by name; quantized ones by the name of their entry's stored tensor."""

    stored: Stored
    left_out: tuple[str, ...]
    packed: Mapping[str, PackedMatrix]
    draft_head: Stored


def named_tensors(
    folder: Path, files: list[Path], spec: DecoderSpec, quantization: Quantization | None
) -> NamedTensors:
    """What weight files hold of a decoder; its names and stacks are those of Hugging Face."""
    text = text_tensors(stored_tensors(files))
    stored: Stored = text.stored
    packed: Mapping[str, PackedMatrix] = {}
    if quantization is not None:
        stored, packed = collect(folder, quantization.reader(), stored)
    expected = tensor_shapes(spec)
    stored = without_leftovers(named_as_hugging_face(folder, stored, expected, spec), spec)
    stored = without_zero_biases(stored, spec)
    stored = with_stacked_experts(folder, stored, expected)
    return NamedTensors(stored, text.left_out, with_stacks(packed, stored), text.draft_head)
