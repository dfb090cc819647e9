import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import fallline as fl
from fallline.core.compressors import low_rank_mean
from fallline.core.processes import run_gloo
from fallline.distributed import LowRankAggregator, PowerSGD, powersgd_hook


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=fl.Key(seed).generator())


def average(stacked):
    return stacked.mean(0)


def test_one_round_is_a_power_iteration_on_the_mean():
    matrices, basis = normal(3, 6, 5), normal(5, 2, seed=1)
    (approximation,), (right,) = low_rank_mean([matrices], [basis], average)
    left, _ = torch.linalg.qr(matrices.mean(0) @ basis)
    torch.testing.assert_close(approximation, left @ left.T @ matrices.mean(0))
    torch.testing.assert_close(approximation, approximation @ right @ torch.linalg.pinv(right))


def test_a_matrix_of_low_rank_is_sent_exactly_and_zeros_stay_zeros():
    low = normal(8, 2) @ normal(2, 7, seed=1)
    aggregator = LowRankAggregator(rank=2)
    torch.testing.assert_close(aggregator.aggregate([low.expand(3, 8, 7)], average)[0], low)
    assert aggregator.floats_sent == 2 * (8 + 7)
    zero = LowRankAggregator(rank=2).aggregate([torch.zeros(2, 8, 7)], average)[0]
    assert torch.equal(zero, torch.zeros(8, 7))


def columns(rank, feedback, warm=True):
    """Gradients 8 × 7 of two workers of which some say nothing: all zero, one column of the base zero, not finite."""
    one_row = torch.zeros(2, 8, 7, dtype=torch.float64)
    one_row[:, 0] = normal(7)
    return LowRankAggregator(rank=rank, error_feedback=feedback, warm_start=warm), {
        "zero": torch.zeros(2, 8, 7, dtype=torch.float64), "one column": one_row,
        "infinite": torch.full((2, 8, 7), torch.inf, dtype=torch.float64)}


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("silent", ["zero", "one column", "infinite"])
def test_a_gradient_that_says_nothing_is_forgotten(silent, feedback, warm):
    aggregator, gradients = columns(2, feedback, warm)
    for _ in range(2):
        aggregator.aggregate([gradients[silent]], average)
    low = normal(8, 2) @ normal(2, 7, seed=1)
    torch.testing.assert_close(aggregator.aggregate([low.expand(2, 8, 7)], average)[0], low)


def test_new_columns_are_the_same_on_every_worker_and_new_every_round():
    first, second = (LowRankAggregator(rank=2, key=5) for _ in range(2))
    zero, found = torch.zeros(1, 8, 7), []
    for _ in range(3):
        for aggregator in (first, second):
            aggregator.aggregate([zero], average)
        assert torch.equal(first.bases["0"], second.bases["0"])
        found.append(first.bases["0"])
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])


def test_a_network_with_a_zero_head_trains_its_first_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 24, bias=False))
    nn.init.zeros_(model[2].weight)
    inputs = normal(100, 16).float()
    problem = fl.Training(model, nn.functional.mse_loss, (inputs, torch.tanh(inputs @ normal(16, 24, seed=1).float())), batch_size=50)
    x = fl.solve(problem, PowerSGD(lr=0.1, workers=2), fl.Budget(steps=20)).x
    assert float((x["0.weight"] - model[0].weight.detach()).norm()) > 1e-3


def test_errors_are_what_was_left_out_and_come_back():
    gradients = [normal(4, 6, 5, seed=t) for t in range(200)]
    aggregator = LowRankAggregator(rank=1)
    sent = sum(aggregator.aggregate([g], average)[0] for g in gradients)
    asked = sum(g.mean(0) for g in gradients)
    torch.testing.assert_close(sent + aggregator.errors["0"].mean(0), asked)
    without = LowRankAggregator(rank=1, error_feedback=False)
    assert not without.errors and without.aggregate([gradients[0]], average)[0].shape == (6, 5)


def test_vectors_and_matrices_too_small_to_gain_are_averaged_exactly():
    vector, small = normal(3, 5), normal(3, 2, 2)
    found = LowRankAggregator(rank=2).aggregate([vector, small], average)
    torch.testing.assert_close(found[0], vector.mean(0))
    torch.testing.assert_close(found[1], small.mean(0))


def test_a_warm_start_converges_to_the_best_approximation():
    u, _, v = torch.linalg.svd(normal(20, 15), full_matrices=False)
    matrix = u @ torch.diag(1 / torch.arange(1.0, 16.0, dtype=torch.float64)) @ v
    best = torch.linalg.matrix_norm(matrix - u[:, :2] @ torch.diag(torch.tensor([1.0, 0.5], dtype=torch.float64)) @ v[:2])
    warm = LowRankAggregator(rank=2, error_feedback=False)
    for _ in range(50):
        found = warm.aggregate([matrix.unsqueeze(0)], average)[0]
    assert float(torch.linalg.matrix_norm(matrix - found) / best) < 1.01


def test_the_first_rounds_can_be_uncompressed_and_state_resumes():
    gradients = [normal(2, 6, 5, seed=t) for t in range(6)]
    one = LowRankAggregator(rank=1, start_after=2)
    torch.testing.assert_close(one.aggregate([gradients[0]], average)[0], gradients[0].mean(0))
    for g in gradients[1:4]:
        one.aggregate([g], average)
    two = LowRankAggregator(rank=1, start_after=2)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for g in gradients[4:]:
        assert torch.equal(one.aggregate([g], average)[0], two.aggregate([g], average)[0])


def test_convolutions_are_matrices_of_the_first_dimension():
    kernel = normal(2, 8, 3, 3, 3)
    found = LowRankAggregator(rank=8).aggregate([kernel], average)[0]
    torch.testing.assert_close(found, kernel.mean(0))


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)).double()


def data(rank):
    return normal(20, 12, seed=rank), torch.randint(4, (20,), generator=fl.Key(rank).generator())


def train_ddp(rank, steps):
    model = DistributedDataParallel(network(), bucket_cap_mb=0.001)
    model.register_comm_hook(aggregator := LowRankAggregator(rank=2), powersgd_hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    x, y = data(rank)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    names = [aggregator.name_of(p) for p in model.parameters()]
    return [p.detach() for p in model.parameters()], aggregator.floats_sent, aggregator.round, names


def test_real_processes_agree_bit_for_bit_and_equal_simulated_workers():
    (first, sent, rounds, names), (second, *_) = run_gloo(train_ddp, 2, 8)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert rounds == 8 and sent == 8 * (2 * (12 + 16) + 16 + 2 * (16 + 4) + 4)
    model = network()
    order = list(model.parameters())
    aggregator = LowRankAggregator(rank=2)
    for _ in range(8):
        per_worker = [torch.autograd.grad(cross_entropy(model(x), y), order) for x, y in map(data, range(2))]
        stacked = [torch.stack(pair) for pair in zip(*per_worker, strict=True)]
        update = aggregator.aggregate(stacked, average, names)
        with torch.no_grad():
            for p, u in zip(order, update, strict=True):
                p -= 0.5 * u
    for a, b in zip(first, model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def train_in_subgroup(rank, members, steps):
    """Every process takes part in as many means, so that a mean over the wrong processes gives wrong weights and never waits."""
    groups = [torch.distributed.new_group(list(ranks)) for ranks in members]
    group = next(g for g, ranks in zip(groups, members, strict=True) if rank in ranks)
    model = DistributedDataParallel(network(), process_group=group)
    model.register_comm_hook(aggregator := LowRankAggregator(rank=2, process_group=group), powersgd_hook)
    x, y = data(rank)
    for _ in range(steps):
        model.zero_grad()
        cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.5 * p.grad
    return [p.detach() for p in model.parameters()], [aggregator.name_of(p) for p in model.parameters()]


def test_a_subgroup_averages_over_itself():
    (pair, _), (other, _), (alone, names) = run_gloo(train_in_subgroup, 3, ((0, 1), (2,)), 4)
    assert all(torch.equal(a, b) for a, b in zip(pair, other, strict=True))
    model = network()
    (x, y), order, aggregator = data(2), list(model.parameters()), LowRankAggregator(rank=2)
    for _ in range(4):
        gradients = torch.autograd.grad(cross_entropy(model(x), y), order)
        update = aggregator.aggregate([g.unsqueeze(0) for g in gradients], average, names)
        with torch.no_grad():
            for p, u in zip(order, update, strict=True):
                p -= 0.5 * u
    for a, b in zip(alone, model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def fixed_gradient(rank):
    u, _, v = torch.linalg.svd(normal(20, 15, seed=7), full_matrices=False)
    mean = u @ torch.diag(0.5 ** torch.arange(15.0, dtype=torch.float64)) @ v
    return mean + (1 - 2 * rank) * normal(20, 15, seed=8)


def aggregate_by_both_hooks(rank, rounds):
    """A loss ⟨W, G_w⟩ has the gradient G_w in every round; return what each hook makes of it in the last."""
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as torchs

    options = {"matrix_approximation_rank": 2, "start_powerSGD_iter": 2, "min_compression_rate": 1}
    found = []
    for state, hook in ((LowRankAggregator(rank=2, error_feedback=False), powersgd_hook),
                        (torchs.PowerSGDState(None, use_error_feedback=False, **options), torchs.powerSGD_hook)):
        model = DistributedDataParallel(nn.Linear(15, 20, bias=False).double())
        model.register_comm_hook(state, hook)
        for _ in range(rounds):
            model.zero_grad()
            (model(torch.eye(15, dtype=torch.float64)).T * fixed_gradient(rank)).sum().backward()
        found.append(model.module.weight.grad)
    return found


def test_it_comes_to_the_same_matrix_as_torchs_own_hook():
    for ours, torchs in run_gloo(aggregate_by_both_hooks, 2, 40):
        torch.testing.assert_close(ours, torchs)
        u, s, v = torch.linalg.svd((fixed_gradient(0) + fixed_gradient(1)) / 2)
        torch.testing.assert_close(ours, u[:, :2] * s[:2] @ v[:2])


def test_the_method_counts_what_a_worker_sends():
    problem = fl.Smooth(lambda x: (x["w"] ** 2).sum() + (x["b"] ** 2).sum(),
                        {"w": torch.ones(6, 5, dtype=torch.float64), "b": torch.ones(6, dtype=torch.float64)})
    result = fl.solve(problem, PowerSGD(lr=0.05, rank=1), fl.Budget(steps=10))
    assert result.counts["bytes"] == 10 * 8 * (6 + 5 + 6) and result.counts["gradients"] == 40


@pytest.mark.parametrize("workers", [1, 3])
def test_messages_and_bytes_are_of_one_worker_whatever_their_number(workers):
    start = {"w": torch.ones(6, 5, dtype=torch.float64), "b": torch.ones(6, dtype=torch.float64)}
    problem = fl.Smooth(lambda x: (x["w"] ** 2).sum() + (x["b"] ** 2).sum(), start)
    only = fl.Smooth(lambda x: (x**2).sum(), start["b"])
    counts = fl.solve(problem, PowerSGD(lr=0.05, rank=1, workers=workers, start_after=4), fl.Budget(steps=10)).counts
    assert counts["messages"] == 4 * 1 + 6 * 3 and counts["bytes"] == 8 * (4 * (6 * 5 + 6) + 6 * (6 + 5 + 6))
    counts = fl.solve(only, PowerSGD(lr=0.05, workers=workers), fl.Budget(steps=10)).counts
    assert counts["messages"] == 10 and counts["bytes"] == 10 * 8 * 6


def test_weight_decay_is_added_outside_compression():
    start = normal(6, 5)
    problem = fl.Smooth(lambda x: (x * normal(6, 5, seed=1)).sum(), start)
    plain, decayed = (fl.solve(problem, PowerSGD(lr=0.1, rank=1, weight_decay=w), fl.Budget(steps=1)).x for w in (0.0, 0.3))
    torch.testing.assert_close(decayed, plain - 0.1 * 2 * 0.3 * start)
    zero = fl.Smooth(lambda x: (0 * x).sum(), start)
    x = fl.solve(zero, PowerSGD(lr=0.1, momentum=0.0, rank=1, weight_decay=0.3), fl.Budget(steps=3)).x
    torch.testing.assert_close(x, (1 - 2 * 0.1 * 0.3) ** 3 * start)


def test_one_step_follows_the_formula():
    problem = fl.Smooth(lambda x: 0.5 * (x**2).sum(), torch.ones(3, dtype=torch.float64))
    result = fl.solve(problem, PowerSGD(lr=0.1, momentum=0.5, workers=2), fl.Budget(steps=2))
    x = torch.ones(3, dtype=torch.float64)
    v = x
    x = x - 0.1 * (x + v)
    v = 0.5 * v + x
    torch.testing.assert_close(result.x, x - 0.1 * (x + v))


@pytest.mark.parametrize("make, message", [
    (lambda: LowRankAggregator(rank=0), "rank"),
    (lambda: PowerSGD(rank=-1), "rank"),
    (lambda: PowerSGD(momentum=1.0), "momentum"),
    (lambda: PowerSGD(workers=0), "workers"),
    (lambda: LowRankAggregator(start_after=-1), "start_after"),
    (lambda: LowRankAggregator(start_after=1.5), "start_after"),
    (lambda: PowerSGD(start_after=-1), "start_after"),
    (lambda: PowerSGD(weight_decay=-0.1), "weight_decay"),
    (lambda: run_gloo(train_ddp, 0), "world"),
])
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_changed_set_of_parameters_is_refused():
    aggregator = LowRankAggregator()
    aggregator.aggregate([normal(2, 6, 5)], average)
    with pytest.raises(ValueError, match="set of parameters"):
        aggregator.aggregate([normal(2, 5, 6)], average)
