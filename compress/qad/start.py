"""The start of quantization-aware distillation: the result of export's own quantization.

Activation-aware scaling (`edgelm.quantize.awq`), then GPTQ for 4-bit matrices
(`edgelm.quantize.gptq`), with second moments from the training text. Training starts from the
weights that GPTQ compensated, on the grid that it chose. Experts of a mixture are rounded to
nearest, as export does, with errors weighted by the inputs of each. This takes a minute; starting
from round-to-nearest reached less in 65 thousand tokens (docs/decisions/qad-start.md).
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
from edgelm.quantize.expert_sums import ExpertSums
from edgelm.quantize.gptq import compensate
from edgelm.quantize.hessians import Hessians
from edgelm.quantize.precision import Int4, Int8, describe
from edgelm.quantize.rtn import quantize
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.groups import EMBEDDING, HEAD, TABLES, experts_in, groups, tensor_names
from edgelm.spec.tensor_names import stored_name
from edgelm.spec.tensor_shapes import stacked_by_input


@torch.no_grad()
def prepare_for_quantization(
    model: Model,
    batches: Iterable[torch.Tensor],
    precision: Int4 | Int8,
    head: Int4 | Int8,
    scratch: Path,
) -> dict[str, Grid]:
    """Scale and compensate a model in place; returns the grid of every matrix by its name.

    Without quantization the model's output changes only by GPTQ's compensation. Takes a minute on
    a CPU for 135M parameters.

    Args:
        model: a causal language model in fp32.
        batches: int64 tokens [B, T] each, from the training text.
        precision: of the layers' matrices.
        head: of the head and of the embedding, tied or not.
        scratch: an existing folder with space for one fp32 [K, K] per matrix.

    Raises:
        DoesNotFit: there is too little space.
    """
    spec = spec_of(model)
    moments = Hessians(scratch, spec)
    free = shutil.disk_usage(scratch).free
    if moments.size_bytes > free:
        raise DoesNotFit(
            f"second moments need {format_bytes(moments.size_bytes)} in {scratch}, "
            f"{format_bytes(free)} are free; free some space or choose another run folder"
        )
    experts = ExpertSums()
    with moments.watching(model), experts.watching(model, spec):
        for tokens in batches:
            model.base_model(input_ids=tokens.to(model.device), use_cache=False)
    smoothing = None
    if Int4 in (type(precision), type(head)):
        energy = {group: moments[group].diagonal().clone() for group in moments.groups}
        smoothing = Smoothing.from_mean_squares(spec, energy)
        fold_scales(smoothing, model, spec)
    grids: dict[str, Grid] = {}
    mean_squares = experts.mean_square()
    for group in groups(spec):
        target = head if group in (HEAD, EMBEDDING) else precision
        if experts_in(spec, group):
            [name] = tensor_names(spec, group)
            stack = model.get_parameter(name).detach()
            grids[name] = _grid_of_experts(
                stack, target, mean_squares[name], by_input=stacked_by_input(spec.family)
            )
            continue
        parameters = {name: model.get_parameter(name) for name in tensor_names(spec, group)}
        matrix = torch.cat([one.detach().float().cpu() for one in parameters.values()])
        # Without zero points, scales are positive: every engine's kernels can read those.
        positive = isinstance(target, Int4) and target.symmetric
        if group in TABLES or isinstance(target, Int8):  # GPTQ gains nothing at 8 bits
            quantized = quantize(matrix, target, positive_scales=positive)
        else:
            found = moments[group]
            if (columns := smoothing.columns(group) if smoothing else None) is not None:
                found = found / columns / columns[:, None]
            matrix, quantized = compensate(matrix, target, found, positive_scales=positive)
        at = 0
        for name, parameter in parameters.items():
            rows = slice(at, at + len(parameter))
            parameter.copy_(matrix[rows])
            grids[name] = Grid.from_quantized(quantized, rows)
            at += len(parameter)
    return grids


def _grid_of_experts(
    stack: torch.Tensor, precision: Int4 | Int8, mean_squares: torch.Tensor, *, by_input: bool
) -> Grid:
    """The grid that export chooses for each expert: to nearest, by the inputs that it gets.

    Args:
        stack: [experts, N, K], or [experts, K, N] with `by_input`.
        precision: of the experts.
        mean_squares: of the inputs of each, [experts, K].
        by_input: the order of the stack.
    """
    matrices = stack.transpose(1, 2) if by_input else stack
    rounded = [
        quantize(matrix.float().cpu(), precision, importance.cpu())
        for matrix, importance in zip(matrices, mean_squares, strict=True)
    ]
    return Grid.from_experts(rounded, by_input=by_input)


def fold_scales(smoothing: Smoothing, model: Model, spec: DecoderSpec) -> None:
    """Fold activation-aware scales into weights and norms in place; the output is unchanged."""
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
        weight = weights[stored_name(spec.family, f"model.{name}.weight")]
        divisor = smoothing.norm(name)
        assert divisor is not None
        weight.copy_((weight + offset) / divisor.to(weight.device) - offset)
        if spec.norms_have_bias:
            norm_bias = weights[stored_name(spec.family, f"model.{name}.bias")]
            norm_bias.div_(divisor.to(weight.device))


def write_start(path: Path, model: Model, grids: Mapping[str, Grid], fingerprint: str) -> None:
    """Write a model after `prepare_for_quantization`, and its grids, to a file.

    fingerprint: of what it was made from (`start_fingerprint`), compared when the file is read.
    """
    tensors = {name: one.detach().cpu() for name, one in model.named_parameters()}
    for name, grid in grids.items():
        tensors[f"{name}.scales"] = grid.scales
        if grid.zero_points is not None:
            tensors[f"{name}.zero_points"] = grid.zero_points
    save_file(tensors, path, {"of": fingerprint, **UNSEALED})
    seal_file(path)


@torch.no_grad()
def read_start(
    path: Path, model: Model, precision: Int4 | Int8, head: Int4 | Int8, fingerprint: str
) -> dict[str, Grid]:
    """Load what `write_start` wrote into a model; returns the grids.

    Raises:
        BadInput: the file was made from another model or for another precision.
    """
    with safe_open(path, "pt") as file:
        theirs = (file.metadata() or {}).get("of", "")
    if theirs != fingerprint:
        raise BadInput(
            f"{path} belongs to another run ({theirs}; this one is {fingerprint}); remove its "
            "folder or choose another"
        )
    tensors = load_file(path)
    for name, parameter in model.named_parameters():
        parameter.copy_(tensors[name])
    spec = spec_of(model)
    grids = {}
    for group in groups(spec):
        target = head if group in (HEAD, EMBEDDING) else precision
        bits = 4 if isinstance(target, Int4) else 8
        for name in tensor_names(spec, group):
            scales, zeros = tensors[f"{name}.scales"], tensors.get(f"{name}.zero_points")
            by_input = scales.ndim > 2 and stacked_by_input(spec.family)
            grids[name] = Grid(bits, target.group_size, scales, zeros, by_input)
    return grids


def start_fingerprint(model: Model, precision: Int4 | Int8, head: Int4 | Int8) -> str:
    """What a start depends on: precisions and the hash of the weights."""
    weights = weights_sha256(model)[:12]
    return f"{describe(precision)}, head {describe(head)}, weights {weights}"
