"""Modules that read their weights when they are called, and drop them when they return.

A pass over a batch then needs memory for one matrix and the activations, whatever the size of the
model.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from edgelm.checkpoint.source import Checkpoint
from edgelm.runtime.process_memory.heap import LARGE, give_back

ReadTensor = Callable[[str], torch.Tensor]
ReadRows = Callable[[str, torch.Tensor], torch.Tensor]


def stream_weights(
    model: nn.Module, checkpoint: Checkpoint, read: ReadTensor, read_rows: ReadRows
) -> None:
    """Let every module of a model without weights read its own.

    Args:
        model: built without memory for its weights.
        checkpoint: has the constants that modules keep as buffers, which are read now.
        read: the parameter of this name in fp32.
        read_rows: these rows of a table, in any floating-point type.
    """
    for name, module in model.named_modules():
        for buffer in module._buffers.keys() - module._non_persistent_buffers_set:
            if checkpoint.has(f"{name}.{buffer}"):  # xIELU's constants
                module._buffers[buffer] = checkpoint.tensor(f"{name}.{buffer}").float()
    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            # A short convolution is never called: its parent reads its weight. Nor is Gemma 3n's
            # AltUp, whose methods the layer calls.
            parent = model.get_submodule(name.rpartition(".")[0])
            uncalled = isinstance(module, nn.Conv1d) or hasattr(module, "scale_corrected_output")
            user = parent if uncalled else module
            _stream(name, module, user, read, read_rows)


def _stream(
    name: str, module: nn.Module, user: nn.Module, read: ReadTensor, read_rows: ReadRows
) -> None:
    """Let a module have its own weights while `user` runs."""
    names = [parameter for parameter, _ in module.named_parameters(recurse=False)]
    empty = {parameter: module._parameters[parameter] for parameter in names}

    def fill(_: nn.Module, __: Any) -> None:
        for parameter in names:
            tensor = read(f"{name}.{parameter}")
            module._parameters[parameter] = nn.Parameter(tensor, requires_grad=False)

    def fill_rows(_: nn.Module, arguments: Any) -> tuple[torch.Tensor, ...]:
        # Of a table only what is looked up: Gemma 4's for every layer has billions of values.
        ids, places = torch.unique(arguments[0], return_inverse=True)
        rows = read_rows(f"{name}.weight", ids).float()
        module._parameters["weight"] = nn.Parameter(rows, requires_grad=False)
        return places, *arguments[1:]

    large = sum(parameter.numel() for parameter in empty.values() if parameter is not None)

    def drop(_: nn.Module, __: Any, ___: Any) -> None:
        module._parameters.update(empty)
        if large > LARGE:
            give_back()

    if isinstance(module, nn.Embedding):
        module.padding_idx = None  # only training reads it
        module.register_forward_pre_hook(fill_rows)
    else:
        user.register_forward_pre_hook(fill)
    user.register_forward_hook(drop)
