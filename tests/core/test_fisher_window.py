"""Products with the inverse of the empirical Fisher matrix against the dense inverse."""

import pytest
import torch

import fallline as fl
from fallline.core import fisher_window
from fallline.core.fisher_window import FisherWindow, StaticFisher


def normal(*shape, key=0, dtype=torch.float64):
    return torch.randn(shape, dtype=torch.float64, generator=fl.Key(key).generator()).to(dtype)


def fisher(rows, m, damp):
    return damp * torch.eye(rows.shape[1], dtype=torch.float64) + rows.mT.double() @ rows.double() / m


@pytest.mark.parametrize("damp", [1e-6, 1e-2, 10.0])
@pytest.mark.parametrize("pushes", [1, 5, 8, 19])
def test_a_window_is_the_dense_inverse_at_any_filling(pushes, damp):
    rows, x = normal(pushes, 40), normal(40, key=1)
    window = FisherWindow(8, 40, damp, dtype=torch.float64)
    for g in rows:
        window.push(g)
    expected = torch.linalg.solve(fisher(rows[-8:], 8, damp), x)  # divided by 8 however many there are
    assert (window.ihvp(x) - expected).norm() <= 1e-8 * expected.norm()
    assert window.ihvp(x).equal(window.ihvp(x)) and str(pushes) in repr(window)


def test_before_the_first_gradient_the_matrix_is_the_damping():
    torch.testing.assert_close(FisherWindow(3, 5, 0.5).ihvp(torch.ones(5)), torch.full((5,), 2.0))


def test_float32_rows_lose_no_more_than_their_own_rounding(monkeypatch):
    monkeypatch.setattr(fisher_window, "CHUNK", 64)  # several parts, the last a short one
    rows, x = normal(12, 203, dtype=torch.float32), normal(203, key=1, dtype=torch.float32)
    window = FisherWindow(10, 203, 1e-6)
    for g in rows:
        window.push(g)
    expected = torch.linalg.solve(fisher(rows[-10:], 10, 1e-6), x.double())
    assert window.ihvp(x).dtype == torch.float32
    assert (window.ihvp(x) - expected).norm() <= 1e-6 * expected.norm()


def test_sparse_rows_are_dense_rows_with_zeros():
    dense, sparse = (FisherWindow(4, 30, 1e-3, dtype=torch.float64, nonzeros=k) for k in (None, 6))
    for t in range(7):
        indices = torch.randperm(30, generator=fl.Key(t).generator())[:6]
        values = normal(6, key=t)
        dense.push(torch.zeros(30, dtype=torch.float64).index_copy(0, indices, values))
        sparse.push((indices, values))
        x = normal(30, key=100 + t)
        torch.testing.assert_close(sparse.ihvp(x), dense.ihvp(x), rtol=1e-10, atol=1e-10)
    assert sparse.memory == 4 * 6 * (8 + 4) + 8 * 16 and dense.memory == 4 * 30 * 8 + 8 * 16


def test_what_is_not_finite_shows():
    window = FisherWindow(3, 4, 0.1).push(torch.full((4,), torch.nan))
    assert window.ihvp(torch.ones(4)).isnan().all()


@pytest.mark.parametrize(("indices", "said"), [([1, 1], "indices must differ"), ([1, 5], "d − 1 = 4, got 5"), ([-1, 1], "got -1")])
def test_rows_that_are_none_are_refused_before_anything_is_written(indices, said):
    window = FisherWindow(1, 5, 0.1, nonzeros=2).push((torch.tensor([0, 1]), torch.tensor([1.0, 2.0])))
    before = window.ihvp(torch.ones(5))
    with pytest.raises(ValueError, match=said):
        window.push((torch.tensor(indices), torch.tensor([5.0, 6.0])))
    assert torch.equal(window.ihvp(torch.ones(5)), before) and window.pushed == 1


@pytest.mark.parametrize("size", [1e5, 1e6])
def test_a_diagonal_without_digits_is_refused(size):
    grads = size * (normal(20) + 1e-3 * normal(64, 20, key=1))
    with pytest.raises(ValueError, match="damp must be far above"):
        StaticFisher(grads, 1e-6).diag()
    assert (StaticFisher(grads, 1e-3 * size**2).diag() > 0).all()


@pytest.mark.parametrize("batch", [(), (3,)])
def test_the_static_recursion_is_the_dense_inverse(batch):
    grads = normal(*batch, 6, 15)
    static = StaticFisher(grads, 1e-3)
    inverse = torch.linalg.inv(torch.eye(15, dtype=torch.float64) * 1e-3 + grads.mT @ grads / 6)
    x = normal(*batch, 15, key=1)
    torch.testing.assert_close(static.ihvp(x), (inverse @ x.unsqueeze(-1)).squeeze(-1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(static.diag(), inverse.diagonal(dim1=-2, dim2=-1), rtol=1e-9, atol=1e-9)
    for i, j in ((0, 0), (2, 7), (7, 2)):
        torch.testing.assert_close(static.element(i, j), inverse[..., i, j], rtol=1e-8, atol=1e-8)


def test_bad_input_is_refused_by_name():
    for make, said in ((lambda: FisherWindow(0, 3, 1.0), "m must be"), (lambda: FisherWindow(2, 3, 0.0), "damp must be"),
                       (lambda: FisherWindow(2, 3, 1.0, nonzeros=4), "nonzeros must be at most d = 3"),
                       (lambda: FisherWindow(2, 3, 1.0).push(torch.ones(4)), r"g must have shape \(3,\), got \(4,\)"),
                       (lambda: FisherWindow(2, 3, 1.0).push((torch.tensor([0]), torch.ones(1))), "without nonzeros"),
                       (lambda: FisherWindow(2, 3, 1.0, nonzeros=2).push(torch.ones(3)), "pair"),
                       (lambda: FisherWindow(2, 3, 1.0, nonzeros=2).push((torch.tensor([0]), torch.ones(1))), r"shape \(2,\)"),
                       (lambda: FisherWindow(2, 3, 1.0).ihvp(torch.ones(2)), r"x must have shape \(3,\)"),
                       (lambda: StaticFisher(torch.ones(3), 1.0), "at least one gradient"),
                       (lambda: StaticFisher(torch.ones(2, 3), 1.0).ihvp(torch.ones(2)), "x must have shape")):
        with pytest.raises(ValueError, match=said):
            make()
