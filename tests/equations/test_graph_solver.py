import copy
import math
import pickle

import pytest
import torch
from torch import nn

import fallline as fl
from fallline.equations import CGS, batch_graphs, fixed_point_layer
from fallline.equations.graph_solver import ACTIVATIONS, MessagePassing


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=fl.Key(seed).fold(*shape).generator())


def contraction(n=7, seed=0):
    A = randn(n, n, seed=seed)
    return (A / A.abs().sum(1, keepdim=True)).requires_grad_(), randn(n, seed=seed).requires_grad_()


def graph(nodes=9, edges=20, seed=0):
    edge_index = torch.randint(nodes, (2, edges), generator=fl.Key(seed).generator())
    return edge_index, randn(nodes, 3, seed=seed), randn(edges, 2, seed=seed)


def model(**options):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return CGS(3, 2, heads=4, hidden_dim=8, hidden_layers=1, mlp_dim=16, decoder_dims=(8,), tol=1e-12, **options).double()


def test_the_linear_fixed_point_is_that_of_a_direct_solve():
    A, b = contraction()
    expected = torch.linalg.solve(torch.eye(7, dtype=torch.float64) - 0.8 * A, b)
    torch.testing.assert_close(fixed_point_layer(A, b, 0.8, tol=1e-13), expected)
    torch.testing.assert_close(fixed_point_layer(A.detach().to_sparse(), b, 0.8, tol=1e-13), expected)
    heads = fixed_point_layer(torch.stack([A, 0 * A]), torch.stack([b, 2 * b]), 0.8, tol=1e-13)
    torch.testing.assert_close(heads, torch.stack([expected, 2 * b]))


@pytest.mark.parametrize("activation", [*ACTIVATIONS, torch.atan])
def test_gradients_are_those_of_the_equation(activation):
    A, b = contraction(4)
    assert torch.autograd.gradcheck(lambda A, b: fixed_point_layer(A / 2, b, 0.7, activation, tol=1e-14), (A, b), atol=1e-6)


def test_gradients_are_those_of_unrolling():
    A, b = contraction()
    x = torch.zeros(7, dtype=torch.float64)
    for _ in range(200):
        x = torch.tanh(0.9 * A @ x + b)
    weights = randn(7, seed=5)
    found, expected = (torch.autograd.grad(weights @ out, (A, b)) for out in (fixed_point_layer(A, b, 0.9, "tanh", tol=1e-12), x))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("activation", ["identity", "tanh", "relu"])
@pytest.mark.parametrize("gamma", [0.3, 0.95])
def test_the_map_of_a_model_contracts_in_the_maximum_norm(gamma, activation):
    for seed in range(10):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            wild = CGS(3, 2, heads=4, hidden_dim=8, hidden_layers=1, mlp_dim=16, gamma=gamma, activation=activation).double()
        for p in wild.parameters():
            p.data.mul_(5.0)  # whatever the network predicts
        step = wild.transition(*graph(seed=seed))
        x, y = 100 * randn(9, 4, seed=seed), randn(9, 4, seed=seed + 1)
        assert float((step(x) - step(y)).detach().abs().max()) <= gamma * float((x - y).abs().max()) * (1 + 1e-12)


def test_the_transition_matrix_is_its_formula():
    solver, (edge_index, nodes, edges) = model(gamma=0.6), graph()
    b, logits = nodes, edges
    for layer in solver.encoder:
        b, logits = layer(edge_index, b, logits)
    A = torch.zeros(4, 9, 9, dtype=torch.float64)
    for e, (i, j) in enumerate(edge_index.T.tolist()):
        A[:, i, j] += logits[e].clamp(0, 1) / int((edge_index[0] == i).sum())
    x = randn(9, 4)
    step = solver.transition(edge_index, nodes, edges)
    torch.testing.assert_close(step(x), 0.6 * torch.einsum("hij,jh->ih", A, x) + b)
    assert bool((A.sum(2) <= 1 + 1e-12).all())
    fixed = torch.stack([torch.linalg.solve(torch.eye(9).double() - 0.6 * A[h], b[:, h]) for h in range(4)], 1)
    torch.testing.assert_close(solver(edge_index, nodes, edges), solver.decoder(fixed))


def test_message_passing_is_its_formula():
    layer = MessagePassing(3, 5, 2, 4, 6).double()
    edge_index, nodes, edges = graph()
    new_nodes, new_edges = layer(edge_index, nodes, edges)
    for e, (i, j) in enumerate(edge_index.T.tolist()):
        torch.testing.assert_close(new_edges[e], layer.edge(torch.cat([edges[e], nodes[i], nodes[j]])))
    for j in range(9):
        into = (edge_index[1] == j).nonzero()[:, 0]
        ends = torch.cat([edges[into], nodes[edge_index[0, into]], nodes[edge_index[1, into]]], 1)
        received = (torch.softmax(layer.attention(ends)[:, 0], 0)[:, None] * layer.edge(ends)).sum(0)
        torch.testing.assert_close(new_nodes[j], layer.node(torch.cat([received, nodes[j]])))


def test_gradients_of_a_model_are_those_of_unrolling():
    solver, (edge_index, nodes, edges) = model(gamma=0.7, activation="tanh"), graph()
    step = solver.transition(edge_index, nodes, edges)
    x = torch.zeros(9, 4, dtype=torch.float64)
    for _ in range(150):
        x = step(x)
    expected = torch.autograd.grad(solver.decoder(x).square().sum(), solver.parameters())
    found = torch.autograd.grad(solver(edge_index, nodes, edges).square().sum(), solver.parameters())
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=1e-7)
    assert sum(float(g.abs().sum()) > 0 for g in found) > 10


def test_a_batch_is_its_graphs():
    solver = model()
    graphs = [graph(9, 20, 0), graph(4, 6, 1), (torch.zeros(2, 0, dtype=torch.long), randn(2, 3), randn(0, 2))]
    edge_index, nodes, edges, of = batch_graphs(graphs)
    torch.testing.assert_close(solver(edge_index, nodes, edges), torch.cat([solver(*each) for each in graphs]), atol=1e-9, rtol=1e-9)
    read = solver(edge_index, nodes, edges, of)
    alone = torch.cat([solver(*each, torch.zeros(len(each[1]), dtype=torch.long)) for each in graphs])
    assert of.tolist() == [0] * 9 + [1] * 4 + [2] * 2
    torch.testing.assert_close(read, alone, atol=1e-9, rtol=1e-9)


def test_isolated_nodes_have_the_fixed_point_of_their_bias():
    solver = model(activation="tanh")
    step = solver.transition(torch.zeros(2, 0, dtype=torch.long), randn(3, 3), randn(0, 2))
    assert torch.equal(step(randn(3, 4)), step(torch.zeros(3, 4).double()))


def test_the_order_of_nodes_does_not_matter():
    solver, (edge_index, nodes, edges) = model(), graph()
    order = torch.randperm(9, generator=fl.Key(3).generator())
    place = torch.empty_like(order).scatter_(0, order, torch.arange(9))
    torch.testing.assert_close(solver(place[edge_index], nodes[order], edges), solver(edge_index, nodes, edges)[order])


def test_it_trains_and_is_a_module_like_others():
    solver, given = model(), graph()
    twin = pickle.loads(pickle.dumps(copy.deepcopy(solver)))
    assert torch.equal(twin(*given), solver(*given)) and "gamma=0.5" in repr(solver)
    target, optimizer = randn(9, 1, seed=4), torch.optim.Adam(solver.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = (solver(*given) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0] / 4


def test_defaults_are_the_paper_s():
    solver = CGS(1, 1)
    shapes = [tuple(layer.node[2].weight.shape) for layer in solver.encoder]
    assert shapes == [(64, 128)] * 4 and [m.out_features for m in solver.decoder if isinstance(m, nn.Linear)] == [64, 32, 1]
    assert solver.gamma == 0.5 and solver.heads == 64 and solver.activation == "identity" and solver.tol == 1e-6


@pytest.mark.parametrize("gamma", [1.0, 0.0, -0.5, 2, math.nan])
def test_a_gamma_that_is_no_contraction_is_an_error(gamma):
    A, b = contraction()
    with pytest.raises(ValueError, match=r"gamma must be in \(0, 1\)"):
        fixed_point_layer(A, b, gamma)
    with pytest.raises(ValueError, match=r"gamma must be in \(0, 1\)"):
        CGS(1, 1, gamma=gamma)


def test_bad_input():
    A, b = contraction()
    with pytest.raises(ValueError, match=r"must be less than 1, got 1\.8"):
        fixed_point_layer(2 * A, b, 0.9)
    assert fixed_point_layer(A.detach().T, b, 0.9).shape == (7,)  # its columns sum to 1 at most
    for steep in (nn.functional.gelu, nn.functional.silu, lambda x: 1.01 * x):
        with pytest.raises(ValueError, match="activation must be 1-Lipschitz"):
            fixed_point_layer(A, b, 0.5, steep)
    with pytest.raises(ValueError, match="activation must be one of identity"):
        CGS(1, 1, activation="gelu")
    with pytest.raises(TypeError, match="activation must be a name or a function"):
        CGS(1, 1, activation=3)
    with pytest.raises(ValueError, match=r"A must be of shape \(..., N, N\)"):
        fixed_point_layer(A[:3], b, 0.5)
    with pytest.raises(ValueError, match="heads must be a whole number"):
        CGS(1, 1, heads=0)
    with pytest.raises(ValueError, match="at least one graph"):
        batch_graphs([])
    edge_index, nodes, edges = graph()
    solver = model()
    for bad, message in (((edge_index + 5, nodes, edges), "edge_index must be from 0 to 8 for 9 nodes, got 5 to 13"),
                         ((edge_index - 1, nodes, edges), "edge_index must be from 0 to 8"),
                         ((edge_index.T, nodes, edges), r"edge_index must be of shape \(2, E\)"),
                         ((edge_index.double(), nodes, edges), "int64, got shape"),
                         ((edge_index, nodes[:, :2], edges), r"node_feat must be of shape \(9, 3\), got \(9, 2\)"),
                         ((edge_index, nodes, edges[:5]), r"edge_feat must be of shape \(20, 2\), got \(5, 2\)"),
                         ((edge_index, nodes[:0], edges), "at least one node"),
                         ((edge_index, nodes, edges, torch.zeros(4).long()), "graph must hold a whole number for each of 9 nodes")):
        with pytest.raises(ValueError, match=message):
            solver(*bad)


def test_a_compressed_matrix_is_taken_as_any_sparse_one():
    A = torch.tensor([[0.0, 0.5, 0.0], [0.25, 0.0, 0.5], [0.0, 1.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    for matrix in (A.to_sparse_csr(), A.to_sparse_csc()):
        torch.testing.assert_close(fixed_point_layer(matrix, b, 0.9, "tanh"), fixed_point_layer(A, b, 0.9, "tanh"))
