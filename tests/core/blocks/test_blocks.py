"""Partitions, forests, block models, proximal steps in a metric: against dense linear algebra."""

import math

import networkx
import pytest
import torch

import fallline as fl
from fallline.core.blocks import (
    Elimination,
    Partition,
    block_model,
    forest_partition,
    greedy_forest,
    grid_combs,
    neighbours,
    pseudo_inverse,
    quadratic_forms,
    scaled_prox,
    separable_decrease,
    tournament,
)
from fallline.core.operators.columns import columns_of, diagonal_block
from fallline.core.sets import Box
from fallline.core.terms import L1, ElasticNet


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_a_partition_is_checked_and_knows_its_blocks():
    blocks = Partition([[0, 4], [3], [1, 2]], 5)
    assert len(blocks) == 3 and blocks[0].tolist() == [0, 4] and blocks.member.tolist() == [0, 2, 2, 1, 0]
    entries = normal(5)
    close(blocks.sums(entries), torch.stack([entries[blocks[k]].sum() for k in range(3)]))
    close(blocks.some_sums(lambda i: entries[i], torch.tensor([2, 0])), blocks.sums(entries)[[2, 0]])
    assert [Partition.consecutive(7, 3)[k].tolist() for k in range(3)] == [[0, 1, 2], [3, 4, 5], [6]]
    alive = blocks.without(torch.tensor([True, False, False, True, False]))
    assert [alive[k].tolist() for k in range(len(alive))] == [[4], [1, 2]]


@pytest.mark.parametrize("blocks, message", [([[0, 1], [1, 2]], "variable 1 is in 2"), ([[0, 1]], "variable 2 is in none"),
                                             ([[0, 1], [], [2]], "empty"), ([[0, 1, 3], [2]], "from 0 to 2"),
                                             ([[0, 1.9], [2]], "whole numbers, got"), ([[True, False], [0]], "whole numbers, got"),
                                             ([torch.tensor([0.0, 1.0, 2.0])], "whole numbers, got .* of torch.float32")])
def test_partitions_that_are_none(blocks, message):
    with pytest.raises(ValueError, match=message):
        Partition(blocks, 3)


@pytest.mark.parametrize("sparse", [False, True])
def test_columns_are_those_of_the_matrix(sparse):
    A = normal(12, 9) * (normal(12, 9, seed=1) > 0.4)
    A[:, 3] = 0
    columns, block = columns_of(A.to_sparse() if sparse else A), torch.tensor([7, 3, 0])
    u, z, d = normal(12), normal(12), normal(3)
    close(columns.adjoint(block, lambda rows: u[rows]), A[:, block].T @ u)
    expected = z + A[:, block] @ d
    columns.add(z, block, d)
    close(z, expected)
    rows, part = columns.part(block)
    full = torch.zeros(12, 3, dtype=torch.float64)
    full[rows] = part
    close(full, A[:, block])
    S = A @ A.T
    row, column, value = diagonal_block(columns_of(S.to_sparse() if sparse else S), torch.tensor([5, 1, 8]))
    close(torch.zeros(3, 3, dtype=torch.float64).index_put((row, column), value), S[[5, 1, 8]][:, [5, 1, 8]])


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("make", ["squared", "logistic", "quadratic", "smooth"])
def test_block_models_are_parts_of_the_whole(make, sparse):
    A = normal(20, 8) * (normal(20, 8, seed=2) > 0)
    y = normal(20, seed=3).sign() if make == "logistic" else normal(20, seed=3)
    S = A.T @ A + torch.eye(8, dtype=torch.float64)
    if make == "quadratic":
        problem = fl.Quadratic(S.to_sparse() if sparse else S, normal(8))
    elif make == "smooth":
        problem = fl.Smooth(lambda x: torch.cosh(A @ x / 5).sum(), torch.zeros(8, dtype=torch.float64))
    else:
        problem = fl.LinearModel(A.to_sparse() if sparse else A, y, make, ridge=0.3)
    model, x, block = block_model(problem), normal(8, seed=4), torch.tensor([6, 1, 4])
    kept = model.start(x)
    value = model.along(x, kept, block)
    d = normal(3, seed=5)
    before = problem.value(x)
    after = problem.value(x.index_add(0, block, d))
    close(value(d) - value(None), after - before)
    for _ in range(2):
        close(model.value(x, kept), problem.value(x))
        close(model.gradient(x, kept), problem.gradient(x))
        close(model.partial(x, kept, block), problem.gradient(x)[block])
        close(model.hessian(x, kept, block), problem.hessian(x)[block][:, block])
        if model.bounded:
            excess = model.bound(block) - problem.hessian(x)[block][:, block]
            assert float(torch.linalg.eigvalsh(excess)[0]) >= -1e-12
            close(model.bound(block).diagonal(), model.coordinate_bounds()[block])
            _, part = model.bound_columns().part(torch.arange(8))
            close(part[block][:, block], model.bound(block))
        model.move(x, kept, block, d)


def grid(n, m):
    e = torch.arange(n * m).view(n, m)
    edges = torch.cat([torch.stack([a.reshape(-1), b.reshape(-1)]) for a, b in ((e[:, :-1], e[:, 1:]), (e[:-1], e[1:]))], 1)
    H = torch.zeros(n * m, n * m, dtype=torch.float64)
    H[edges[0], edges[1]] = H[edges[1], edges[0]] = -1 - 0.1 * normal(edges.shape[1]).abs()
    H.diagonal().copy_(-H.sum(1) + 0.05)
    return H


def is_forest(H, block):
    edges = H[block][:, block].triu(1).nonzero().tolist()
    graph = networkx.Graph(edges)
    graph.add_nodes_from(range(len(block)))
    return networkx.is_forest(graph)


def test_forests_have_no_cycles_and_cover_everything():
    H = grid(7, 6)
    graph = neighbours(columns_of(H.to_sparse()), 42)
    assert [sorted(each) for each in graph] == [sorted(set(H[i].nonzero()[:, 0].tolist()) - {i}) for i in range(42)]
    for blocks in (forest_partition(graph), forest_partition(graph, range(41, -1, -1)), grid_combs(7, 6)):
        Partition(blocks, 42)
        assert all(is_forest(H, block) for block in blocks)
    assert all(networkx.is_tree(networkx.Graph(H[b][:, b].triu(1).nonzero().tolist())) for b in grid_combs(7, 6))
    grown = greedy_forest(graph, torch.randperm(42, generator=torch.Generator().manual_seed(0)).tolist())
    assert is_forest(H, grown) and len(grown) > 21
    left_out = set(range(42)) - set(grown)
    assert all(not is_forest(H, [*grown, each]) for each in left_out)


@pytest.mark.parametrize("sparse", [False, True])
def test_elimination_solves_forests(sparse):
    H = grid(7, 6)
    for block in [*grid_combs(7, 6), [3], [20, 0, 41], list(range(6))]:
        factors = Elimination.of(columns_of(H.to_sparse() if sparse else H), torch.tensor(block))
        right = normal(len(block))
        close(factors.solve(right), torch.linalg.solve(H[block][:, block], right))
    with pytest.raises(ValueError, match="not a forest"):
        Elimination.of(columns_of(H), torch.tensor([0, 1, 6, 7]))
    H[0, 0] = -1
    assert Elimination.of(columns_of(H), torch.tensor([0, 1])) is None


def test_a_tournament_finds_the_largest():
    numbers = normal(37)
    tree = tournament.tournament(numbers)
    for seed in range(20):
        places = torch.randint(37, (5,), generator=torch.Generator().manual_seed(seed)).unique()
        numbers[places] = normal(len(places), seed=seed + 50)
        tournament.replace(tree, places, numbers[places])
        assert tournament.largest(tree) == int(numbers.argmax())
    assert tournament.largest(tournament.tournament(torch.tensor([3.0]))) == 0


def test_quadratic_forms_of_blocks_of_different_sizes():
    H, g = grid(3, 3), normal(9)
    blocks = Partition([[4, 0, 2], [1], [3, 5, 6, 7, 8]], 9)
    inverses = torch.zeros(3, 5, 5, dtype=torch.float64)
    for k in range(3):
        inverses[k, :len(blocks[k]), :len(blocks[k])] = torch.linalg.inv(H[blocks[k]][:, blocks[k]])
    expected = torch.stack([g[b] @ torch.linalg.solve(H[b][:, b], g[b]) for b in (blocks[k] for k in range(3))])
    close(quadratic_forms(blocks, inverses, g), expected)


@pytest.mark.parametrize("term", [L1(0.7), ElasticNet(0.5, 0.3), Box(-0.2, 0.4), 2 * L1(0.1)])
@pytest.mark.parametrize("rank", [6, 3])
def test_a_scaled_proximal_step_is_optimal(term, rank):
    for seed in range(5):
        B = normal(rank, 6, seed=seed)
        H, g, x = B.T @ B * 10.0 ** (seed - 2), normal(6, seed=seed + 10), 0.3 * normal(6, seed=seed + 20)
        if rank < 6:
            g = H @ normal(6, seed=seed + 30)  # bounded below
        u = scaled_prox(term, x, g, H)
        gradient = g + H @ (u - x)
        close(term.prox(u - gradient, 1.0), u)


def test_separable_decrease_is_that_of_the_model_and_has_digits():
    x, g, D = torch.tensor([0.5, 0.0, -0.2, 0.0], dtype=torch.float64), torch.tensor([1.0, 0.3, -2.0, -3.0], dtype=torch.float64), \
        torch.tensor([2.0, 1.0, 3.0, 0.5], dtype=torch.float64)
    close(separable_decrease(None, x, g, D), g**2 / D)
    d = torch.linspace(-20, 20, 2_000_001, dtype=torch.float64)
    for i, found in enumerate(separable_decrease(L1(0.6), x, g, D)):
        model = g[i] * d + D[i] / 2 * d**2 + 0.6 * ((x[i] + d).abs() - x[i].abs())
        assert float(found) == pytest.approx(-2 * float(model.min()), abs=1e-6)
    one = torch.ones(1, dtype=torch.float64)
    tiny = separable_decrease(L1(0.6), one, (-0.6 + 1e-12) * one, one)
    assert float(tiny) == pytest.approx(1e-24, rel=1e-3)


def test_a_pseudo_inverse_says_what_is_indefinite():
    assert pseudo_inverse(torch.diag(torch.tensor([1.0, -0.1]))) is None
    singular = torch.ones(2, 2, dtype=torch.float64)
    close(pseudo_inverse(singular), torch.full((2, 2), 0.25, dtype=torch.float64))


def test_a_quadratic_is_its_formula_and_checks_its_matrix():
    H, b, x = grid(3, 3), normal(9), normal(9, seed=1)
    for matrix in (H, H.to_sparse(), H.to_sparse_csr()):
        problem = fl.Quadratic(matrix, b, x)
        close(problem.value(x), x @ H @ x / 2 - b @ x)
        close(problem.gradient(x), H @ x - b)
        close(problem.hessian(x), H)
        close(problem.hvp(x, b), H @ b)
        close(problem.quadratic.diagonal(), H.diagonal())
    H[0, 1] += 0.1
    for matrix in (H, H.to_sparse()):
        with pytest.raises(ValueError, match="symmetric"):
            fl.Quadratic(matrix, b)
    with pytest.raises(ValueError, match="square"):
        fl.Quadratic(torch.ones(2, 3))
    with pytest.raises(ValueError, match="b must have 2"):
        fl.Quadratic(torch.eye(2), torch.ones(3))
    one, single = torch.ones(2, dtype=torch.float64), torch.eye(2, dtype=torch.float32)
    for arguments, message in (((torch.full((2, 2), math.nan),), "H must be finite"),
                               ((torch.eye(2, dtype=torch.int64),), "H must have a floating dtype, got torch.int64"),
                               ((single, one), "b must have the dtype of H, torch.float32, got torch.float64"),
                               ((single, None, one), "x0 must have the dtype of H, torch.float32, got torch.float64"),
                               ((one.diag(), one * math.nan), "b must be finite"),
                               ((one.diag(), None, one / 0), "x0 must be finite")):
        with pytest.raises(ValueError, match=message):
            fl.Quadratic(*arguments)
