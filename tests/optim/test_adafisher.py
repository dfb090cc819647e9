"""AdaFisher against a float64 reference written from its formulas, layer by layer, and what it does with layers it does not know."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, unfold

import fallline as fl
from fallline import optim
from fallline.core import MissingOracle
from fallline.core.processes import run_gloo

SETTINGS = {"lr": 1e-3, "beta": 0.9, "lam": 1e-3, "gammas": (0.92, 0.008), "every": 100, "weight_decay": 0.0}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=fl.Key(seed).generator(), dtype=torch.float64)


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return make().double()


def mlp() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5, bias=False), nn.Tanh(), nn.Linear(5, 3)))


def batch(t: int, shape: tuple[int, ...] = (10, 6)) -> tuple[Tensor, Tensor]:
    return draw(*shape, seed=t), torch.randint(3, shape[:1], generator=fl.Key(t).fold("y").generator())


def kronecker_diagonals(layer: nn.Module, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """H and S by loops over the formulas of the paper's code, the bias's entry last."""
    if isinstance(layer, nn.Linear):
        x, s = x.reshape(-1, x.shape[-1]), s.reshape(-1, s.shape[-1])
        H, one = (x**2).sum(0) / len(x), 1.0
        S = (s**2).sum(0) / len(s)
    elif isinstance(layer, nn.Conv2d):
        patches = unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride).transpose(1, 2)
        H, one = (patches**2).sum((0, 1)) / (patches.shape[0] * patches.shape[1]), 1.0
        S = (s**2).sum((0, 2, 3)) / (s.shape[0] * s.shape[2] * s.shape[3])
    else:
        spatial = x[0, 0].numel()
        others = [d for d in range(x.ndim) if d != 1]
        sums = x.sum(others) / spatial**2
        H, one = (sums @ sums)[None] / len(x) ** 2, x.shape[1] / len(x) ** 2
        kept = s.ndim - 1 if isinstance(layer, nn.LayerNorm) else 1
        S = s.sum([d for d in range(s.ndim) if d != kept]) ** 2 / len(s)
    return (H if layer.bias is None else torch.cat([H, torch.tensor([one], dtype=H.dtype)])), S


def minmax(v: Tensor) -> Tensor:
    return (v - v.min()) / (v.max() - v.min() + 1e-12)


class Reference:
    """The rule on a model of its own, with torch's full backward hooks; every layer once a pass."""

    def __init__(self, model: nn.Module, kinds: tuple[type, ...], decoupled: bool = False, **settings) -> None:
        self.model, self.decoupled, self.settings = model, decoupled, {**SETTINGS, **settings}
        self.layers = [m for m in model.modules() if isinstance(m, kinds)]
        self.H, self.S, self.m, self.seen, self.t = {}, {}, {}, {}, 0
        for layer in self.layers:
            layer.register_forward_hook(lambda m, x, out: self.seen.update({m: [x[0].detach()]}))
            layer.register_full_backward_hook(lambda m, _, s: self.seen[m].append(s[0]))

    def step(self, x: Tensor, y: Tensor) -> None:
        k = self.settings
        self.model.zero_grad()
        cross_entropy(self.model(x), y).backward()
        if self.t % k["every"] == 0:
            for layer in self.layers:
                H, S = kronecker_diagonals(layer, *self.seen[layer])
                for store, new in ((self.H, H), (self.S, S)):
                    old = store.get(layer, torch.ones_like(new))
                    store[layer] = (1 - k["gammas"][0]) * old + k["gammas"][1] * minmax(new)
        self.t += 1
        fisher = {}
        for layer in self.layers:
            F = torch.outer(self.S[layer], self.H[layer]) + k["lam"]
            fisher[layer.weight] = (F if layer.bias is None else F[:, :-1]).reshape(layer.weight.shape)
            if layer.bias is not None:
                fisher[layer.bias] = F[:, -1]
        with torch.no_grad():
            for p in self.model.parameters():
                g = p.grad if self.decoupled else p.grad + k["weight_decay"] * p
                self.m[p] = k["beta"] * self.m.get(p, 0.0) + (1 - k["beta"]) * g
                decay = k["weight_decay"] * p if self.decoupled else 0.0
                p -= k["lr"] * (self.m[p] / (1 - k["beta"] ** self.t) / fisher.get(p, 1.0) + decay)


class Sequence(nn.Module):
    """A linear layer and a layer norm over three dimensions, an embedding that is neither."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.out = nn.Embedding(7, 6), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.embed((x > 0).long()) * x.unsqueeze(-1))).mean(1)


def convolutions() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
                                        nn.Conv2d(4, 3, 2, dilation=2), nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 3)))


CASES = {
    "defaults": (mlp, (10, 6), {}),
    "often, with decay": (mlp, (10, 6), {"every": 2, "weight_decay": 0.1, "lr": 1e-2, "beta": 0.5, "lam": 0.05, "gammas": (0.3, 0.5)}),
    "convolutions and norms": (convolutions, (5, 2, 8, 8), {"every": 1, "lam": 0.01}),
    "sequences": (lambda: seeded(Sequence), (5, 4), {"every": 3, "lam": 0.01}),
}


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("make", [optim.AdaFisher, optim.AdaFisherW])
@pytest.mark.parametrize("case", CASES)
def test_steps_are_those_of_the_formulas(case: str, make) -> None:
    network, shape, settings = CASES[case]
    ours, theirs = network(), network()
    optimizer = make(ours.parameters(), **settings)
    kinds = (nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.LayerNorm)
    reference = Reference(theirs, kinds, decoupled=make is optim.AdaFisherW, **settings)
    objective = fl.Objective(ours, cross_entropy)
    for t in range(5):
        x, y = batch(t, shape)
        optimizer.step(objective(x, y))
        reference.step(x, y)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_defaults_are_the_papers() -> None:
    (group,) = optim.AdaFisher([nn.Parameter(torch.ones(2))]).param_groups
    assert (group["lr"], group["betas"], group["lam"], group["gammas"], group["weight_decay"]) == (1e-3, (0.9,), 1e-3, (0.92, 0.008), 0)
    assert optim.AdaFisher([nn.Parameter(torch.ones(2))]).direction.every == 100


def test_state_is_one_momentum_and_vectors_that_start_at_one() -> None:
    model = mlp()
    optimizer = optim.AdaFisher(model.parameters())
    optimizer.step(fl.Objective(model, cross_entropy)(*batch(0)))
    weight = optimizer.state[model[0].weight]
    assert weight["exp_avg"].shape == (8, 6) and weight["inputs"].shape == (6,) and weight["outputs"].shape == (8,)
    assert float(weight["outputs"].min()) == pytest.approx(0.08) and float(weight["outputs"].max()) == pytest.approx(0.088)
    assert optimizer.state[model[0].bias]["inputs"].shape == (1,)


def test_a_layer_used_twice_has_the_moments_of_all_rows_and_activations_act_in_place() -> None:
    layer = seeded(lambda: nn.Linear(4, 4))
    model = nn.Sequential(layer, nn.ReLU(inplace=True), layer)
    optimizer = optim.AdaFisher(model.parameters(), gammas=(0.5, 0.5))
    x = draw(7, 4)
    optimizer.step(fl.Objective(model, lambda out, _: out.square().mean())(x, torch.zeros(7)))
    start = seeded(lambda: nn.Linear(4, 4))
    hidden = start(x).relu()
    hidden.retain_grad()
    first = start(x)
    first.retain_grad()
    middle = first.relu()
    out = start(middle)
    out.retain_grad()
    out.square().mean().backward()
    H = torch.cat([x, middle]).square().mean(0).detach()
    S = torch.cat([first.grad, out.grad]).square().mean(0)
    found = optimizer.state[layer.weight]
    torch.testing.assert_close(found["inputs"], 0.5 + 0.5 * minmax(torch.cat([H, torch.ones(1)]))[:-1])
    torch.testing.assert_close(found["outputs"], 0.5 + 0.5 * minmax(S))


def test_grouped_convolutions_average_over_groups() -> None:
    model = seeded(lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(24, 3)))
    optimizer = optim.AdaFisher(model.parameters(), gammas=(0.5, 0.5))
    x, y = batch(0, (5, 4, 4, 4))
    optimizer.step(fl.Objective(model, cross_entropy)(x, y))
    H = unfold(x, 3).square().mean((0, 2)).view(2, -1).mean(0)
    torch.testing.assert_close(optimizer.state[model[0].weight]["inputs"],
                               0.5 + 0.5 * minmax(torch.cat([H, torch.ones(1, dtype=H.dtype)]))[:-1])
    assert optimizer.state[model[0].weight]["outputs"].shape == (6,)


class Mixed(nn.Module):
    """Parameters of its own, a layer norm over two dimensions, a frozen layer, attention that has its own use of its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.norm, self.frozen = nn.Parameter(torch.ones(3)), nn.LayerNorm((2, 4)), nn.Linear(4, 4)
        self.attention, self.out = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.frozen(self.norm(x))
        return self.scale * self.out(self.attention(x, x, x, need_weights=False)[0]).mean(1)


def test_other_parameters_take_plain_momentum_and_frozen_ones_stay() -> None:
    model = seeded(Mixed)
    optimizer = optim.AdaFisher(model.parameters(), every=2, lr=0.1)
    x, y = batch(0, (6, 2, 4))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    cross_entropy(model(x), y).backward()
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    for t in range(3):
        optimizer.step(fl.Objective(model, cross_entropy)(x, y))
        if t == 0:
            for name in ("scale", "norm.weight", "attention.in_proj_weight", "attention.out_proj.weight"):
                torch.testing.assert_close(dict(model.named_parameters())[name].detach(), before[name] - 0.1 * gradients[name])
                assert "outputs" not in optimizer.state[dict(model.named_parameters())[name]]
    assert "outputs" in optimizer.state[model.out.weight] and torch.equal(model.frozen.weight, before["frozen.weight"])


def test_steps_between_are_ordinary_ones_and_evaluation_elsewhere_changes_nothing() -> None:
    one, two = mlp(), mlp()
    first, second = (optim.AdaFisher(model.parameters(), every=3) for model in (one, two))
    for t in range(4):
        x, y = batch(t)
        first.step(fl.Objective(one, cross_entropy)(x, y))
        if t % 3 == 0:
            second.step(fl.Objective(two, cross_entropy)(x, y))
        else:
            cross_entropy(two(draw(3, 6)), torch.zeros(3, dtype=torch.long)).backward()  # another pass, thrown away
            second.zero_grad()
            with torch.no_grad():
                two.eval()(x)
            cross_entropy(two.train()(x), y).backward()
            second.step()
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not any(m._forward_hooks for m in one.modules())
    with pytest.raises(MissingOracle, match=r"AdaFisher needs .*layer inputs.*step\(objective\(batch\)\)"):
        optim.AdaFisher(one.parameters()).step()
    with pytest.raises(MissingOracle, match="AdaFisher needs"):
        optim.AdaFisher(one.parameters()).step(lambda: cross_entropy(one(x), y))


def test_a_function_that_is_no_network_is_refused() -> None:
    problem = fl.Smooth(lambda x: x @ x, torch.ones(2))
    point = nn.Parameter(problem.x0.clone())
    with pytest.raises(MissingOracle, match="layers of a network"):
        optim.AdaFisher([point]).step(problem.bind(point))


def test_parameters_that_come_late_are_read_at_their_own_first_step() -> None:
    model = mlp()
    optimizer = optim.AdaFisher(model[0].parameters(), every=100)
    objective = fl.Objective(model, cross_entropy)
    optimizer.step(objective(*batch(0)))
    kept = optimizer.state[model[0].weight]["inputs"].clone()
    optimizer.add_param_group({"params": model[4].parameters()})
    optimizer.step(objective(*batch(1)))
    assert "outputs" in optimizer.state[model[4].weight] and optimizer.state[model[4].weight]["step"] == 1
    assert torch.equal(optimizer.state[model[0].weight]["inputs"], kept)


def test_the_scale_of_the_loss_does_not_matter_to_the_matrix() -> None:
    states = []
    for scale in (1.0, 1e3):
        model = mlp()
        optimizer = optim.AdaFisher(model.parameters(), lr=0.0)
        optimizer.step(fl.Objective(model, lambda out, y, scale=scale: scale * cross_entropy(out, y))(*batch(0)))
        states.append(optimizer.state[model[0].weight])
    for name in ("inputs", "outputs"):
        torch.testing.assert_close(states[0][name], states[1][name], rtol=1e-6, atol=1e-6)


def test_the_optimizer_does_not_hold_the_network() -> None:
    model = mlp()
    optimizer = optim.AdaFisher(model.parameters(), every=1)
    optimizer.step(fl.Objective(model, cross_entropy)(*batch(0)))
    watcher = weakref.ref(model)
    del model
    gc.collect()
    assert watcher() is None and optimizer.param_groups


def test_other_rules_go_over_it() -> None:
    one, two = mlp(), mlp()
    plain = optim.AdaFisher(one.parameters(), every=2, lr=1e-4)
    measured = optim.WithStepSize(two.parameters(), base="adafisher", step_size=optim.DistanceOverGradients(), every=2)
    for t in range(3):
        plain.step(fl.Objective(one, cross_entropy)(*batch(t)))
        measured.step(fl.Objective(two, cross_entropy)(*batch(t)))
        for a, b in zip(one.parameters(), two.parameters(), strict=True):
            assert t > 0 or torch.equal(plain.state[a]["outputs"], measured.state[b]["outputs"])
    assert not torch.equal(one[0].weight, two[0].weight)


def test_a_step_that_is_left_out_leaves_the_matrix_alone() -> None:
    model = mlp()
    optimizer = optim.AdaFisher(model.parameters(), every=1, nonfinite="skip")
    objective = fl.Objective(model, cross_entropy)
    optimizer.step(objective(*batch(0)))
    kept = {name: value.clone() for name, value in optimizer.state[model[0].weight].items() if isinstance(value, Tensor)}
    x, y = batch(1)
    x[0, 0] = torch.inf
    optimizer.step(objective(x, y))
    assert all(torch.equal(optimizer.state[model[0].weight][name], value) for name, value in kept.items())


def test_bad_hyperparameters_are_named() -> None:
    p = [nn.Parameter(torch.ones(2))]
    for settings, message in (({"lam": 0.0}, "lam must be"), ({"beta": 1.0}, "beta must be"), ({"every": 0}, "every must be"),
                              ({"gammas": (0.9,)}, "gammas must be 2"), ({"gammas": (1.0, 0.1)}, r"gammas\[0\]")):
        with pytest.raises(ValueError, match=message):
            optim.AdaFisher(p, **settings)


def two_processes(rank: int) -> dict[str, object]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    model = DistributedDataParallel(mlp())
    optimizer = optim.AdaFisher(model.parameters(), every=2)
    for t in range(4):
        x, y = batch(t)
        optimizer.step(fl.Objective(model, cross_entropy)(x[5 * rank:5 * rank + 5], y[5 * rank:5 * rank + 5]))
    sharded = mlp()
    fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
    refused = ""
    try:
        optim.AdaFisher(sharded.parameters()).step(fl.Objective(sharded, cross_entropy)(*batch(0)))
    except MissingOracle as error:
        refused = str(error)
    return {"parameters": [p.detach().clone() for p in model.parameters()], "refused": refused}


def test_data_parallel_training_is_that_of_one_process_and_sharded_networks_are_refused() -> None:
    one, two = run_gloo(two_processes, 2)
    alone = mlp()
    optimizer = optim.AdaFisher(alone.parameters(), every=2)
    for t in range(4):
        optimizer.step(fl.Objective(alone, cross_entropy)(*batch(t)))
    for a, b, c in zip(alone.parameters(), one["parameters"], two["parameters"], strict=True):
        assert torch.equal(b, c)
        torch.testing.assert_close(a.detach(), b, rtol=1e-7, atol=1e-10)
    assert "sharded" in one["refused"]
