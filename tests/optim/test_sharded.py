"""Real processes on gloo: data parallel and fully sharded training give what one process gives."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import fallline as fl
from fallline.core import registry
from fallline.core.errors import NonFiniteError
from fallline.core.processes import run_gloo

# Rules that need more than gradients are tested with the oracles they ask.
NEEDY = ("adafisher", "adafisherw", "aegd", "aepg", "egn", "grad-reg", "oasis", "psgd", "psps", "saddle-free-newton", "sania",
         "smb", "sophia", "sso", "tngd")
NAMES = [n for n in registry.names() if registry.is_optimizer(n) and n not in NEEDY]
SETTINGS = {"frugal": {"update_gap": 2, "selector": "columns", "density": 0.5},
            "galore": {"rank": 2, "update_gap": 2},
            "scalable-shampoo": {"root_every": 2, "start_step": 2, "block": 5},
            "distributed-shampoo": {"root_every": 2, "start_step": 2, "max_dim": 5},
            "shampoo-4bit": {"T1": 1, "T2": 2, "min_size": 1, "block": 4},
            "sparse-ggt": {"density": 0.3},
            "sparse-m-fac": {"density": 0.3, "compressor": "lowrank", "m": 8}}
# Block-wise codes share a scale within a block, and blocks are cut from what a process holds.
CLOSE = {"adam-8bit": 1e-3, "sgdm-8bit": 1e-3}


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def batch(t):
    generator = fl.Key(t).generator()
    return torch.randn(8, 6, dtype=torch.float64, generator=generator), torch.randint(3, (8,), generator=generator)


def train(model, optimizer, steps, rows=slice(None), start=0):
    for t in range(start, start + steps):
        optimizer.zero_grad()
        x, y = batch(t)
        cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()


def make(name, params):
    return registry.lookup(name)(params, **SETTINGS.get(name, {}))


def whole(p):
    return (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()


def every_optimizer(rank, names):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    rows = slice(4 * rank, 4 * rank + 4)
    mesh = init_device_mesh("cpu", (2,))
    found = {}
    for name in names:
        replicated = DistributedDataParallel(network())
        train(replicated, make(name, replicated.parameters()), 4, rows)
        sharded = network()
        for layer in sharded:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        optimizer = make(name, sharded.parameters())
        train(sharded, optimizer, 4, rows)
        local = sum(v.to_local().numel() if hasattr(v, "to_local") else v.numel()
                    for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor))
        found[name] = {"replicated": [whole(p) for p in replicated.parameters()], "sharded": [whole(p) for p in sharded.parameters()],
                       "state": local}
    return found


@pytest.fixture(scope="module")
def runs():
    return run_gloo(every_optimizer, 2, NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_replicated_and_sharded_training_equal_one_process(runs, name):
    alone = network()
    train(alone, make(name, alone.parameters()), 4)
    for rank in range(2):
        for kind in ("replicated", "sharded"):
            for a, b in zip(alone.parameters(), runs[rank][name][kind], strict=True):
                torch.testing.assert_close(a.detach(), b, rtol=CLOSE.get(name, 1e-10), atol=CLOSE.get(name, 1e-10))


# Rules that evaluate a closure, and evaluate it again at other weights.
CLOSURES = {"mars, exact": ("mars", {"exact": True}), "mars, exact, shampoo": ("mars", {"exact": True, "variant": "shampoo"}),
            "grad-reg": ("grad-reg", {"base": "adamw"}), "backward": ("grad-reg", {"mode": "backward"}), "aepg": ("aepg", {}),
            "aegd": ("aegd", {})}


def with_closures(rank, names):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    found = {}
    for name in names:
        model = network()
        fully_shard(model, mesh=mesh)
        method, settings = CLOSURES[name]
        optimizer = registry.lookup(method)(model.parameters(), **settings)
        for t in range(4):
            def closure(t=t, model=model, optimizer=optimizer):
                optimizer.zero_grad()
                x, y = batch(t)  # the same on both ranks: the loss must be that of all data
                loss = cross_entropy(model(x), y)
                loss.backward()
                return loss.detach()

            optimizer.step(closure)
        found[name] = [whole(p) for p in model.parameters()]
    return found


def test_rules_that_evaluate_again_are_right_when_sharded():
    runs = run_gloo(with_closures, 2, list(CLOSURES))
    for name, (method, settings) in CLOSURES.items():
        alone = network()
        optimizer = registry.lookup(method)(alone.parameters(), **settings)
        for t in range(4):
            optimizer.step(fl.Objective(alone, cross_entropy)(*batch(t)))
        for found in runs:
            for a, b in zip(alone.parameters(), found[name], strict=True):
                torch.testing.assert_close(b, a.detach(), rtol=1e-9, atol=1e-11, msg=lambda m: f"{name}: {m}")  # noqa: B023


def test_elementwise_state_is_sharded(runs):
    parameters = sum(p.numel() for p in network().parameters())
    assert sum(run["adamw"]["state"] for run in runs) == 2 * parameters


def tensor_parallel(rank, names):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (2,))
    found = {}
    for name in names:
        model = parallelize_module(network(), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
        train(model, make(name, model.parameters()), 4)
        found[name] = [whole(p) for p in model.parameters()]
    return found


def test_tensor_parallel_training_equals_one_process():
    # Parameters are split by rows, by columns, replicated, or ordinary tensors, in one model.
    runs = run_gloo(tensor_parallel, 2, NAMES)
    for name in NAMES:
        alone = network()
        train(alone, make(name, alone.parameters()), 4)
        for found in runs:
            for a, b in zip(alone.parameters(), found[name], strict=True):
                torch.testing.assert_close(b, a, rtol=CLOSE.get(name, 1e-9), atol=CLOSE.get(name, 1e-11), msg=lambda m: f"{name}: {m}")  # noqa: B023


def checkpoint_round_trip(rank, folder):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    ends = []
    for stop in (6, 3):
        model = network()
        fully_shard(model, mesh=mesh)
        optimizer = make("adamw", model.parameters())
        train(model, optimizer, stop)
        ends.append((model, optimizer))
    (model, _), (half, optimizer) = ends
    state = {"optimizer": get_optimizer_state_dict(half, optimizer), "model": half.state_dict()}
    dcp.save(state, checkpoint_id=folder)
    rest = network()
    fully_shard(rest, mesh=mesh)
    second = make("adamw", rest.parameters())
    target = {"optimizer": get_optimizer_state_dict(rest, second), "model": rest.state_dict()}
    dcp.load(target, checkpoint_id=folder)
    rest.load_state_dict(target["model"])
    set_optimizer_state_dict(rest, second, target["optimizer"])
    train(rest, second, 3, start=3)
    return [bool(torch.equal(whole(a), whole(b))) for a, b in zip(model.parameters(), rest.parameters(), strict=True)]


def test_distributed_checkpoints_resume_exactly(tmp_path):
    assert all(all(found) for found in run_gloo(checkpoint_round_trip, 2, str(tmp_path)))


def one_rank_is_empty(rank, nonfinite):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    mesh = init_device_mesh("cpu", (2,))
    p = nn.Parameter(DTensor.from_local(torch.ones(1 - rank, 3), mesh, [Shard(0)], run_check=False, shape=(1, 3), stride=(3, 1)))
    optimizer = fl.optim.AdamW([("row", p)], nonfinite=nonfinite)
    said = []
    for value in (1.0, 1e15, float("nan"), 1.0):
        local = torch.full((1 - rank, 3), value)
        p.grad = DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=(1, 3), stride=(3, 1))
        try:
            optimizer.step()
            said.append("")
        except NonFiniteError as error:
            said.append(str(error))
    return said, bool(p.to_local().isfinite().all())


def test_a_rank_without_elements_takes_part_in_the_alarm():
    for rank, (said, _) in enumerate(run_gloo(one_rank_is_empty, 2, "raise")):
        assert said[:3] == ["", "", ""]
        assert ("'row'" if rank == 0 else "on another rank") in said[3]
    assert all(said == [""] * 4 and finite for said, finite in run_gloo(one_rank_is_empty, 2, "skip"))
