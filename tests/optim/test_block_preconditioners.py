"""Kronecker preconditioners against references written block by block and matrix by matrix."""

import math
import warnings

import pytest
import torch
from torch import nn

import fallline as fl
from fallline.core.linalg import inverse_pth_root, inverse_root
from fallline.optim import DistributedShampoo, ScalableShampoo, Shampoo, Shampoo4bit, quantize_blockwise
from fallline.optim.directions.kronecker.blocks import all_blocks, block_sizes, merged, of_blocks, regions
from fallline.optim.directions.kronecker.eigencodes import EigenCodes
from fallline.optim.directions.kronecker.factors import Exponent, Full, Ridged
from fallline.optim.engine.codebook import table


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=fl.Key(seed).generator())


def run(make, start, gradients):
    p = nn.Parameter(start.clone())
    optimizer = make([p])
    points = []
    for g in gradients:
        p.grad = g.clone()
        optimizer.step()
        points.append(p.detach().clone())
    return points, optimizer


def gradients(*shape, steps=9):
    return [normal(*shape, seed=t + 1) for t in range(steps)]


def root(A, order, ridge=1e-6):
    values, V = torch.linalg.eigh(A + ridge * torch.linalg.eigvalsh(A)[-1] * torch.eye(len(A), dtype=A.dtype))
    return V @ torch.diag(values ** (-1 / order)) @ V.T


def slices(n, size):
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def diagonal(graft, G, squares, correction):
    return G if graft == "sgd" else G / ((squares / correction).sqrt() + 1e-8)


def scalable(start, grads, *, lr=0.1, betas=(0.9, 0.999), block=4, every=2, begin=3, graft="adagrad", decay=0.0, nesterov=False,
             late=False):
    """Scalable Shampoo for one matrix, in loops."""
    rows, columns = start.shape
    W, B, squares = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    cells = dict(enumerate((r, c) for r in slices(rows, block) for c in slices(columns, block)))
    L, R, roots, waiting = {}, {}, {}, {}
    for t, G in enumerate(grads, 1):
        U = torch.zeros_like(G)
        for cell, place in cells.items():
            g = G[place]
            new = 1.0 if betas[1] == 1 else 1 - betas[1]
            L[cell] = betas[1] * L.get(cell, 0) + new * g @ g.T
            R[cell] = betas[1] * R.get(cell, 0) + new * g.T @ g
            if t >= begin and (t - begin) % every == 0:
                found = root(L[cell], 4), root(R[cell], 4)
                roots[cell] = waiting.get(cell, found) if late else found
                waiting[cell] = found
            if t >= begin:
                U[place] = roots[cell][0] @ g @ roots[cell][1]
        squares = squares + G * G if graft == "adagrad" else betas[1] * squares + (1 - betas[1]) * G * G
        D = diagonal(graft, G, squares, 1 - betas[1] ** t if graft == "adam" else 1.0)
        u = U * D.norm() / U.norm() if t >= begin else D
        B = betas[0] * B + u
        W = (1 - lr * decay) * W - lr * (u + betas[0] * B if nesterov else B)
    return W


@pytest.mark.parametrize("options", [
    {}, {"betas": (0.5, 1.0)}, {"graft": "sgd"}, {"graft": "rmsprop"}, {"graft": "adam"}, {"nesterov": True}, {"decay": 0.1},
    {"late": True}, {"begin": 1, "every": 1}])
def test_scalable_shampoo_is_its_formulas(options):
    start, grads = normal(6, 9), gradients(6, 9)
    names = {"every": "root_every", "begin": "start_step", "decay": "weight_decay"}
    given = {names.get(n, n): x for n, x in options.items()}
    settings = {"lr": 0.1, "block": 4, "root_every": 2, "start_step": 3, "method": "eigh", **given}
    points, _ = run(lambda p: ScalableShampoo(p, **settings), start, grads)
    torch.testing.assert_close(points[-1], scalable(start, grads, **options), rtol=1e-8, atol=1e-8)


def test_the_factor_of_half_exponents_is_as_old_as_the_roots():
    p, G = nn.Parameter(normal(8, 6)), normal(8, 6, seed=1)
    optimizer, lengths = Shampoo([p], lr=1.0, eps=1e-8, exponent="half", root_every=100), []
    for _ in range(20):
        before = p.detach().clone()
        p.grad = G.clone()
        optimizer.step()
        lengths.append(float((before - p.detach()).norm()))
    assert max(lengths) < 1.001 * min(lengths)


def test_momentum_is_that_of_the_group_and_decay_joins_before_it():
    start, grads = normal(5, 3), gradients(5, 3, steps=4)
    settings = {"lr": 0.1, "eps": 1e-6, "max_dim": 8, "start_step": 1, "root_every": 1, "betas": (0.0, 1.0), "graft": None,
                "weight_decay": 0.1}
    plain, _ = run(lambda p: DistributedShampoo(p, **settings), start, grads[:1])
    step = (start - plain[0]) / 0.1 - 0.1 * start
    points, optimizer = run(lambda p: DistributedShampoo([{"params": p, "momentum": 0.9}], **settings), start, grads)
    p = optimizer.param_groups[0]["params"][0]
    assert "momentum.0.0" in optimizer.state[p]
    torch.testing.assert_close(points[0], start - 0.1 * (step + 0.1 * start))
    W, B, L, R = start, 0, 0, 0
    for g in grads:
        L, R = L + g @ g.T, R + g.T @ g
        eye = lambda A: A + 1e-6 * torch.eye(len(A), dtype=A.dtype)
        B = 0.9 * B + inverse_root(eye(L), 4, 1e-12) @ g @ inverse_root(eye(R), 4, 1e-12) + 0.1 * W
        W = W - 0.1 * B
    torch.testing.assert_close(points[-1], W, rtol=1e-8, atol=1e-8)
    optimizer.param_groups[0]["momentum"] = 0.0
    p.grad = grads[0].clone()
    optimizer.step()
    assert "momentum.0.0" not in optimizer.state[p]


@pytest.mark.parametrize("make", [ScalableShampoo, DistributedShampoo])
def test_a_group_whose_squares_are_summed_has_no_averaged_graft(make):
    with pytest.raises(ValueError, match="graft must be 'adagrad' or 'sgd' where"):
        make([{"params": [nn.Parameter(torch.ones(3))], "betas": (0.9, 1.0)}], graft="rmsprop")


def test_steps_whose_roots_autograd_cannot_follow_are_not_unrolled():
    p = nn.Parameter(normal(4, 4))
    for make in (lambda: ScalableShampoo([p], root_every=1, start_step=1), lambda: Shampoo4bit([p], T1=1, T2=1, min_size=1),
                 lambda: DistributedShampoo([p], root_every=1, start_step=1, late=True)):
        optimizer = make()
        g = normal(4, 4, seed=1).requires_grad_()
        with pytest.raises(RuntimeError, match="cannot be unrolled by autograd"):
            optimizer.update([p], [g], optimizer.init([p]))


def test_late_jobs_do_not_pile_up():
    params = [nn.Parameter(normal(6, 6, seed=i)) for i in range(3)]
    optimizer = ScalableShampoo(params, block=3, root_every=2, start_step=1, late=True)
    for t in range(30):
        for i, p in enumerate(params):
            p.grad = normal(6, 6, seed=10 * t + i) if i or t % 2 else None
        optimizer.step()
    assert len(optimizer.direction.inner.inner.factor.late._jobs) <= 12


def test_defaults_are_the_papers():
    group = ScalableShampoo([nn.Parameter(torch.zeros(3))]).param_groups[0]
    assert group["betas"] == (0.9, 0.999) and group["weight_decay"] == 0
    group = DistributedShampoo([nn.Parameter(torch.zeros(3))]).param_groups[0]
    assert group["betas"] == (0.9, 0.999) and group["momentum"] == 0


def test_distributed_shampoo_is_its_formulas():
    start, grads = normal(5, 3), gradients(5, 3)
    W, m, v, L, R = start.clone(), 0, 0, 0, 0
    for t, G in enumerate(grads, 1):
        m, v = 0.9 * m + 0.1 * G, 0.999 * v + 0.001 * G * G
        L, R = 0.999 * L + 0.001 * G @ G.T, 0.999 * R + 0.001 * G.T @ G
        if t in (2, 5, 8):
            roots = [inverse_root(A / (1 - 0.999**t) + 1e-6 * torch.eye(len(A), dtype=A.dtype), 4, 1e-12) for A in (L, R)]
        mean = m / (1 - 0.9**t)
        D = mean / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        if t >= 2:
            U = roots[0] @ mean @ roots[1]
            D = U * D.norm() / U.norm()
        W = (1 - 0.01 * 0.1) * W - 0.01 * D
    settings = {"lr": 0.01, "eps": 1e-6, "max_dim": 8, "root_every": 3, "start_step": 2, "weight_decay": 0.1}
    points, _ = run(lambda p: DistributedShampoo(p, **settings), start, grads)
    torch.testing.assert_close(points[-1], W, rtol=1e-9, atol=1e-9)


def test_half_exponents_are_the_inverse_root_of_the_kronecker_product():
    start, grads = normal(4, 3), gradients(4, 3, steps=3)
    points, _ = run(lambda p: Shampoo(p, lr=1.0, eps=1e-8, exponent="half"), start, grads)
    L = sum(g @ g.T for g in grads) + 1e-8 * torch.eye(4, dtype=torch.float64)
    R = sum(g.T @ g for g in grads) + 1e-8 * torch.eye(3, dtype=torch.float64)
    H = torch.kron(L, R) / L.trace()
    expected = (inverse_root(H, 2, 1e-12) @ grads[-1].flatten()).view(4, 3)
    torch.testing.assert_close(points[1] - points[2], expected, rtol=1e-6, atol=1e-8)


def test_late_roots_do_not_depend_on_who_computes_them():
    start, grads = normal(6, 9), gradients(6, 9, steps=12)
    settings = {"block": 4, "root_every": 2, "start_step": 2, "late": True}
    points, optimizer = run(lambda p: ScalableShampoo(p, **settings), start, grads)
    pure = ScalableShampoo([nn.Parameter(start.clone())], **settings)
    x, state = [start], pure.init([start])
    for g in grads:
        pure.direction.inner.inner.factor.late._jobs.clear()  # nothing is ready: all is computed when it is asked for
        x, state = pure.update(x, [g], state)
    assert torch.equal(x[0], points[-1])
    assert any("snapshot" in name for name in optimizer.state[optimizer.param_groups[0]["params"][0]])


def test_a_dimension_over_the_cap_has_no_factor_and_others_take_its_part():
    start, grads = normal(3, 12), gradients(3, 12, steps=4)
    settings = {"lr": 0.1, "betas": (0.0, 1.0), "graft": None, "start_step": 1, "root_every": 1, "method": "eigh"}
    points, optimizer = run(lambda p: ScalableShampoo(p, block=4, max_dim=8, **settings), start, grads)
    W, L = start.clone(), 0
    for g in grads:
        L = L + g @ g.T
        W = W - 0.1 * root(L, 2) @ g
    torch.testing.assert_close(points[-1], W, rtol=1e-8, atol=1e-8)
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    assert sum(x.numel() for name, x in state.items() if name not in ("step", "momentum")) == 2 * 9


def test_without_a_factor_the_graft_takes_its_own_step():
    start, grads = normal(12), gradients(12, steps=4)
    points, _ = run(lambda p: ScalableShampoo(p, lr=0.1, block=4, max_dim=8, betas=(0.0, 0.999)), start, grads)
    W, squares = start.clone(), 0
    for g in grads:
        squares = squares + g * g
        W = W - 0.1 * g / (squares.sqrt() + 1e-8)
    torch.testing.assert_close(points[-1], W)


# ---------------------------------------------------------------- blocks


@pytest.mark.parametrize("shape", [(7,), (8, 5), (4, 4), (3, 9, 5), (1, 1)])
def test_blocks_cover_a_tensor_once(shape):
    x = normal(*shape)
    blocks = all_blocks(x, 4)
    assert [b.numel() for b in blocks] == block_sizes(shape, 4) and sum(map(len, blocks)) == x.numel()
    assert all(max(region.shape) <= 4 for region in regions(shape, 4))
    assert torch.equal(of_blocks(blocks, shape, 4), x)


def test_small_neighbouring_dimensions_are_merged_from_the_last_on():
    assert merged((64, 3, 5, 5), 100) == (64, 75)
    assert merged((2, 5, 1), 10) == (10,) and merged((), 10) == (1,) and merged((1, 1), 10) == (1,)
    assert merged((12, 1), 8) == (12,)
    assert merged((32, 3, 64, 64), 8192) == (96, 4096)


# ---------------------------------------------------------------- what must not enter a root


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e25])
def test_gradients_that_are_not_finite_never_enter_the_statistics(bad):
    p = nn.Parameter(torch.ones(4, 4))
    optimizer = ScalableShampoo([p], block=4, root_every=1, start_step=1, nonfinite="ignore")
    for t, value in enumerate((1.0, bad, 1.0)):
        p.grad = normal(4, 4, seed=t, dtype=torch.float32)
        p.grad[0, 0] = value
        optimizer.step()
        p.data.nan_to_num_(0.0)
    state = optimizer.state[p]
    assert all(state[f"{name}{i}"].isfinite().all() for name in ("statistics", "root") for i in range(2))


class _Failing:
    """A root that fails from the second time on."""

    def __init__(self):
        self.calls = 0

    def __call__(self, A, order):
        self.calls += 1
        if self.calls > 2:
            raise torch.linalg.LinAlgError("it did not converge")
        return inverse_pth_root(A, order, "eigh")


def test_a_root_that_fails_keeps_its_last_value_and_says_so_once():
    p = nn.Parameter(torch.ones(3, 3))
    optimizer = ScalableShampoo([p], block=4, root_every=1, start_step=1)
    blocks = optimizer.direction.inner
    object.__setattr__(blocks.inner.factor, "root", _Failing())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for t in range(4):
            p.grad = normal(3, 3, seed=t, dtype=torch.float32)
            optimizer.step()
            if t == 0:
                first = [optimizer.state[p][f"root{i}"].clone() for i in range(2)]
    assert [str(w.message) for w in said if "roots of a preconditioner" in str(w.message)] == [str(said[0].message)]
    assert all(torch.equal(optimizer.state[p][f"root{i}"], first[i]) for i in range(2)) and p.isfinite().all()


def test_parameters_without_a_gradient_so_far_are_no_failure():
    p = nn.Parameter(torch.ones(6, 6))
    optimizer = ScalableShampoo([p], block=3, root_every=1, start_step=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for t in range(3):
            p.grad = torch.zeros(6, 6)
            p.grad[:3] = normal(3, 6, seed=t, dtype=torch.float32)
            optimizer.step()
    assert (p[3:] == 1).all() and (p[:3] != 1).any()


# ---------------------------------------------------------------- four bits


def test_the_linear_2_map_is_its_formula_and_symmetric_but_for_its_zero():
    v = [-1 + 2 * j / 15 for j in range(16)]
    expected = [-x * x for x in v[:7]] + [0.0] + [x * x for x in v[8:]]
    torch.testing.assert_close(table("linear2", 4), torch.tensor(expected))
    assert len(table("dynamic", 8)) == 256 and len(table("dynamic", 4)) == 16


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("name", ["linear2", "dynamic"])
def test_codes_are_the_nearest_values_of_each_block(bits, name):
    x = normal(5, 13, dtype=torch.float32)
    x[2] = 0
    kept = quantize_blockwise(x, bits, name, block=4)
    values, found = table(name, bits), kept.dequantize()
    for row, back in zip(x, found, strict=True):
        for start in range(0, 13, 4):
            block, scale = row[start:start + 4], row[start:start + 4].abs().max()
            nearest = (block[:, None] - scale * values).abs().amin(1)
            torch.testing.assert_close((block - back[start:start + 4]).abs(), nearest, rtol=1e-5, atol=1e-6)
    assert kept.codes.shape[-1] == (7 if bits <= 4 else 13) and f"bits={bits}" in repr(kept)


def coded(n=16, block=8, eps=1e-6):
    return EigenCodes(eps, 8, block, 1, 4, Full(Ridged(eps, "eigh"), eps), 1)


def test_a_factor_in_eight_bits_is_close_to_the_whole_one():
    from types import SimpleNamespace

    factor, c = coded(), SimpleNamespace(keep_statistics=0.9, new_statistics=0.1, debias=1.0, first_root=0.0)
    p, n = torch.zeros(16, 4), 16
    s = {name: state.start(p, state.dtype).unsqueeze(0) for name, state in factor.init(n).items()}
    A = 1e-6 * torch.eye(n)
    for t in range(30):
        rows = normal(1, n, 40, seed=t, dtype=torch.float32) * torch.logspace(0, -1, n)[:, None]
        A = 0.9 * A + 0.1 * rows[0] @ rows[0].T
        s |= factor.observed(rows, s, c)
    s |= factor.renewed("key", s, Exponent(4), c)
    values, V = torch.linalg.eigh(A)
    exact = V @ torch.diag((values + 1e-6 * values.max()) ** -0.25) @ V.T
    x = normal(1, n, 3, dtype=torch.float32)
    torch.testing.assert_close(factor.multiply(x, 0, s, Exponent(4), c)[0], exact @ x[0], rtol=0.05, atol=0.05)
    torch.testing.assert_close(s["eigenvalues"][0], values, rtol=0.05, atol=0.02)


def test_four_bit_shampoo_feeds_its_base_and_counts_its_bytes():
    start = normal(96, 80, dtype=torch.float32)
    grads = [g.float() for g in gradients(96, 80, steps=6)]
    points, optimizer = run(lambda p: Shampoo4bit(p, fl.optim.SGD, lr=1.0, T1=1, T2=2), start, grads)
    for before, after, g in zip([start, *points], points, grads, strict=False):
        torch.testing.assert_close((before - after).norm(), g.norm(), rtol=1e-4, atol=0)  # the gradient's own length
    torch.testing.assert_close(start - points[0], grads[0])  # no root yet
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    assert all(state[f"{name}_codes{i}"].dtype == torch.uint8 for name in ("vectors", "root") for i in range(2))
    small = sum(x.nbytes for name, x in state.items() if name != "step")
    assert small < 4 * 2 * (96**2 + 80**2) / 5


def test_silent_gradients_leave_the_last_root():
    p = nn.Parameter(normal(8, 8, dtype=torch.float32))
    optimizer = Shampoo4bit([p], fl.optim.SGD, beta=0.5, T1=1, T2=1, min_size=1, block=4)
    for t in range(200):
        p.grad = normal(8, 8, seed=t, dtype=torch.float32) if t < 3 else torch.zeros(8, 8)
        optimizer.step()
    p.grad = normal(8, 8, seed=1, dtype=torch.float32)
    optimizer.step()
    assert p.isfinite().all()


def test_small_factors_and_32_bits_stay_whole():
    p = nn.Parameter(normal(63, 64, dtype=torch.float32))
    p.grad = normal(63, 64, seed=1, dtype=torch.float32)
    optimizer = Shampoo4bit([p], T1=1, T2=1)
    optimizer.step()
    assert "statistics0" in optimizer.state[p] and "vectors_codes1" in optimizer.state[p]
    assert "statistics1" in _stepped(Shampoo4bit([p], bits=32, T1=1, T2=1)).state[p]


def _stepped(optimizer):
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("make, message", [
    (lambda p: ScalableShampoo(p, block=0), "block must be a whole number of at least 1, got 0"),
    (lambda p: ScalableShampoo(p, graft="lion"), "graft must be one of .* got 'lion'"),
    (lambda p: ScalableShampoo(p, graft="adam", betas=(0.9, 1.0)), "graft must be 'adagrad' or 'sgd' where"),
    (lambda p: ScalableShampoo(p, method="qr"), "method must be 'newton' or 'eigh', got 'qr'"),
    (lambda p: ScalableShampoo(p, betas=(1.0, 0.9)), r"betas\[0\]"),
    (lambda p: DistributedShampoo(p, eps=0.0), "eps must be"),
    (lambda p: DistributedShampoo(p, gather_dtype=torch.int8), "gather_dtype must be a floating-point"),
    (lambda p: Shampoo4bit(p, bits=2), "bits must be a whole number from 3 to 8, or 32"),
    (lambda p: Shampoo4bit(p, T1=0), "T1 must be a whole number of at least 1"),
    (lambda p: Shampoo(p, exponent="third"), "exponent must be 'quarter'"),
])
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make([nn.Parameter(torch.ones(3, 3))])


def test_a_base_that_is_not_elementwise_is_refused():
    with pytest.raises(TypeError, match="elementwise rule"):
        Shampoo4bit([nn.Parameter(torch.ones(3, 3))], base="shampoo")
