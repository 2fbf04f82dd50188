"""Where quantization-aware distillation starts: at what export makes of a model by itself.

Input channels are evened out (`edgelm.awq`), then matrices of 4 bits are rounded by GPTQ
(`edgelm.gptq`), all by second moments on the run's own text. Training starts from the weights that
GPTQ was about to round, on the grid that it chose. From the nearest levels of the plain weights it
would spend its first million tokens on what these two do in a minute.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file

from edgelm.awq import Smoothing
from edgelm.compress.fake_quantizer import Grid
from edgelm.compress.importance import spec_of
from edgelm.compress.model import Model
from edgelm.gptq import compensate
from edgelm.groups import EMBEDDING, HEAD, groups, tensor_names
from edgelm.hessians import Hessians
from edgelm.precision import Int4, Int8
from edgelm.quantize import quantize
from edgelm.spec import DecoderSpec


@torch.no_grad()
def start_rounded(
    model: Model,
    batches: Iterable[torch.Tensor],
    precision: Int4 | Int8,
    head: Int4 | Int8,
) -> dict[str, Grid]:
    """Make a model ready to be rounded, in place; returns the grid of every matrix by its name.

    What the model computes without rounding changes with GPTQ's compensation alone. Takes a
    minute on a CPU for 135M parameters, and room in the temporary folder for one [K, K] in fp32
    a matrix.

    Args:
        model: a causal language model in fp32.
        batches: int64 tokens [B, T] each, of the text that it will be trained on.
        precision: of the layers' matrices.
        head: of the head, and of the embedding that is tied to it; an untied embedding follows.
    """
    spec = spec_of(model)
    with TemporaryDirectory(prefix="edgelm-moments-") as scratch:
        moments = Hessians(Path(scratch), spec)
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
            found = None if group == EMBEDDING else moments[group]
            columns = smoothing.columns(group) if smoothing else None
            if found is not None and columns is not None:
                found = found / columns / columns[:, None]
            for name in tensor_names(spec, group):
                grids[name] = _start(model.get_parameter(name), wanted, found)
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


def _start(
    parameter: torch.nn.Parameter, precision: Int4 | Int8, moments: torch.Tensor | None
) -> Grid:
    weight = parameter.detach().float().cpu()
    if isinstance(precision, Int8):  # at 8 bits compensation gains nothing
        return Grid.of(quantize(weight, precision, None if moments is None else moments.diagonal()))
    # Where there are no zero points, scales are positive: every engine's kernels read those.
    positive = precision.symmetric
    if moments is None:
        return Grid.of(quantize(weight, precision, positive_scales=positive))
    compensated, quantized = compensate(weight, precision, moments, positive_scales=positive)
    parameter.copy_(compensated)
    return Grid.of(quantized)


def write_start(path: Path, model: Model, grids: Mapping[str, Grid]) -> None:
    """Write a model that `start_rounded` made ready, and its grids, to a file."""
    tensors = {name: one.detach().cpu() for name, one in model.named_parameters()}
    for name, grid in grids.items():
        tensors[f"{name}.scales"] = grid.scales
        if grid.zero_points is not None:
            tensors[f"{name}.zero_points"] = grid.zero_points
    save_file(tensors, path)


@torch.no_grad()
def read_start(
    path: Path, model: Model, precision: Int4 | Int8, head: Int4 | Int8
) -> dict[str, Grid]:
    """Load what `write_start` wrote into a model; returns the grids."""
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
