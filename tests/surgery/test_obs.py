"""The optimal brain surgeon against a dense Fisher matrix."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import fallline as fl
from fallline.surgery import obs_prune


def trained(seed=0):
    generator = fl.Key(seed).generator()
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, dtype=p.dtype, generator=generator))
    x, y = torch.randn(30, 4, dtype=torch.float64, generator=generator), torch.randint(3, (30,), generator=generator)
    grads = fl.Objective(model, cross_entropy)(x, y).per_sample_gradients()
    return model, {name: g for name, g in grads.items() if g.ndim > 2}


def surgeon(w, table, sparsity, damp, blocks):
    """One weight after the other, from the inverse of the dense matrix."""
    fisher = damp * torch.eye(len(w), dtype=w.dtype) + table.mT @ table / len(table)
    if blocks is not None:
        block = torch.arange(len(w)) // blocks
        fisher = fisher * (block[:, None] == block)
    inverse = torch.linalg.inv(fisher)
    removed = (w**2 / (2 * inverse.diagonal())).argsort()[: int(sparsity * len(w))]
    new = w.clone()
    for j in removed:
        new -= w[j] / inverse[j, j] * inverse[:, j]
    new[removed] = 0
    return new


@pytest.mark.parametrize("block", [None, 4, 7, 100])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 1.0])
def test_weights_are_those_of_the_dense_matrix(sparsity, block):
    model, grads = trained()
    biases = [p.detach().clone() for n, p in model.named_parameters() if n not in grads]
    w = torch.cat([dict(model.named_parameters())[n].detach().reshape(-1) for n in grads])
    expected = surgeon(w, torch.cat([g.reshape(30, -1) for g in grads.values()], 1), sparsity, 1e-3, block)
    masks = obs_prune(model, sparsity, grads, damp=1e-3, block=block)
    found = torch.cat([dict(model.named_parameters())[n].detach().reshape(-1) for n in grads])
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    kept = torch.cat([masks[n].reshape(-1) for n in grads])
    assert int((~kept).sum()) == int(sparsity * 35) and (found[~kept] == 0).all()
    assert all(torch.equal(a, p) for a, (n, p) in zip(biases, [i for i in model.named_parameters() if i[0] not in grads], strict=True))


def test_what_is_pruned_stays_so_in_the_next_round():
    model, grads = trained()
    first = obs_prune(model, 0.4, grads, damp=1e-2)
    second = obs_prune(model, 0.6, grads, damp=1e-2)
    assert all((first[n] >= second[n]).all() for n in grads)


def test_float32_weights_keep_their_precision():
    model, grads = trained()
    model.float()
    obs_prune(model, 0.5, grads)
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_bad_input_is_refused_by_name():
    model, grads = trained()
    name = next(iter(grads))
    for given, said in (((1.5, grads), "sparsity must be a share"), ((0.5, {}), "at least one"),
                        ((0.5, {"nobody": grads[name]}), "'nobody', which is no parameter"),
                        ((0.5, {name: grads[name][:, :2]}), r"must have shape \(m, 5, 4\), got \(30, 2, 4\)"),
                        ((0.5, {**grads, name: grads[name][:3]}), r"got \[3, 30\]")):
        with pytest.raises(ValueError, match=said):
            obs_prune(model, *given)
    before = [p.detach().clone() for p in model.parameters()]
    spoilt = grads[name].clone()
    spoilt[3, 1, 1] = torch.nan
    with pytest.raises(ValueError, match=f"grads of '{name}' must be finite, got 1 numbers"):
        obs_prune(model, 0.5, {**grads, name: spoilt})
    parallel = 1e5 * (torch.ones(1, 5, 4) + 1e-3 * torch.randn(64, 5, 4, generator=fl.Key(0).generator()))
    with pytest.raises(ValueError, match="take a larger one"):
        obs_prune(model, 0.5, {name: parallel}, damp=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    with pytest.raises(ValueError, match="damp must be a finite number > 0"):
        obs_prune(model, 0.5, grads, damp=0.0)
    with pytest.raises(ValueError, match="block must be a whole number"):
        obs_prune(model, 0.5, grads, block=0)
