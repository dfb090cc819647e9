"""Tests of batch sizes, the sampler whose batches grow, and training with them."""

import json
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, TensorDataset

import fallline as fl
from fallline.core.errors import MissingOracle, NonFiniteError
from fallline.core.processes import run_gloo
from fallline.optim import AdaGradNorm
from fallline.optim.adaptive_batch import AdaptiveBatch
from fallline.optim.batch_sampler import AdaptiveBatchSampler
from fallline.optim.batch_sizes import GradientMoments, coordinate_test, inner_product_test, norm_test, per_sample_gradients


def gradients(b=6, seed=0, shift=0.3):
    generator = fl.Key(seed).generator()
    return {name: shift + torch.randn(b, *shape, dtype=torch.float64, generator=generator)
            for name, shape in (("weight", (4, 3)), ("bias", (4,)), ("scalar", ()))}


def flat(found):
    return torch.cat([g.reshape(len(g), -1) for g in found.values()], 1)


def variance(rows):
    return ((rows - rows.mean(0)) ** 2).sum(0) / (len(rows) - 1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("eta", [0.1, 0.5])
def test_the_tests_are_the_formulas(seed, eta):
    found = gradients(seed=seed)
    rows = flat(found)
    g = rows.mean(0)
    norm = float(variance(rows).sum() / (eta**2 * (g @ g)))
    assert norm_test(found, eta) == max(6, math.ceil(norm))
    inner = float(variance((rows @ g)[:, None])[0] / (eta**2 * (g @ g) ** 2))
    assert inner_product_test(found, eta) == max(6, math.ceil(inner))
    coordinate = float((variance(rows) / (eta**2 * g**2)).max())
    assert coordinate_test(found, eta) == max(6, math.ceil(coordinate))
    assert inner <= norm <= coordinate  # Cauchy-Schwarz, and a ratio of sums is below the largest ratio


def test_the_inner_product_is_over_all_tensors_together():
    # ⟨G_i, g⟩ is 2 for every sample, though the parts of it vary: no test summed over tensors passes.
    found = {"a": torch.tensor([[1.5], [0.5]]), "b": torch.tensor([[0.5], [1.5]])}
    assert inner_product_test(found, 0.01) == 2
    assert norm_test(found, 0.01) > 1000


def test_sizes_never_shrink_and_are_capped():
    found = gradients(b=6, shift=100.0)
    assert norm_test(found, 0.5) == inner_product_test(found, 0.5) == 6
    noisy = gradients(b=6, shift=0.0)
    assert norm_test(noisy, 0.01, largest=40) == coordinate_test(noisy, 0.01, largest=40) == 40
    assert norm_test(noisy, 0.01, largest=4) == 6


def test_no_gradient_at_all():
    still, balanced = {"w": torch.zeros(4, 2)}, {"w": torch.tensor([[1.0, 0.0], [-1.0, 0.0]])}
    for test in (norm_test, inner_product_test, coordinate_test):
        assert test(still) == 4
    for test in (norm_test, coordinate_test):
        assert test(balanced, largest=64) == 64
        with pytest.raises(ValueError, match="largest must be given"):
            test(balanced)
    # A coordinate without noise asks for nothing, whatever its gradient.
    assert coordinate_test({"w": torch.tensor([[1.0, 0.0], [1.1, 0.0]])}, 0.5) == 2


@pytest.mark.parametrize("test", [norm_test, inner_product_test, coordinate_test])
def test_bad_input_is_refused_by_name(test):
    with pytest.raises(ValueError, match="one sample has no variance"):
        test(gradients(b=1))
    with pytest.raises(ValueError, match="eta must be"):
        test(gradients(), 0.0)
    with pytest.raises(ValueError, match="largest must be a whole number"):
        test(gradients(), 0.5, largest=2.5)
    with pytest.raises(ValueError, match="common leading axis"):
        test({"a": torch.ones(3, 2), "b": torch.ones(2)})
    for bad in ([0.0, math.nan], [math.nan, 0.0]):
        with pytest.raises(NonFiniteError):
            test({name: torch.tensor([[1.0], [value]]) for name, value in zip("ab", bad, strict=True)})
    with pytest.raises(ValueError, match="at least one chunk"):
        test([])


@pytest.mark.parametrize("test", [norm_test, inner_product_test, coordinate_test])
def test_squares_of_half_precision_gradients_do_not_underflow(test):
    found = {name: g.half() for name, g in gradients().items()}
    small, exact = ({name: g.to(dtype) * scale for name, g in found.items()} for dtype, scale in
                    ((torch.float16, 2.0**-12), (torch.float64, 2.0**-12)))
    assert test(small, 0.1) == pytest.approx(test(exact, 0.1), rel=0.02)


def test_chunks_are_the_whole():
    found = gradients(b=11)
    chunks = [{name: g[i:i + 4] for name, g in found.items()} for i in (0, 4, 8)]
    for test in (norm_test, coordinate_test, inner_product_test):
        assert test(chunks, 0.1) == test(found, 0.1)
    assert norm_test(iter(chunks), 0.1) == norm_test(GradientMoments.of(found), 0.1) == norm_test(found, 0.1)
    with pytest.raises(TypeError, match="twice"):
        inner_product_test(iter(chunks), 0.1)
    merged = GradientMoments.of(chunks[0]).merged(GradientMoments.of(chunks[1])).merged(GradientMoments.of(chunks[2]))
    torch.testing.assert_close(flat({n: s[None] for n, s in merged.variance.items()})[0], variance(flat(found)), rtol=1e-12, atol=1e-12)


def pooled(rank):
    found = {name: g[:4] if rank == 0 else g[4:] for name, g in gradients(b=11).items()}
    moments = GradientMoments.of(found).pooled()
    return {"count": moments.count, "mean": moments.mean["weight"], "variance": moments.variance["weight"]}


def test_processes_pool_their_moments():
    whole = GradientMoments.of(gradients(b=11))
    assert whole.pooled() is whole
    for answer in run_gloo(pooled, 2):
        assert answer["count"] == 11
        torch.testing.assert_close(answer["mean"], whole.mean["weight"])
        torch.testing.assert_close(answer["variance"], whole.variance["weight"])


def network(norm=None):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), norm or nn.Identity(), nn.Tanh(), nn.Linear(8, 3)).double()


def batch(n=10):
    generator = fl.Key(3).generator()
    return torch.randn(n, 6, dtype=torch.float64, generator=generator), torch.randint(3, (n,), generator=generator)


def test_per_sample_gradients_of_a_network_in_chunks():
    model, (x, y) = network(), batch()
    realisation = fl.Objective(model, cross_entropy)(x, y)
    (whole,) = per_sample_gradients(realisation)
    chunks = list(per_sample_gradients(realisation, micro_batch=4))
    assert [len(chunk["0.bias"]) for chunk in chunks] == [4, 4, 2]
    for name, p in model.named_parameters():
        torch.testing.assert_close(torch.cat([chunk[name] for chunk in chunks]), whole[name])
        (g,) = torch.autograd.grad(cross_entropy(model(x[2:3]), y[2:3]), p)
        torch.testing.assert_close(whole[name][2], g)
    assert norm_test(per_sample_gradients(realisation, micro_batch=4), 0.1) == norm_test(whole, 0.1)
    assert realisation.counts["per_sample_gradients"] == 1 + 3 + 3


def test_batch_normalisation_is_refused_by_name():
    model = network(nn.BatchNorm1d(8))
    realisation = fl.Objective(model, cross_entropy)(*batch())
    with pytest.raises(MissingOracle, match=r"1 is BatchNorm1d.*GroupNorm"):
        list(per_sample_gradients(realisation))
    model.eval()
    assert len(list(per_sample_gradients(realisation))) == 1
    problem = fl.Training(network(nn.BatchNorm1d(8)), cross_entropy, batch())
    with pytest.raises(MissingOracle, match="batch normalisation"):
        fl.solve(problem, AdaptiveBatch(size=2), fl.Budget(steps=1))
    with pytest.raises(TypeError, match="realisation must be"):
        list(per_sample_gradients(fl.Smooth(lambda x: x.sum(), torch.ones(2))))


# ---------------------------------------------------------------- the sampler


def test_an_epoch_visits_every_sample_once_while_the_size_grows():
    sampler = AdaptiveBatchSampler(20, 3, drop_last=False, seed=5)
    seen, sizes = [], []
    for i, indices in enumerate(sampler):
        seen += indices
        sizes.append(len(indices))
        sampler.grow_to(3 + 2 * i)
    assert sizes == [3, 3, 5, 7, 2] and sorted(seen) == list(range(20))
    assert sampler.grow_to(1) == sampler.size == 11 and sampler.grow_to(100) == 20
    assert sampler.epoch == 1


def test_epochs_differ_and_seeds_repeat():
    def epochs(seed):
        sampler = AdaptiveBatchSampler(range(12), 4, seed=seed)
        return [list(sampler), list(sampler)]

    one, two = epochs(0), epochs(1)
    assert one == epochs(0) and one != two and one[0] != one[1]
    assert list(AdaptiveBatchSampler(5, 2, shuffle=False)) == [[0, 1], [2, 3]]
    assert [len(AdaptiveBatchSampler(5, 2, drop_last=d)) for d in (True, False)] == [2, 3]


def test_replicas_share_the_samples():
    samplers = [AdaptiveBatchSampler(11, 2, rank=r, replicas=3, drop_last=False) for r in range(3)]
    parts = [{index for indices in sampler for index in indices} for sampler in samplers]
    assert [len(p) for p in parts] == [3, 3, 3] and len(set.union(*parts)) == 9


def test_pieces_have_their_weights():
    data = TensorDataset(torch.arange(14.0))
    sampler = AdaptiveBatchSampler(data, 7, micro_batch=3)
    pieces = list(sampler.over(DataLoader(data, batch_sampler=sampler)))
    assert [len(p.data[0]) for p in pieces] == [3, 3, 1] * 2 and len(sampler) == 6
    assert [p.last for p in pieces] == [False, False, True] * 2
    assert [p.weight for p in pieces] == pytest.approx([3 / 7, 3 / 7, 1 / 7] * 2)


def run_loop(loader, sampler, stop, epochs=3):
    """What a loop receives, the size growing by one after every second piece; stopped after so many pieces."""
    seen = []
    for epoch in range(sampler.epoch, epochs):
        for (x,), weight, last in sampler.over(loader):
            seen.append((epoch, x.tolist(), weight, last))
            if last and int(x.sum()) % 2:
                sampler.grow_to(sampler.size + 1)
            if len(seen) == stop:
                return seen
    return seen


@pytest.mark.parametrize(("workers", "stop"), [(0, 1), (0, 7), (0, 13), (1, 7)])
def test_resume_is_exact(workers, stop):
    data = TensorDataset(torch.arange(40.0))

    def make():
        sampler = AdaptiveBatchSampler(data, 4, micro_batch=3, seed=2)
        return DataLoader(data, batch_sampler=sampler, num_workers=workers), sampler

    loader, sampler = make()
    whole = run_loop(loader, sampler, -1)
    loader, sampler = make()
    first = run_loop(loader, sampler, stop)
    saved = json.loads(json.dumps(sampler.state_dict()))
    loader, sampler = make()
    sampler.load_state_dict(saved)
    assert first + run_loop(loader, sampler, -1) == whole


def test_a_state_between_epochs_and_a_loop_broken_off():
    sampler = AdaptiveBatchSampler(6, 2)
    list(sampler)
    state = sampler.state_dict()
    assert (state["epoch"], state["position"], state["planned"]) == (1, 0, [])
    again = AdaptiveBatchSampler(6, 2)
    again.load_state_dict(state)
    assert list(again) == list(sampler)
    next(iter(sampler))
    assert sampler.epoch == 2 and len(list(sampler)) == 3 and sampler.epoch == 4
    with pytest.raises(ValueError, match="seed=0"):
        AdaptiveBatchSampler(6, 2, seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="drop_last=True"):
        AdaptiveBatchSampler(6, 2, drop_last=False).load_state_dict(state)
    with pytest.raises(ValueError, match="has no 'samples'"):
        AdaptiveBatchSampler(6, 2).load_state_dict({})
    assert "size=2" in repr(sampler)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"size": 0}, "size must"), ({"size": 11}, "size must"), ({"size": 2, "largest": 11}, "largest must"),
    ({"size": 2, "micro_batch": 0}, "micro_batch must"),
    ({"size": 2, "seed": 0.5}, "seed must"), ({"size": 2, "rank": 1}, "rank must"), ({"size": True}, "size must")])
def test_the_sampler_refuses_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveBatchSampler(10, **arguments)


def test_a_loader_with_other_batches_is_told():
    data = TensorDataset(torch.arange(4.0))
    sampler = AdaptiveBatchSampler(data, 2)
    with pytest.raises(RuntimeError, match="batch_sampler=sampler"):
        list(sampler.over(DataLoader(data, batch_size=2)))
    with pytest.raises(ValueError, match="in_order=True"):
        list(sampler.over(DataLoader(data, batch_sampler=sampler, in_order=False)))


# ---------------------------------------------------------------- the method


def regression(n=60):
    generator = fl.Key(1).generator()
    a = torch.randn(n, 4, dtype=torch.float64, generator=generator)
    y = a.sum(1) + 0.5 * torch.randn(n, dtype=torch.float64, generator=generator)
    return a, y


def finite_sum():
    return fl.FiniteSum(lambda w, a, y: ((a @ w - y) ** 2).mean(), regression(), torch.zeros(4, dtype=torch.float64))


def test_the_method_is_the_rule():
    a, y = regression()
    problem, lr, eta = finite_sum(), 0.7, 0.4
    method = AdaptiveBatch(eta=eta, size=3, lr=lr)
    state = method.init(problem, fl.Key(4))
    w, total, size = torch.zeros(4, dtype=torch.float64), 1e-12, 3
    for t in range(20):
        indices = torch.randint(60, (size,), generator=fl.Key(4).fold(t).fold(0).generator())
        rows = 2 * a[indices] * (a[indices] @ w - y[indices])[:, None]
        g = rows.mean(0)
        wanted = math.ceil(float(variance(rows).sum() / (eta**2 * (g @ g))))
        total = total + float(g @ g)
        w = w - lr * g / math.sqrt(total)
        state = method.step(problem, state)
        assert state["size"] == max(size, min(60, wanted))
        size = state["size"]
        torch.testing.assert_close(method.report(problem, state).resolve(), w, rtol=1e-10, atol=1e-10)
    assert size > 3 and method.report(problem, state).certificate == {"batch_size": size}


@pytest.mark.parametrize("optimizer", [AdaGradNorm, torch.optim.Adam])
def test_micro_batches_accumulate_to_the_batch(optimizer):
    torch.manual_seed(0)
    a, y = regression()
    problems = [finite_sum(), fl.Training(nn.Linear(4, 1).double(), mse_loss, (a, y[:, None]))]
    for problem in problems:
        method = AdaptiveBatch(optimizer, size=8, micro_batch=3, lr=0.1)
        state = method.init(problem, fl.Key(0))
        before = method.report(problem, state).resolve()
        sizes = [3, 3, 2]
        drawn = [problem.draw(fl.Key(0).fold(0).fold(i), size=n) for i, n in enumerate(sizes)]
        parts = [fl.core.tree.flatten(d.gradient(before)) * n / 8 for d, n in zip(drawn, sizes, strict=True)]
        state = method.step(problem, state)
        params = [p for group in state["optimizer"].param_groups for p in group["params"]]
        torch.testing.assert_close(torch.cat([p.grad.flatten() for p in params]), sum(parts), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("test", ["norm", "inner", "coordinate"])
@pytest.mark.parametrize("micro_batch", [None, 5])
def test_it_converges_and_grows(test, micro_batch):
    problem = finite_sum()
    result = fl.solve(problem, AdaptiveBatch(test=test, micro_batch=micro_batch, eta=0.3, every=2, size=4), fl.Budget(steps=60))
    assert problem.observe(result.x)["value"] < 0.5 and 4 < result.certificate["batch_size"] <= 60


def test_what_becomes_of_a_step_without_finite_gradients_is_said_by_the_optimizer():
    a, y = regression()
    problem = fl.FiniteSum(lambda w, a, y: ((a @ w - y) ** 2).mean(), (a, y * math.nan), torch.zeros(4, dtype=torch.float64))
    method = AdaptiveBatch(size=3, nonfinite="skip")
    state = method.step(problem, method.init(problem, fl.Key(0)))
    assert state["size"] == 3 and torch.equal(method.report(problem, state).resolve(), torch.zeros(4, dtype=torch.float64))
    assert fl.solve(problem, AdaptiveBatch(size=3), fl.Budget(steps=3)).status == "nonfinite"


def test_resume_of_a_network_is_exact(tmp_path):
    def run(steps, checkpoint):
        torch.manual_seed(0)
        problem = fl.Training(nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.2), nn.Tanh(), nn.Linear(5, 3)), cross_entropy,
                              (batch(50)[0].float(), batch(50)[1]))
        return fl.solve(problem, AdaptiveBatch(torch.optim.Adam, size=4, lr=0.01), fl.Budget(steps=steps), checkpoint=checkpoint)

    whole = run(8, tmp_path / "a")
    run(3, tmp_path / "b")
    rest = run(8, tmp_path / "b")
    assert whole.certificate == rest.certificate and all(torch.equal(whole.x[n], rest.x[n]) for n in whole.x)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"test": "t"}, "test must be one of"), ({"eta": 0}, "eta must"), ({"size": 1}, "size must.*no variance"),
    ({"largest": 4}, "largest"), ({"every": 0}, "every must"), ({"micro_batch": 0}, "micro_batch must")])
def test_the_method_refuses_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveBatch(**arguments)


def test_more_samples_than_there_are_are_refused():
    for arguments, name in (({"size": 61}, "size"), ({"largest": 61}, "largest")):
        with pytest.raises(ValueError, match=f"{name} must be at most the 60 samples"):
            fl.solve(finite_sum(), AdaptiveBatch(**arguments), fl.Budget(steps=1))
    assert "AdaGradNorm" in repr(AdaptiveBatch()) and "eta=0.5" in repr(AdaptiveBatch())
