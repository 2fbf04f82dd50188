"""A model that is run and not trained, on a device that is too small for all of its layers."""

import gc
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from edgelm.compress.model import Model

_FOR_ACTIVATIONS = 0.15  # of a GPU's free memory


def room_for_weights(device: torch.device) -> int | None:
    """Bytes that a GPU has free for weights; None on a CPU, whose memory the system manages."""
    if device.type != "cuda":
        return None
    gc.collect()  # models of earlier stages
    torch.cuda.empty_cache()  # memory that PyTorch keeps would count as taken
    free, _ = torch.cuda.mem_get_info(device)
    return int(free * (1 - _FOR_ACTIVATIONS))


def offload_layers(model: Model, device: torch.device, room: int) -> int:
    """Put a model on a device; decoder layers beyond `room` stay in host memory.

    Such a layer is copied to the device for each run of it, and the copy is dropped afterwards.

    Args:
        model: in host memory; its weights must not be changed afterwards. Changed in place.
        device: that runs it.
        room: bytes of weights that the device may hold, the copy of one layer among them.

    Returns:
        The number of layers that stay in host memory.
    """
    layers = model.base_model.layers
    inside = {id(module) for layer in layers for module in layer.modules()}
    outside = [module for module in model.modules() if id(module) not in inside]
    for module in outside:
        move_own(module, device)
    used, sizes = _bytes(outside), [_bytes(layer.modules()) for layer in layers]
    if used + sum(sizes) <= room:
        model.to(device)
        return 0
    used += max(sizes)  # of the layer that is copied
    offloaded = 0
    for layer, size in zip(layers, sizes, strict=True):
        if used + size <= room:
            layer.to(device)
            used += size
        else:
            _copy_when_run(layer, device)
            offloaded += 1
    return offloaded


def move_own(module: nn.Module, device: torch.device) -> None:
    """Move what a module itself has to a device, without the modules in it."""
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.to(device)
    for name, buffer in module.named_buffers(recurse=False):
        setattr(module, name, buffer.to(device))


def _bytes(modules: Iterable[nn.Module]) -> int:
    """Of what modules themselves have; a tied matrix counts once."""
    found = {
        id(tensor): tensor.nbytes
        for module in modules
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
    }
    return sum(found.values())


def _copy_when_run(layer: nn.Module, device: torch.device) -> None:
    tensors = [*layer.parameters(), *layer.buffers()]
    # Copies from pinned memory are several times faster.
    host = [
        tensor.data.pin_memory() if device.type == "cuda" else tensor.data for tensor in tensors
    ]

    def before(*_: Any) -> None:
        for tensor, stored in zip(tensors, host, strict=True):
            tensor.data = stored.to(device, copy=True, non_blocking=True)

    def after(*_: Any) -> None:
        for tensor, stored in zip(tensors, host, strict=True):
            tensor.data = stored

    after()
    # First, since other hooks may read the weights; the second one also after an exception.
    layer.register_forward_pre_hook(before, prepend=True)
    layer.register_forward_hook(after, always_call=True)
