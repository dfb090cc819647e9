"""The optimal brain surgeon: weights are removed where the loss minds least, and the others make up for it.

    ρ_j = w_j² / (2 [F⁻¹]_jj);   w ← w − Σ_{j removed} w_j / [F⁻¹]_jj · F⁻¹ e_j,  those removed then exactly 0

F is the damped empirical Fisher matrix of some gradients; see :mod:`fallline.core.fisher_window`.

Hassibi, Stork: Second order derivatives for network pruning, NIPS 1992; by the inverse of Frantar, Kurtic, Alistarh: M-FAC,
NeurIPS 2021, arXiv 2107.03356.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fallline.core.checks import check_count
from fallline.core.fisher_window import StaticFisher, check_damp


@torch.no_grad()
def obs_prune(model: nn.Module, sparsity: float, grads: Mapping[str, Tensor], damp: float = 1e-5,
              block: int | None = None) -> dict[str, Tensor]:
    """Set the weights of least w² / (2 [F⁻¹]_jj) to 0, over all named parameters together, and let the others make up for it.

    All weights go at once, each as if it went alone: at a high sparsity prune in rounds, with new gradients in each.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    sparsity : float in [0, 1]
        The share of the weights that are 0 afterwards, rounded down to a whole number; zeros that are there already are the first.
    grads : mapping of str to Tensor (m, *shape)
        m gradients of each parameter that is to be pruned, by its name in the model: of single samples, or of small batches, as
        ``objective(x, y).per_sample_gradients()`` gives them.
    damp : float, default 1e-5
        λ > 0.
    block : int, optional
        Take F as block-diagonal, in blocks of so many weights; by default F is whole. The memory is the same, 8 m bytes a weight.

    Returns
    -------
    dict of str to bool Tensor
        What is kept, by name.

    Raises
    ------
    ValueError
        For a share outside [0, 1], a name that the model does not have, gradients of another shape, of differing numbers or not
        finite, a block below 1, a damping that is lost in the rounding of the gradients' squares. The model then is as it was.
    """
    if isinstance(sparsity, bool) or not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity must be a share in [0, 1], got {sparsity!r}; 0.9 removes nine weights of ten")
    if block is not None:
        check_count("block", block, "or None for a whole F")
    check_damp(damp)
    params = _named(model, grads)
    shapes = [p.shape for p in params.values()]
    lengths = [p.numel() for p in params.values()]
    w = torch.cat([p.reshape(-1).double() for p in params.values()])
    table = torch.cat([grads[name].reshape(len(grads[name]), -1).to(w) for name in params], 1)
    weights, fisher = _blocks(w.unsqueeze(0), block), StaticFisher(_blocks(table, block), damp)
    diagonal = fisher.diag()
    losses = (weights.squeeze(1) ** 2 / (2 * diagonal)).view(-1)[: len(w)]
    removed = torch.zeros(len(w), dtype=torch.bool, device=w.device)
    removed[losses.argsort(stable=True)[: int(sparsity * len(w))]] = True
    push = _blocks((w * removed).unsqueeze(0), block).squeeze(1) / diagonal
    w = torch.where(removed, 0.0, w - fisher.ihvp(push).view(-1)[: len(w)])
    masks = {}
    for name, new, gone, shape in zip(params, w.split(lengths), removed.split(lengths), shapes, strict=True):
        params[name].copy_(new.view(shape))
        masks[name] = ~gone.view(shape)
    return masks


def _named(model: nn.Module, grads: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """The model's parameters that have gradients, in the order of these."""
    known = dict(model.named_parameters())
    counts = {len(g) for g in grads.values()}
    if not grads or len(counts) > 1:
        raise ValueError(f"grads must have as many gradients, at least one, of every parameter to be pruned, got {sorted(counts)}")
    for name, g in grads.items():
        if name not in known:
            raise ValueError(f"grads has {name!r}, which is no parameter of the model; it has {', '.join(known)}")
        if g.shape[1:] != known[name].shape:
            raise ValueError(f"grads of {name!r} must have shape (m, {', '.join(map(str, known[name].shape))}), got {tuple(g.shape)}")
        if not bool(g.isfinite().all()):
            raise ValueError(f"grads of {name!r} must be finite, got {int((~g.isfinite()).sum())} numbers that are not; leave out the "
                             "samples that they come from")
    return {name: known[name] for name in grads}


def _blocks(rows: Tensor, block: int | None) -> Tensor:
    """Rows (m, d) as (blocks, m, block), the last one filled up with zeros."""
    m, d = rows.shape
    width = d if block is None else min(block, d)
    count = -(-d // width)
    padded = torch.nn.functional.pad(rows, (0, count * width - d))
    return padded.view(m, count, width).transpose(0, 1)
