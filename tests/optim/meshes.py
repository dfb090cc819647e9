"""Models cut over the processes of a mesh, for tests that start processes."""

from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module


def shard_layers(model, shape):
    """Shard every linear layer over a mesh ``(data,)`` or ``(data, tensor)``, layers 0 and 2 of the latter by columns and rows.

    Returns this process's place along the data dimension.
    """
    if len(shape) == 1:
        data = init_device_mesh("cpu", shape)
    else:
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data", "tensor"))
        parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
        data = mesh["data"]
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=data)
    fully_shard(model, mesh=data)
    return data.get_local_rank()
