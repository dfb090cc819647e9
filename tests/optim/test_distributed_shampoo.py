"""Blocks that belong to processes: what two and four processes give is what one gives, and each keeps its part of the state."""

import pickle

import pytest
import torch
from meshes import shard_layers
from torch import nn
from torch.nn.functional import cross_entropy

import fallline as fl
from fallline.core.processes import run_gloo
from fallline.optim import DistributedShampoo, Shampoo
from fallline.optim.engine.placement import Placement, Processes

# Rounding is amplified by ε^{−1/2}: gradients of half a batch, averaged, are not those of the batch to the last digit.
SETTINGS = {"lr": 0.01, "eps": 1e-8, "max_dim": 16, "root_every": 4, "start_step": 3, "weight_decay": 0.1}


def network(dtype=torch.float64):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(20, 36), nn.Tanh(), nn.Linear(36, 24), nn.Tanh(), nn.Linear(24, 10)).to(dtype)


def batch(t, dtype=torch.float64):
    generator = fl.Key(t).generator()
    return torch.randn(16, 20, dtype=torch.float64, generator=generator).to(dtype), torch.randint(10, (16,), generator=generator)


def train(model, optimizer, steps, start=0, rows=slice(None)):
    dtype = next(model.parameters()).dtype
    for t in range(start, start + steps):
        optimizer.zero_grad()
        x, y = batch(t, dtype)
        cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()


def whole(p):
    return (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()


def state_bytes(optimizer):
    return sum(v.nbytes for own in optimizer.state.values() for v in own.values() if isinstance(v, torch.Tensor))


def alone(options=None, steps=12):
    model = network(dtype_of(options))
    optimizer = DistributedShampoo(model.parameters(), **{**SETTINGS, **(options or {})})
    train(model, optimizer, steps)
    return model, optimizer


def dtype_of(options):
    return torch.float32 if "gather_dtype" in (options or {}) else torch.float64


OPTIONS = {"": {}, "momentum": {"momentum": 0.9, "nesterov": True, "decoupled": False}, "late": {"late": True, "root_every": 2},
           "adagrad": {"graft": "adagrad", "betas": (0.9, 1.0)}, "half": {"gather_dtype": torch.bfloat16, "eps": 1e-4},
           "float32": {"gather_dtype": torch.float32, "eps": 1e-4}}
WITHIN = {"half": 5e-3, "float32": 1e-5}


def replicated(rank, world, options):
    from torch.nn.parallel import DistributedDataParallel

    model = DistributedDataParallel(network(dtype_of(options)))
    optimizer = DistributedShampoo(model.parameters(), **{**SETTINGS, **options})
    rows = 16 // world
    train(model, optimizer, 12, rows=slice(rows * rank, rows * rank + rows))
    return result(model, optimizer)


def result(model, optimizer):
    return {"parameters": [whole(p) for p in model.parameters()], "bytes": state_bytes(optimizer), "sent": optimizer.gathered_bytes}


def fully_sharded(rank, mesh_shape):
    model = network()
    place = shard_layers(model, mesh_shape)
    optimizer = DistributedShampoo(model.parameters(), **SETTINGS)
    rows = 16 // mesh_shape[0]
    first = rows * place
    train(model, optimizer, 12, rows=slice(first, first + rows))
    return result(model, optimizer)


def saved(folder, options):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model = network()
    optimizer = DistributedShampoo(model.parameters(), **{**SETTINGS, **options})
    train(model, optimizer, 6)
    dcp.save({"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=folder)
    return result(model, optimizer)


def resumed(folder, options):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    model = network()
    optimizer = DistributedShampoo(model.parameters(), **{**SETTINGS, **options})
    state = {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.load(state, checkpoint_id=folder)
    model.load_state_dict(state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    train(model, optimizer, 6, start=6)
    return result(model, optimizer)


def dealt(sizes):
    placement = Placement(Processes())
    for group in sizes:
        placement.deal(group)
    return placement.owners


def with_an_empty_parameter():
    p, empty = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.zeros(0, 5))
    optimizer = DistributedShampoo([p, empty], **SETTINGS)
    p.grad, empty.grad = torch.ones(3, 3), torch.zeros(0, 5)
    optimizer.step()
    return p.detach()


def of_two(rank, folder):
    """Everything that two processes do, in one start of them."""
    found = {name: replicated(rank, 2, options) for name, options in OPTIONS.items()}
    for name in ("", "late"):
        saved(f"{folder}/{name}", OPTIONS[name])
    return {**found, "sharded": fully_sharded(rank, (2,)), "owners": dealt([[[4, 4, 1], [9]], [[2]]]),
            "empty": with_an_empty_parameter(), "pickled": list(pickle.dumps(DistributedShampoo(network().parameters(), **SETTINGS)))}


def of_four(rank, folder):
    found = {f"resumed {name}": resumed(f"{folder}/{name}", OPTIONS[name]) for name in ("", "late")}
    return {**found, "": replicated(rank, 4, {}), "mesh": fully_sharded(rank, (2, 2))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def two(folder):
    return run_gloo(of_two, 2, str(folder))


@pytest.fixture(scope="module")
def four(folder, two):
    return run_gloo(of_four, 4, str(folder))


def close(model, runs, tolerance):
    for run in runs:
        for a, b in zip(model.parameters(), run["parameters"], strict=True):
            torch.testing.assert_close(b, a.detach(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", OPTIONS)
def test_two_data_parallel_processes_share_the_work_and_the_state(two, name):
    model, optimizer = alone(OPTIONS[name])
    runs = [run[name] for run in two]
    close(model, runs, WITHIN.get(name, 1e-10))
    width = {"half": 2, "float32": 4}.get(name, 8)
    whole_bytes = width * sum(p.numel() for p in model.parameters())
    assert all(whole_bytes <= run["sent"] <= 1.1 * whole_bytes for run in runs)
    assert sum(run["bytes"] for run in runs) == state_bytes(optimizer)
    assert max(run["bytes"] for run in runs) <= 0.6 * state_bytes(optimizer)


def test_four_processes_and_sharded_parameters_give_the_same(two, four):
    model, optimizer = alone()
    for runs in ([run[""] for run in four], [run["sharded"] for run in two], [run["mesh"] for run in four]):
        close(model, runs, 1e-10)
        assert sum(run["bytes"] for run in runs) == state_bytes(optimizer)


@pytest.mark.parametrize("name", ["", "late"])
def test_a_checkpoint_of_two_processes_goes_on_in_four_and_in_one(two, four, folder, name):
    model, _ = alone(OPTIONS[name])
    close(model, [run[f"resumed {name}"] for run in four], 1e-10)
    close(model, [resumed(f"{folder}/{name}", OPTIONS[name])], 1e-10)


def test_an_empty_parameter_is_no_part_and_another_number_of_processes_is_refused(two):
    assert all(not torch.equal(run["empty"], torch.ones(3, 3)) for run in two)
    optimizer = pickle.loads(bytes(two[0]["pickled"]))
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="made for 2 processes, and there are 1"):
        optimizer.step()


def test_parts_go_to_the_process_that_has_least(two):
    assert all(run["owners"] == [[1, 1, 1], [0], [0]] for run in two)


def test_state_of_another_process_is_refused_by_name():
    _, optimizer = alone(steps=2)
    state = optimizer.state_dict()
    state["state"][0] = {name: value for name, value in state["state"][0].items() if not name.endswith(".0.1")}
    model = network()
    other = DistributedShampoo(model.parameters(), **SETTINGS)
    other.load_state_dict(state)
    with pytest.raises(ValueError, match=r"no '\w+\.0\.1' for the parameter with shape \(36, 20\).*checkpoint"):
        train(model, other, 1)


def test_blocks_as_large_as_the_tensors_are_shampoo():
    torch.manual_seed(0)
    start = torch.randn(7, 5, dtype=torch.float64)
    points = []
    for make in (lambda p: Shampoo(p, lr=0.1, eps=1e-12),
                 lambda p: DistributedShampoo(p, lr=0.1, betas=(0.0, 1.0), max_dim=7, root_every=1, start_step=1, graft=None)):
        p = nn.Parameter(start.clone())
        optimizer = make([p])
        for t in range(8):
            p.grad = torch.randn(7, 5, dtype=torch.float64, generator=fl.Key(t).generator())
            optimizer.step()
        points.append(p.detach())
    torch.testing.assert_close(*points, rtol=1e-6, atol=1e-6)
