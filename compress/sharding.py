"""A model that is run and not trained, its layers divided over processes (FSDP2)."""

import os

import torch

from edgelm.compress.model import Model
from edgelm.compress.offloading import move_own
from edgelm.compress.run.distributed import join_group, world_size


def shards_models() -> bool:
    """Whether this process was launched with FSDP2, as `accelerate launch` tells it."""
    used = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return used and os.environ.get("FSDP_VERSION", "1") == "2" and world_size() > 1


def shard_layers(model: Model, device: torch.device) -> Model:
    """Divide the decoder layers of a model over the processes of each machine.

    A process keeps its part of every layer on its device, and gathers a layer while it runs, for
    which all processes have to run the model at the same time and equally often. Embedding, final
    norm and head are small beside the layers, and read outside the forward pass: every process
    has all of them.

    Args:
        model: in host memory, the same on every process; not trained. Changed in place.
        device: of this process.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    join_group()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    machines = world_size() // local
    # Between machines, gathering every layer would wait for the network.
    sizes = (machines, local) if machines > 1 else (local,)
    names = ("replicate", "shard")[-len(sizes) :]
    mesh = init_device_mesh(device.type, sizes, mesh_dim_names=names)
    model.requires_grad_(False)
    layers = model.base_model.layers
    inside = {id(module) for layer in layers for module in layer.modules()}
    for layer in layers:  # one after the other: a device never holds more than one whole layer
        fully_shard(layer.to(device), mesh=mesh, reshard_after_forward=True)
    for module in model.modules():
        if id(module) not in inside:
            move_own(module, device)
    return model
