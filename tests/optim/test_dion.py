"""Dion against its formulas, and on processes that average nothing, or hold parts of every matrix."""

import copy
import math

import pytest
import torch
from meshes import shard_layers
from torch import nn
from torch.nn.functional import cross_entropy

import fallline as fl
from fallline.core.keys import Key
from fallline.core.processes import run_gloo
from fallline.optim import AdamW, Dion, Lion, roles


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 18), nn.Tanh(), nn.Linear(18, 8), nn.Tanh(), nn.Linear(8, 6)).double()


def batch(t):
    generator = Key(t).generator()
    return torch.randn(16, 12, dtype=torch.float64, generator=generator), torch.randint(6, (16,), generator=generator)


def train(model, optimizer, steps, start=0, rows=slice(None)):
    for t in range(start, start + steps):
        optimizer.zero_grad()
        x, y = batch(t)
        cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()


def whole(p):
    return (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()


@pytest.mark.parametrize("shape", [(7, 5), (4, 9), (1, 3)])
def test_it_is_its_formulas(shape):
    m, n = shape
    r = max(1, round(0.5 * min(m, n)))
    X = torch.randn(m, n, dtype=torch.float64, generator=Key(1).generator())
    p = nn.Parameter(X.clone())
    optimizer = Dion([p], lr=0.02, rank_fraction=0.5, weight_decay=0.1)
    Q = torch.randn(n, r, dtype=torch.float64, generator=Key(0).fold(0, "basis").generator())
    M = torch.zeros_like(X)
    for t in range(6):
        G = torch.randn(m, n, dtype=torch.float64, generator=Key(t).fold("g").generator())
        p.grad = G.clone()
        optimizer.step()
        M = M + G
        P = torch.linalg.qr(M @ Q)[0]
        R = M.T @ P
        M = M - (1 - 0.95) * P @ R.T
        Q = R / (R.norm(dim=0) + 1e-8)
        X = (1 - 0.02 * 0.1) * X - 0.02 * math.sqrt(m / n) * P @ Q.T
        torch.testing.assert_close(p.detach(), X, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(optimizer.state[p]["momentum"], M, rtol=1e-9, atol=1e-9)


def test_the_first_basis_is_gaussian_and_depends_on_the_seed_and_the_parameter():
    drawn = {}
    for seed in (0, 1):
        params = [nn.Parameter(torch.ones(50, 40)) for _ in range(2)]
        optimizer = Dion(params, lr=0.0, rank_fraction=1.0, seed=seed)
        for p in params:
            p.grad = torch.zeros_like(p)
        before = optimizer.direction_for(params[0], optimizer.param_groups[0])
        for i, p in enumerate(params):
            drawn[seed, i] = before._drawn(p, i) if seed == 0 else optimizer.direction_for(p, {})._drawn(p, i)
    values = list(drawn.values())
    assert all(not torch.equal(a, b) for i, a in enumerate(values) for b in values[:i])
    assert abs(float(values[0].mean())) < 0.1 and abs(float(values[0].std()) - 1) < 0.1


def test_a_matrix_without_a_gradient_at_first_is_not_lost():
    p = nn.Parameter(torch.zeros(6, 5, dtype=torch.float64))
    optimizer = Dion([p], weight_decay=0.0)
    for t in range(3):
        p.grad = torch.zeros_like(p) if t == 0 else torch.randn(6, 5, dtype=torch.float64, generator=Key(t).generator())
        before = p.detach().clone()
        optimizer.step()
        assert int((p != before).any(1).sum()) == (0 if t == 0 else 6)  # all rows


@pytest.mark.parametrize("scalar_algo", ["adamw", "lion"])
def test_all_else_is_adamw_or_lion(scalar_algo):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    twin = copy.deepcopy(model)
    optimizer = Dion.for_model(model, scalar_algo=scalar_algo)
    other = {"adamw": AdamW, "lion": Lion}[scalar_algo](
        [{"params": g["params"], "lr": 0.01 / (2 if scalar_algo == "lion" and g["role"] == "head" else 1)} for g in roles(twin)],
        betas=(0.9, 0.95), weight_decay=0.01)
    for t in range(3):
        tokens, y = torch.randint(5, (8,), generator=Key(t).generator()), torch.randint(3, (8,), generator=Key(t, "y").generator())
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            if p.shape == (4, 4):  # the matrix, which the two rules treat apart
                q.data.copy_(p.data)
        for own, opt in ((model, optimizer), (twin, other)):
            opt.zero_grad()
            cross_entropy(own(tokens), y).backward()
            opt.step()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        if name == "3.weight" and scalar_algo == "lion":
            decay = (1 - 0.01 * 0.01) / (1 - 0.005 * 0.01)  # its decay is that of the group
            torch.testing.assert_close(p, q * decay**3, rtol=1e-3, atol=1e-4)
        elif p.shape != (4, 4):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_kernels_of_convolutions_are_no_matrices():
    conv = nn.Conv2d(3, 4, 2)
    with pytest.raises(ValueError, match=r"role 'matrix' must have two dimensions for Dion, got shape \(4, 3, 2, 2\)"):
        Dion(roles(conv))
    optimizer = Dion.for_model(conv)
    conv(torch.ones(1, 3, 4, 4)).sum().backward()
    optimizer.step()
    assert "exp_avg" in optimizer.state[conv.weight]


@pytest.mark.parametrize("options, message", [
    ({"rank_fraction": 0.0}, "rank_fraction must be a number in"), ({"rank_fraction": 1.5}, "rank_fraction"),
    ({"mu": -0.1}, "mu must be"),
    ({"scalar_algo": "sgd"}, "scalar_algo must be 'adamw' or 'lion'"),
])
def test_bad_arguments_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        Dion([nn.Parameter(torch.ones(2, 2))], **options)


def test_a_group_has_its_own_mu():
    with pytest.raises(ValueError, match="mu must be"):
        Dion([{"params": [nn.Parameter(torch.ones(2, 2))], "mu": 5.0}])


# ---------------------------------------------------------------- processes


def state_numbers(optimizer, name):
    tensors = [s[name] for s in optimizer.state.values() if name in s]
    return sum((x.to_local() if hasattr(x, "to_local") else x).numel() for x in tensors)


def unsynchronised(rank, world):
    """Every process differentiates its own part of the batch, and nothing averages the gradients."""
    model = network()
    optimizer = Dion(model.parameters(), process_group=torch.distributed.group.WORLD)
    rows = 16 // world
    train(model, optimizer, 20, rows=slice(rows * rank, rows * rank + rows))
    apart = [optimizer.state[p]["momentum"].clone() for p in model.parameters() if p.ndim == 2]
    optimizer.synchronize_momentum()
    together = [optimizer.state[p]["momentum"].clone() for p in model.parameters() if p.ndim == 2]
    train(model, optimizer, 5, start=20, rows=slice(rows * rank, rows * rank + rows))
    return {"parameters": [whole(p) for p in model.parameters()], "bytes": optimizer.reduced_bytes, "apart": apart,
            "together": together}


def with_a_closure(rank):
    """Gradients that the step itself asks for, and one that is not finite in one process only."""
    torch.manual_seed(0)
    model = nn.Linear(6, 4).double()
    optimizer = Dion(model.parameters(), process_group=torch.distributed.group.WORLD, nonfinite="skip")
    for t in range(4):
        x = torch.randn(8, 6, dtype=torch.float64, generator=Key(t).fold(rank).generator())

        def closure(x=x, t=t):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            if t == 2 and rank == 0:
                model.weight.grad[0, 0] = math.nan
            return loss.detach()

        before = model.weight.detach().clone()
        optimizer.step(closure)
        assert torch.equal(model.weight, before) == (t == 2)
    return [whole(p) for p in model.parameters()]


def sharded(rank, mesh_shape):
    model = network()
    place = shard_layers(model, mesh_shape)
    optimizer = Dion(model.parameters())
    rows = 16 // mesh_shape[0]
    first = rows * place
    train(model, optimizer, 25, rows=slice(first, first + rows))
    return {"parameters": [whole(p) for p in model.parameters()], "momentum": state_numbers(optimizer, "momentum"),
            "basis": [whole(s["basis"]) for s in optimizer.state.values() if "basis" in s]}


def saved(rank, folder):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = Dion(model.parameters())
    train(model, optimizer, 10)
    dcp.save({"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=folder)


def resumed(rank, folder):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (4,)))
    optimizer = Dion(model.parameters())
    state = {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.load(state, checkpoint_id=folder)
    model.load_state_dict(state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    train(model, optimizer, 15, start=10)
    return [whole(p) for p in model.parameters()]


def of_two(rank, folder):
    saved(rank, folder)
    return {"unsynchronised": unsynchronised(rank, 2), "sharded": sharded(rank, (2,)), "closure": with_a_closure(rank)}


def of_four(rank, folder):
    return {"unsynchronised": unsynchronised(rank, 4), "mesh": sharded(rank, (2, 2)), "resumed": {"parameters": resumed(rank, folder)}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("checkpoint"))
    return {2: run_gloo(of_two, 2, folder), 4: run_gloo(of_four, 4, folder)}


@pytest.fixture(scope="module")
def alone():
    model = network()
    optimizer = Dion(model.parameters())
    train(model, optimizer, 25)
    return model, optimizer


@pytest.mark.parametrize("world", [2, 4])
def test_processes_that_do_not_average_gradients_are_one(runs, alone, world):
    model, _ = alone
    for run in (run["unsynchronised"] for run in runs[world]):
        for a, b in zip(model.parameters(), run["parameters"], strict=True):
            torch.testing.assert_close(b, a.detach(), rtol=0, atol=1e-10)
    apart, together = ([run["unsynchronised"][name] for run in runs[world]] for name in ("apart", "together"))
    for i, own in enumerate(apart[0]):
        assert not torch.equal(own, apart[1][i])
        torch.testing.assert_close(together[0][i], sum(found[i] for found in apart) / world)


def test_processes_average_after_the_closure_and_skip_together(runs):
    first, second = (run["closure"] for run in runs[2])
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_processes_send_low_rank_parts_only(runs):
    model = network()
    expected = sum((sum(p.shape) * max(1, round(min(p.shape) / 4)) if p.ndim == 2 else p.numel()) * 8 for p in model.parameters())
    expected += 8  # whether all is finite
    assert all(run["unsynchronised"]["bytes"] == expected for run in runs[2])


@pytest.mark.parametrize("world, name", [(2, "sharded"), (4, "mesh"), (4, "resumed")])
def test_sharded_matrices_stay_sharded_and_give_the_same(runs, alone, world, name):
    model, optimizer = alone
    for run in (run[name] for run in runs[world]):
        for a, b in zip(model.parameters(), run["parameters"], strict=True):
            torch.testing.assert_close(b, a.detach(), rtol=0, atol=1e-10)
    if name != "resumed":
        found = [run[name] for run in runs[world]]
        copies = 1 if name == "sharded" else None
        if copies:
            assert sum(run["momentum"] for run in found) == state_numbers(optimizer, "momentum")
        mine = [s["basis"] for s in optimizer.state.values() if "basis" in s]
        for a, b in zip(mine, found[0]["basis"], strict=True):
            assert a.shape == b.shape
            torch.testing.assert_close((a @ a.mT), (b @ b.mT), rtol=1e-6, atol=1e-6)


def test_it_trains_a_language_model():
    problem = fl.problems.tiny_lm(0)
    model = copy.deepcopy(problem.model)
    optimizer = Dion.for_model(model, lr=0.01)
    inputs, targets = problem.data
    first = None
    for t in range(12):
        rows = torch.randint(len(inputs), (16,), generator=Key(t).generator())
        loss = optimizer.step(fl.Objective(model, problem.loss_fn)(inputs[rows], targets[rows]))
        first = loss if first is None else first
    assert loss < first - 0.5
