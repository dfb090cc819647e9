"""EFCP against dense windows: error feedback, global top-k, low rank, both preconditioners."""

import io

import pytest
import torch
from test_m_fac import SHAPES, flat, gradient, parameters
from torch import nn

from fallline import optim
from fallline.core.compressors import power_step, top_k
from fallline.core.keys import Key
from fallline.optim.directions.compressed import TopK

SIZES = [max(1, torch.Size(s).numel()) for s in SHAPES]


def largest(a, k):
    kept = torch.zeros_like(a)
    order = a.abs().argsort(descending=True)[:k]
    kept[order] = a[order]
    return kept


class LowRank:
    """Every tensor as a matrix times what the last step left of its right factor."""

    def __init__(self, rank):
        sizes = [(1, 1) if not s else (s[0], torch.Size(s[1:]).numel()) for s in SHAPES]
        self.sizes = [(n, m, min(rank, n, m)) for n, m in sizes]
        flat = torch.randn(sum(m * r for _, m, r in self.sizes), dtype=torch.float64, generator=Key(0).fold("basis", 0).generator())
        self.bases = [b.view(m, r) for b, (_, m, r) in zip(flat.split([m * r for _, m, r in self.sizes]), self.sizes, strict=True)]

    def __call__(self, a):
        out = []
        for i, (part, (n, m, _)) in enumerate(zip(a.split(SIZES), self.sizes, strict=True)):
            A = part.view(n, m)
            q, r = torch.linalg.qr(A @ self.bases[i])
            P = q * r.diagonal().sign()
            self.bases[i] = A.mT @ P
            out.append((P @ self.bases[i].mT).reshape(-1))
        return torch.cat(out)


def fisher(window, c, g, damp, dense):
    m = len(window)
    F = damp * torch.eye(window.shape[1], dtype=torch.float64) + window.mT @ window / m
    return torch.linalg.solve(F, g if dense else c)


def ggt(window, c, eps):
    """By the singular values of the window, as in the paper: a part inside, a part outside."""
    U, s, _ = torch.linalg.svd(window.mT, full_matrices=False)
    U, s = U[:, s > 1e-9 * s[0]], s[s > 1e-9 * s[0]]
    inside = U.mT @ c
    return (c - U @ inside) / eps + U @ (inside / (s + eps))


def efcp(x, gradients, m, compress, precondition, lr=1e-3, momentum=0.0, decay=0.0):
    error, v = torch.zeros_like(x), torch.zeros_like(x)
    rows = [torch.zeros_like(x)] * m
    for g in gradients:
        a = error + g
        c = compress(a)
        error = a - c
        rows = [*rows[1:], c]
        v = momentum * v + precondition(torch.stack(rows), c, g)
        x = x * (1 - lr * decay) - lr * v
    return x, error


def stepped(make, steps=9):
    params = parameters()
    start, given, optimizer = flat(params), [], make(params)
    for t in range(steps):
        for i, p in enumerate(params):
            p.grad = gradient(p, t, i)
        given.append(flat([p.grad for p in params]))
        optimizer.step()
    return start, given, flat(params), optimizer


@pytest.mark.parametrize("compressor", ["topk", "lowrank"])
@pytest.mark.parametrize("settings", [{}, {"precondition": "dense"}, {"momentum": 0.8, "weight_decay": 0.3, "damp": 1e-2}])
def test_sparse_m_fac_is_the_dense_matrix_of_compressed_gradients(settings, compressor):
    start, given, end, optimizer = stepped(lambda p: optim.SparseMFAC(p, m=4, density=0.2, compressor=compressor, rank=2, **settings))
    compress = LowRank(2) if compressor == "lowrank" else lambda a: largest(a, int(0.2 * len(a)))
    dense = settings.get("precondition") == "dense"
    x, error = efcp(start, given, 4, compress, lambda w, c, g: fisher(w, c, g, settings.get("damp", 1e-4), dense),
                    momentum=settings.get("momentum", 0.0), decay=settings.get("weight_decay", 0.0))
    torch.testing.assert_close(end, x, rtol=1e-7, atol=1e-8)
    found = flat([state["error"] for state in optimizer.state.values()])
    torch.testing.assert_close(found, error, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("compressor", ["topk", "lowrank"])
def test_sparse_ggt_is_the_singular_value_form(compressor):
    make = lambda p: optim.SparseGGT(p, window=4, density=0.2, eps=1e-3, compressor=compressor, rank=2, momentum=0.5)
    start, given, end, _ = stepped(make)
    compress = LowRank(2) if compressor == "lowrank" else lambda a: largest(a, int(0.2 * len(a)))
    x, _ = efcp(start, given, 4, compress, lambda w, c, g: ggt(w, c, 1e-3), momentum=0.5)
    torch.testing.assert_close(end, x, rtol=1e-8, atol=1e-8)


def test_defaults_are_the_paper_s():
    fisher, ada = optim.SparseMFAC(parameters()), optim.SparseGGT(parameters())
    assert (fisher.direction.m, fisher.direction.compressor.density, fisher.param_groups[0]["damp"]) == (1024, 0.01, 1e-4)
    assert (ada.direction.m, ada.direction.compressor.density, ada.param_groups[0]["eps"]) == (100, 0.01, 1e-5)
    assert not fisher.direction.dense


def test_the_window_holds_what_is_kept_and_nothing_else():
    p = nn.Parameter(torch.zeros(100_000))
    optimizer = optim.SparseMFAC([p], m=8)
    p.grad = torch.randn(p.shape, generator=Key(0).generator())
    optimizer.step()
    state = optimizer.state[p]
    assert state["indices"].shape == state["values"].shape == (8, 1000) and state["indices"].dtype == torch.int32
    assert optimizer.memory == 8 * 8 * 1000 + 2 * 4 * 100_000 + 8 * 64


def test_entries_are_the_largest_of_all_parameters_together():
    one, two = nn.Parameter(torch.zeros(10)), nn.Parameter(torch.zeros(10))
    optimizer = optim.SparseMFAC([one, two], m=2, density=0.25)
    one.grad, two.grad = torch.full((10,), 1.0), torch.arange(10.0) + 2
    optimizer.step()
    assert sorted(optimizer.state[one]["indices"][0].tolist()) == [15, 16, 17, 18, 19]
    assert torch.equal(one, torch.zeros(10)) and (two[5:] < 0).all()


def test_ties_keep_exactly_k():
    indices, values = top_k(torch.ones(10), 3)
    assert len(set(indices.tolist())) == 3 and values.tolist() == [1, 1, 1]
    assert int(top_k(torch.tensor([0.0, -5.0, 1.0]), 1)[1]) == -5


def test_a_density_that_keeps_nothing_is_refused():
    p = nn.Parameter(torch.zeros(99))
    p.grad = torch.ones(99)
    with pytest.raises(ValueError, match=r"density must keep at least one of the 99 numbers of a parameter group, got 0\.01"):
        optim.SparseMFAC([p], m=2).step()
    with pytest.raises(ValueError, match="k must be between 1 and the 3 entries"):
        top_k(torch.ones(3), 0)


@pytest.mark.parametrize(("n", "density", "kept"), [(100, 0.29, 29), (49, 1 / 49, 1), (100, 1.0, 100), (100, 0.2999, 29)])
def test_a_share_is_counted_as_it_is_written(n, density, kept):
    assert TopK(density).kept(n) == kept


def test_bad_settings_are_refused():
    for settings, said in (({"density": 0.0}, "density must be a share"), ({"density": 1.5}, "got 1.5"), ({"rank": 0}, "rank must be"),
                           ({"compressor": "sign"}, "'topk' or 'lowrank', got 'sign'"),
                           ({"precondition": "both"}, "'sparse' or 'dense'"), ({"m": 0}, "m must be"), ({"damp": 0.0}, "damp must be")):
        with pytest.raises(ValueError, match=said):
            optim.SparseMFAC(parameters(), **settings)
    with pytest.raises(ValueError, match="window must be"):
        optim.SparseGGT(parameters(), window=0)


@pytest.mark.parametrize("make", [lambda p: optim.SparseMFAC(p, m=3, density=0.3, compressor="lowrank"),
                                  lambda p: optim.SparseGGT(p, window=3, density=0.3, momentum=0.9)])
def test_what_is_left_out_survives_a_checkpoint(make):
    whole, half = parameters(), parameters()
    optimizers = make(whole), make(half)

    def go(params, optimizer, first, last):
        for t in range(first, last):
            for i, p in enumerate(params):
                p.grad = gradient(p, t, i)
            optimizer.step()

    go(whole, optimizers[0], 0, 7)
    go(half, optimizers[1], 0, 4)
    file = io.BytesIO()
    torch.save(optimizers[1].state_dict(), file)
    file.seek(0)
    again = make(half)
    again.load_state_dict(torch.load(file))
    go(half, again, 4, 7)
    assert torch.equal(flat(whole), flat(half)) and all("error" in s for s in again.state.values())


def test_zeros_and_empty_tensors_do_not_stop_a_power_iteration():
    params = [nn.Parameter(torch.zeros(4, 3)), nn.Parameter(torch.zeros(0, 3)), nn.Parameter(torch.zeros(2, 2))]
    optimizer = optim.SparseMFAC(params, lr=1.0, m=3, compressor="lowrank", rank=2)
    for t in range(3):
        for i, p in enumerate(params):
            p.grad = torch.zeros_like(p) if t == 0 else gradient(p, t, i)
        optimizer.step()
        assert all(torch.isfinite(p).all() for p in params)
    assert all((p != 0).all() for p in params)


@pytest.mark.parametrize("precondition", ["sparse", "dense"])
@pytest.mark.parametrize("size", [1.0, 1e2, 1e4])
def test_rows_of_low_rank_are_preconditioned_as_the_window_keeps_them(size, precondition):
    p = nn.Parameter(torch.zeros(20, 10))
    optimizer = optim.SparseMFAC([p], lr=1.0, m=8, compressor="lowrank", rank=1, precondition=precondition, nonfinite="skip")
    generator = Key(0).generator()
    g = torch.randn(20, 1, generator=generator) @ torch.randn(1, 10, generator=generator)
    for _ in range(10):
        p.data.zero_()
        p.grad = size * g / g.norm()
        optimizer.step()
    assert torch.isfinite(p).all()
    if precondition == "sparse":
        state = optimizer.state[p]
        rows = torch.einsum("ia,ib->iab", state["left"].double(), state["right"].double()).view(8, -1)
        torch.testing.assert_close(state["gram"], rows @ rows.mT, rtol=1e-14, atol=0)
        weights = torch.linalg.solve(state["gram"] + 8e-4 * torch.eye(8, dtype=torch.float64), 8 * torch.eye(8).double()[1])
        expected = rows.mT @ weights  # row 1 is the newest of ten
        assert float((p.detach().view(-1) + expected).norm() / expected.norm()) < 1e-4


def test_a_power_step_is_exact_at_full_rank():
    A = torch.randn(5, 3, dtype=torch.float64, generator=Key(0).generator())
    P, Q = power_step(A, torch.randn(3, 3, dtype=torch.float64, generator=Key(1).generator()))
    torch.testing.assert_close(P @ Q.mT, A)
    torch.testing.assert_close(P.mT @ P, torch.eye(3, dtype=torch.float64))
