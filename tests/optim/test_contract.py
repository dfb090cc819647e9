"""What every torch optimizer promises, over every registered optimizer."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import fallline as fl
from fallline import optim
from fallline.core import NonFiniteError, registry
from fallline.optim.engine import plan

NAMES = [name for name in registry.names() if registry.is_optimizer(name)]
# Rules that do not treat a complex number as a pair of real ones.
REAL = ("lion", "lion-k", "gravity", "shampoo", "scalable-shampoo", "distributed-shampoo", "adam-8bit", "sgdm-8bit",
        "optimistic-amsgrad", "riemannian-adam", "riemannian-adagrad", "m-fac", "sparse-ggt", "sparse-m-fac")
# Rules that see a group as one vector: it has one step count, its own products in float64, and what is not finite is everywhere.
JOINT = ("m-fac", "psgd", "sparse-ggt", "sparse-m-fac")
# Rules that need more than gradients: the loss, the loss elsewhere, curvature.
NEEDY = ("adafisher", "adafisherw", "aegd", "aepg", "egn", "grad-reg", "oasis", "psgd", "psps", "saddle-free-newton", "sania",
         "smb", "sophia", "sso", "tngd")
# Rules that keep a count of their own steps' geometry or subspaces need small settings to be exercised in a few steps.
SETTINGS = {"frugal": {"update_gap": 2}, "galore": {"rank": 2, "update_gap": 2}, "sophia": {"k": 2}, "shampoo": {"root_every": 2},
            "scalable-shampoo": {"root_every": 2, "start_step": 2, "block": 5}, "distributed-shampoo": {
                "root_every": 2, "start_step": 2, "max_dim": 5},
            "shampoo-4bit": {"T1": 1, "T2": 2, "min_size": 1, "block": 4}, "adafisher": {"every": 2}, "adafisherw": {"every": 2},
            "t-dog": {"reps_rel": 1e3, "lipschitz": 0.01},  # else its first steps are lost in float32
            "sparse-ggt": {"density": 0.5}, "sparse-m-fac": {"density": 0.9},
            "adam-8bit": {"min_size": 1, "block": 16}, "sgdm-8bit": {"min_size": 1, "block": 16}}


def make(name, params, **options):
    return registry.lookup(name)(params, **{**SETTINGS.get(name, {}), **options})


def network(dtype=torch.float32):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def batch(t=0, dtype=torch.float32):
    generator = fl.Key(t).generator()
    return torch.randn(10, 6, generator=generator).to(dtype), torch.randint(3, (10,), generator=generator)


def train(model, optimizer, steps, start=0, dtype=torch.float32):
    objective = fl.Objective(model, cross_entropy)
    for t in range(start, start + steps):
        loss = optimizer.step(objective(*batch(t, dtype)))
    return loss


def same(one, two, exact=True):
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        if exact:
            assert torch.equal(a, b)
        else:
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6 if a.dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_and_returns_the_loss(name):
    model = network()
    optimizer = make(name, model.parameters())
    before = [p.detach().clone() for p in model.parameters()]
    loss = train(model, optimizer, 3)
    assert loss.ndim == 0 and torch.isfinite(loss)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_resume_is_exact(name):
    whole, half = network(), network()
    train(whole, make(name, whole.parameters()), 7)
    first = make(name, half.parameters())
    train(half, first, 4)
    file = io.BytesIO()
    torch.save({"model": half.state_dict(), "optimizer": first.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    rest = network()
    rest.load_state_dict(saved["model"])
    second = make(name, rest.parameters())
    second.load_state_dict(saved["optimizer"])
    train(rest, second, 3, start=4)
    same(whole, rest)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("name", NAMES)
def test_copies_go_on_alike_and_apart(name, copier):
    model = network()
    optimizer = make(name, model.parameters())
    train(model, optimizer, 3)
    twin, second = copier((model, optimizer))
    train(model, optimizer, 3, start=3)
    train(twin, second, 3, start=3)
    same(model, twin)


@pytest.mark.parametrize("name", NAMES)
def test_packing_changes_nothing(name, monkeypatch):
    packed, unpacked = network(torch.float64), network(torch.float64)
    train(packed, make(name, packed.parameters()), 4, dtype=torch.float64)
    monkeypatch.setattr(plan, "PACKED_UP_TO", 0)
    train(unpacked, make(name, unpacked.parameters()), 4, dtype=torch.float64)
    same(packed, unpacked, exact=False)


@pytest.mark.parametrize("name", NAMES)
def test_groups_keep_their_own_learning_rate_and_schedulers_change_it(name):
    model = network()
    weights, biases = [p for p in model.parameters() if p.ndim > 1], [p for p in model.parameters() if p.ndim <= 1]
    optimizer = make(name, [{"params": weights}, {"params": biases, "lr": 0.0}])
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, 0.5, total_iters=10)
    before = [p.detach().clone() for p in biases]
    train(model, optimizer, 2)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * optimizer.param_groups[0]["initial_lr"])
    if name not in ("nesterov", "momentum", "sgdm-8bit"):  # there the rate is inside a velocity that starts at 0
        assert all(torch.equal(a, b) for a, b in zip(before, biases, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_group_can_be_added_and_unknown_keys_are_refused(name):
    model = network()
    layers = list(model.children())
    optimizer = make(name, layers[0].parameters())
    late = [p for layer in layers[1:] for p in layer.parameters()]
    optimizer.step(lambda: _filled(model)) if name not in NEEDY else None
    optimizer.add_param_group({"params": late})
    train(model, optimizer, 2)
    assert all(p in optimizer.state or name in ("sgd", "frugal") for p in late)
    with pytest.raises(ValueError, match="momentun"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "momentun": 0.9})


def _filled(model):
    model.zero_grad()
    loss = cross_entropy(model(batch()[0]), batch()[1])
    loss.backward()
    return loss


@pytest.mark.parametrize("name", [n for n in NAMES if n not in NEEDY])
def test_missing_gradients_scalars_empty_and_tied_tensors(name):
    scalar, empty = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.ones(0, 3))
    resting, matrix = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3, 3))
    optimizer = make(name, [scalar, empty, resting, matrix])
    for t in range(4):
        scalar.grad, empty.grad, matrix.grad = torch.tensor(1.0), torch.zeros(0, 3), torch.ones(3, 3)
        resting.grad = torch.ones(2, 2) if t == 2 else None
        optimizer.step()
    assert scalar < 2.0 and (matrix < 1).all()
    assert optimizer.state[resting].get("step", 1) == (4 if name in JOINT else 1) and (resting <= 1).all()
    assert resting not in optimizer.state or optimizer.state[matrix]["step"] == 4


@pytest.mark.parametrize("name", [n for n in NAMES if n not in NEEDY])
def test_maximize_is_minimize_of_the_negative(name):
    ascending, descending = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3, 4))
    up, down = make(name, [ascending], maximize=True), make(name, [descending])
    for t in range(3):
        g = torch.randn(3, 4, generator=fl.Key(t).generator())
        ascending.grad, descending.grad = g, -g
        up.step(), down.step()
    assert torch.equal(ascending, descending)


@pytest.mark.parametrize("name", [n for n in NEEDY if n != "sophia"])  # its labels are drawn from a likelihood, which has a sign
def test_maximize_is_minimize_of_the_negative_with_an_objective(name):
    ends = []
    for sign in (1, -1):
        model = network(torch.float64)
        optimizer = make(name, model.parameters(), maximize=sign < 0)
        objective = fl.Objective(model, lambda outputs, targets, sign=sign: sign * cross_entropy(outputs, targets))
        for t in range(4):
            optimizer.step(objective(*batch(t, torch.float64)))
        ends.append(model)
    same(*ends, exact=False)


@pytest.mark.parametrize("name", NAMES)
def test_hooks_run(name):
    model = network()
    optimizer = make(name, model.parameters())
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    train(model, optimizer, 1)
    assert seen == ["before", "after"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_parameters_keep_their_dtype(name, dtype):
    if name in ("sophia", "oasis", "psgd") and dtype is torch.float16:
        pytest.skip("the CPU has no half-precision kernel for this network's second backward pass")
    model = network(dtype)
    optimizer = make(name, model.parameters())
    train(model, optimizer, 2, dtype=dtype)
    assert all(p.dtype is dtype and torch.isfinite(p).all() for p in model.parameters())
    state = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor) and v.is_floating_point()]
    assert all(v.dtype is torch.float32 or (name in JOINT and v.dtype is torch.float64) for v in state)
    restored = make(name, network(dtype).parameters())
    restored.load_state_dict(optimizer.state_dict())
    kept = [v for s in restored.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    assert all(v.dtype in (torch.float32, torch.uint8, torch.int32, torch.int64) or (name in JOINT and v.dtype is torch.float64)
               for v in kept)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in NEEDY])
def test_sparse_gradients_are_refused_by_name(name):
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = make(name, embedding.named_parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"sparse.*'weight'.*sparse=False"):
        optimizer.step()


@pytest.mark.parametrize("name", [n for n in NAMES if n not in NEEDY])
def test_complex_parameters_work_or_are_refused(name):
    p = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    optimizer = make(name, [p])
    p.grad = torch.full((3,), 1 + 1j)
    if name in REAL:
        with pytest.raises(RuntimeError, match="complex"):
            optimizer.step()
    else:
        optimizer.step()
        assert (p.real < 1).all() and (p.imag < 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_gradient_clipping_and_scaling(name):
    model = network()
    optimizer = make(name, model.parameters())
    if name in NEEDY:
        train(model, optimizer, 1)
        return
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for t in range(2):
        optimizer.zero_grad()
        scaler.scale(cross_entropy(model(batch(t)[0]), batch(t)[1])).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("name", [n for n in NAMES if n not in NEEDY])
def test_a_nan_gradient_raises_or_is_skipped(name):
    good, bad = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(3, 3))

    def gradients(value):
        good.grad, bad.grad = torch.ones(4), torch.full((3, 3), value)

    optimizer = make(name, [("good", good), ("bad", bad)], nonfinite="skip")
    gradients(0.5)
    optimizer.step()
    kept = [good.detach().clone(), bad.detach().clone()]
    gradients(float("nan"))
    optimizer.step()
    assert torch.equal(good, kept[0]) and torch.equal(bad, kept[1])
    strict = make(name, [("good", good), ("bad", bad)])
    strict.step()
    gradients(0.5)
    # A step size that sees all parameters: one NaN is everyone's.
    culprit = "good" if name in ("dog", "adagrad-norm", *JOINT) else "bad"
    with pytest.raises(NonFiniteError, match=rf"'{culprit}'.*nonfinite=\"skip\""):
        strict.step()


def test_an_unknown_policy_is_named():
    with pytest.raises(ValueError, match="nonfinite must be one of"):
        optim.AdamW([nn.Parameter(torch.ones(2))], nonfinite="panic")


@pytest.mark.parametrize("name", [n for n in NAMES if n not in (*NEEDY, "adam-8bit", "sgdm-8bit")])
def test_the_pure_form_is_the_step(name):
    params = [nn.Parameter(torch.randn(s, dtype=torch.float64, generator=fl.Key(1).generator())) for s in ((3,), (4, 5))]
    optimizer = make(name, params)
    pure, state = [p.detach().clone() for p in params], optimizer.init([p.detach() for p in params])
    for t in range(3):
        gradients = [torch.randn(p.shape, dtype=torch.float64, generator=fl.Key(t).generator()) for p in params]
        pure, state = optimizer.update(pure, gradients, state)
        for p, g in zip(params, gradients, strict=True):
            p.grad = g
        optimizer.step()
    for a, b in zip(params, pure, strict=True):
        torch.testing.assert_close(a.detach(), b, rtol=1e-12, atol=1e-12)


def test_steps_can_be_unrolled_by_autograd():
    optimizer = optim.AdamW([nn.Parameter(torch.zeros(2, dtype=torch.float64))])
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)

    def final(lr):
        x, state = [torch.ones(2, dtype=torch.float64, requires_grad=True)], optimizer.init([torch.ones(2, dtype=torch.float64)])
        for _ in range(4):
            (g,) = torch.autograd.grad((x[0] ** 2).sum() / 2, x, create_graph=True)
            x, state = optimizer.update(x, [g], state, lr=lr)
        return (x[0] ** 2).sum()

    (slope,) = torch.autograd.grad(final(lr), lr)
    difference = (final(lr.detach() + 1e-6) - final(lr.detach() - 1e-6)) / 2e-6
    assert float(slope) == pytest.approx(float(difference), rel=1e-5)


TORCH = {
    "sgd": (lambda p: optim.SGD(p, lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
    "momentum": (lambda p: optim.Momentum(p, lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    "nesterov": (lambda p: optim.Nesterov(p, lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True)),
    "adam": (lambda p: optim.Adam(p, weight_decay=0.1), lambda p: torch.optim.Adam(p, weight_decay=0.1)),
    "adamw": (lambda p: optim.AdamW(p, weight_decay=0.1), lambda p: torch.optim.AdamW(p, weight_decay=0.1)),
    "adamax": (lambda p: optim.AdaMax(p), lambda p: torch.optim.Adamax(p)),
    "adadelta": (lambda p: optim.Adadelta(p), lambda p: torch.optim.Adadelta(p)),
    "adagrad": (lambda p: optim.Adagrad(p, eps=0.0), lambda p: torch.optim.Adagrad(p, eps=0.0)),
    "rmsprop": (lambda p: optim.RMSprop(p, eps=0.0), lambda p: torch.optim.RMSprop(p, lr=1e-3, alpha=0.9, eps=0.0)),
}


@pytest.mark.parametrize("name", TORCH)
def test_torchs_own_rules_are_torchs(name):
    ours, theirs = network(), network()
    make_ours, make_theirs = TORCH[name]
    train(ours, make_ours(ours.parameters()), 10)
    optimizer = make_theirs(theirs.parameters())
    for t in range(10):
        optimizer.zero_grad()
        cross_entropy(theirs(batch(t)[0]), batch(t)[1]).backward()
        optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


# Rules on matrices and whole groups run eagerly; for the others "compile" must change the speed only.
MATRICES = ("shampoo", "scalable-shampoo", "distributed-shampoo", "shampoo-4bit", "frugal", "galore", "dion", "adafisher", "adafisherw")
COMPILED = [n for n in NAMES if n not in (*MATRICES, *JOINT)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_is_eager(name, dtype):
    if name == "sania" and dtype == torch.float32:
        dtype = torch.float64  # it divides by squares of gradients, some of which are rounded to nothing
    eager, compiled = network(dtype), network(dtype)
    one, two = make(name, eager.parameters()), make(name, compiled.parameters(), compile=True)
    for t in range(4):
        train(eager, one, 1, start=t, dtype=dtype)
        train(compiled, two, 1, start=t, dtype=dtype)
        for group in (*one.param_groups, *two.param_groups):
            group["lr"] *= 0.9
    if name.endswith("8bit"):  # a rounding difference may move a code to its neighbour
        for a, b in zip(eager.parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    elif name in ("oasis", "t-dog") and dtype == torch.float32:  # long steps, which multiply what is rounded
        for a, b in zip(eager.parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    elif dtype == torch.float64:
        for a, b in zip(eager.parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    else:
        same(eager, compiled, exact=False)


def test_layouts_that_are_not_contiguous():
    for view in (lambda x: x.t(), lambda x: x[::2], lambda x: x.expand(3, 6, 4)[0]):
        storage = torch.randn(6, 4, generator=fl.Key(0).generator())
        plain, strided = nn.Parameter(view(storage.clone()).contiguous()), nn.Parameter(view(storage.clone()))
        for p in (plain, strided):
            optimizer = optim.AdamW([p], lr=0.1)
            for t in range(3):
                p.grad = torch.randn(p.shape, generator=fl.Key(t).generator())
                optimizer.step()
        torch.testing.assert_close(plain, strided)


@pytest.mark.parametrize("name", NAMES)
def test_a_trainer_s_loop(name):
    """What trainers do: named groups with and without decay, accumulation, clipping, warm-up, a checkpoint in the middle."""
    objective = lambda model, t: cross_entropy(model(batch(t)[0]), batch(t)[1])

    def start():
        model = network()
        decayed = {n for n, p in model.named_parameters() if p.ndim >= 2}
        named = list(model.named_parameters())
        groups = [{"params": [p for n, p in named if n in decayed], "weight_decay": 0.1},
                  {"params": [p for n, p in named if n not in decayed], "weight_decay": 0.0}]
        optimizer = make(name, groups)
        return model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1.0, (t + 1) / 4))

    def go(model, optimizer, scheduler, first, last):
        for t in range(first, last):
            for half in range(2):
                (objective(model, 2 * t + half) / 2).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if name in NEEDY:
                optimizer.step(fl.Objective(model, cross_entropy)(*batch(t)))
            else:
                optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)

    whole, again = start(), start()
    go(*whole, 0, 6)
    first = start()
    go(*first, 0, 3)
    for one, two in zip(first, again, strict=True):
        two.load_state_dict(one.state_dict())
    go(*again, 3, 6)
    same(whole[0], again[0])
    assert [group["weight_decay"] for group in again[1].param_groups] == [0.1, 0.0]
    assert again[2].get_last_lr() == whole[2].get_last_lr()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NEEDY])
def test_the_pure_form_keeps_nothing_that_the_caller_may_write_to(name):
    params = [p.detach().clone() for p in network(torch.float64).parameters()]
    optimizer = make(name, [nn.Parameter(p) for p in params])
    state = optimizer.init(params)
    gradients = [torch.randn(p.shape, dtype=p.dtype, generator=fl.Key(i).generator()) for i, p in enumerate(params)]
    found, state = optimizer.update(params, gradients, state)
    before = copy.deepcopy((found, state))
    for tensor in (*params, *gradients):
        tensor.fill_(math.nan)
    for kept, old in zip(state, before[1], strict=True):
        assert all(torch.equal(kept[n], old[n]) for n in old if isinstance(old[n], torch.Tensor) and not old[n].isnan().any())
    assert all(torch.equal(a, b) for a, b in zip(found, before[0], strict=True))


def test_warnings_point_at_the_line_that_caused_them():
    p = nn.Parameter(torch.ones(3))
    for cause in (lambda: optim.Gravity([p], lr=1e-3, alpha=0.1), lambda: optim.Lion([p], lr=0.1, weight_decay=0.0),
                  lambda: optim.AdEMAMix([p], warmup_steps=10), lambda: optim.XGrad([p], base="ademamix", warmup_steps=10)):
        with pytest.warns(UserWarning) as found:
            cause()
        assert {warning.filename for warning in found} == {__file__}
