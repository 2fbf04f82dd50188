"""Where quantization-aware distillation starts: at what export makes of a model by itself.

Activation-aware scaling (`edgelm.quantize.awq`), then GPTQ for the matrices of 4 bits
(`edgelm.quantize.gptq`), all by second moments on the run's own text. Training starts from the
weights that GPTQ was about to round, on the grid that it chose. These two take a minute; from
nearest levels training did not get as far in 65 thousand tokens (docs/decisions/qad-start.md).
"""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from edgelm.cli import format_bytes
from edgelm.compress.model import Model, spec_of
from edgelm.compress.qad.fake_quantizer import Grid
from edgelm.compress.run.fingerprint import weights_sha256
from edgelm.errors import BadInput, DoesNotFit
from edgelm.files.sealed_tensors import UNSEALED, seal_file
from edgelm.quantize.awq import Smoothing
from edgelm.quantize.gptq import compensate
from edgelm.quantize.hessians import Hessians
from edgelm.quantize.precision import Int4, Int8, describe
from edgelm.quantize.rtn import quantize
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.groups import EMBEDDING, HEAD, groups, tensor_names


@torch.no_grad()
def prepare_for_quantization(
    model: Model,
    batches: Iterable[torch.Tensor],
    precision: Int4 | Int8,
    head: Int4 | Int8,
    scratch: Path,
) -> dict[str, Grid]:
    """Make a model ready to be rounded, in place; returns the grid of every matrix by its name.

    What the model computes without rounding changes with GPTQ's compensation alone. Takes a
    minute on a CPU for 135M parameters.

    Args:
        model: a causal language model in fp32.
        batches: int64 tokens [B, T] each, of the text that it will be trained on.
        precision: of the layers' matrices.
        head: of the head, and of the embedding that is tied to it; an untied embedding follows.
        scratch: an existing folder with room for one [K, K] in fp32 a matrix.

    Raises:
        DoesNotFit: there is no such room.
    """
    spec = spec_of(model)
    moments = Hessians(scratch, spec)
    free = shutil.disk_usage(scratch).free
    if moments.size_bytes > free:
        raise DoesNotFit(
            f"second moments need {format_bytes(moments.size_bytes)} in {scratch}, "
            f"{format_bytes(free)} are free; free some space or choose another folder for the run"
        )
    with moments.watching(model):
        for tokens in batches:
            model.model(input_ids=tokens.to(model.device), use_cache=False)
    smoothing = None
    if Int4 in (type(precision), type(head)):
        energy = {group: moments[group].diagonal().clone() for group in moments.groups}
        smoothing = Smoothing.of(spec, energy)
        fold(smoothing, model, spec)
    grids: dict[str, Grid] = {}
    for group in groups(spec):
        wanted = head if group in (HEAD, EMBEDDING) else precision
        parameters = {name: model.get_parameter(name) for name in tensor_names(spec, group)}
        matrix = torch.cat([one.detach().float().cpu() for one in parameters.values()])
        # Where there are no zero points, scales are positive: every engine's kernels read those.
        positive = isinstance(wanted, Int4) and wanted.symmetric
        if group == EMBEDDING or isinstance(wanted, Int8):  # compensation gains nothing at 8 bits
            quantized = quantize(matrix, wanted, positive_scales=positive)
        else:
            found = moments[group]
            if (columns := smoothing.columns(group) if smoothing else None) is not None:
                found = found / columns / columns[:, None]
            matrix, quantized = compensate(matrix, wanted, found, positive_scales=positive)
        at = 0
        for name, parameter in parameters.items():
            rows = slice(at, at + len(parameter))
            parameter.copy_(matrix[rows])
            grids[name] = Grid.of(quantized, rows)
            at += len(parameter)
    return grids


def fold(smoothing: Smoothing, model: Model, spec: DecoderSpec) -> None:
    """Even out input channels in place, so that the model computes what it did."""
    weights: Mapping[str, torch.Tensor] = dict(model.named_parameters())
    for group in groups(spec):
        names = tensor_names(spec, group)
        if (columns := smoothing.columns(group)) is not None:
            for name in names:
                weights[name].mul_(columns.to(weights[name].device))
        if (rows := smoothing.rows(group)) is not None:
            parts = rows.split([len(weights[name]) for name in names])
            for name, part in zip(names, parts, strict=True):
                part = part.to(weights[name].device)
                weights[name].div_(part[:, None])
                bias = f"{name.removesuffix('weight')}bias"
                if bias in weights:
                    weights[bias].div_(part)
    offset = 1.0 if spec.norm_plus_one else 0.0
    for name in smoothing.norms.values():
        weight = weights[f"model.{name}.weight"]
        divisor = smoothing.norm(name)
        assert divisor is not None
        weight.copy_((weight + offset) / divisor.to(weight.device) - offset)


def write_start(path: Path, model: Model, grids: Mapping[str, Grid], of: str) -> None:
    """Write a model that `prepare_for_quantization` made ready, and its grids, to a file.

    `of` says what was started from, and is compared when the file is read.
    """
    tensors = {name: one.detach().cpu() for name, one in model.named_parameters()}
    for name, grid in grids.items():
        tensors[f"{name}.scales"] = grid.scales
        if grid.zero_points is not None:
            tensors[f"{name}.zero_points"] = grid.zero_points
    save_file(tensors, path, {"of": of, **UNSEALED})
    seal_file(path)


@torch.no_grad()
def read_start(
    path: Path, model: Model, precision: Int4 | Int8, head: Int4 | Int8, of: str
) -> dict[str, Grid]:
    """Load what `write_start` wrote into a model; returns the grids.

    Raises:
        BadInput: the file was started from something else.
    """
    with safe_open(path, "pt") as file:
        theirs = (file.metadata() or {}).get("of", "")
    if theirs != of:
        raise BadInput(
            f"{path} is the start of another run ({theirs}; this one is {of}); remove its folder "
            "or choose another"
        )
    tensors = load_file(path)
    for name, parameter in model.named_parameters():
        parameter.copy_(tensors[name])
    spec = spec_of(model)
    grids = {}
    for group in groups(spec):
        wanted = head if group in (HEAD, EMBEDDING) else precision
        bits = 4 if isinstance(wanted, Int4) else 8
        for name in tensor_names(spec, group):
            scales, zeros = tensors[f"{name}.scales"], tensors.get(f"{name}.zero_points")
            grids[name] = Grid(bits, wanted.group_size, scales, zeros)
    return grids


def start_fingerprint(model: Model, precision: Int4 | Int8, head: Int4 | Int8) -> str:
    """What a start depends on, in words."""
    weights = weights_sha256(model)[:12]
    return f"{describe(precision)}, head {describe(head)}, weights {weights}"
