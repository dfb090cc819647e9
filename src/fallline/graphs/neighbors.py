"""Graphs of nearest neighbours as sparse matrices.

    w_pq = 1 where q is one of the ``knn`` points nearest to p, p itself among them and left out
    symmetric:   (W + Wᵀ)/2 + D, D its row sums on the diagonal: positive semidefinite, for sᵀ(W + D)s = Σ w_pq (s_p + s_q)²/2

LaplacianShot (Ziko et al., ICML 2020, arXiv 2006.15486) takes the first; bounds of concave functions need the second.
"""

from __future__ import annotations

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from fallline.core.checks import check_count

TREE_DIMENSIONS = 16
"""Above so many a tree looks at most of the points anyway, and all distances are taken, some rows at a time."""
NUMBERS = 2**24


def nearest(X: Tensor, count: int) -> Tensor:
    """Return the numbers of the ``count`` points nearest to each of ``(n, d)``, without itself, ``(n, count)``.

    Memory is O(n count): distances of all pairs are never held.
    """
    n = len(X)
    if X.shape[1] <= TREE_DIMENSIONS:
        found = torch.as_tensor(cKDTree(X.double().cpu().numpy()).query(X.double().cpu().numpy(), count + 1)[1]).to(X.device)
        itself = found == torch.arange(n, device=X.device)[:, None]
        itself[:, -1] |= ~itself.any(1)  # of many equal points the tree may name others
        return found[~itself].view(n, count)
    rows = max(1, NUMBERS // n)
    chunks = []
    for first in range(0, n, rows):
        distances = torch.cdist(X[first:first + rows], X)
        distances[torch.arange(len(distances)), torch.arange(first, first + len(distances))] = torch.inf
        chunks.append(distances.topk(count, largest=False).indices)
    return torch.cat(chunks)


def neighbor_graph(X: Tensor, knn: int = 3, *, symmetric: bool = False) -> Tensor:
    """Return W of points ``(n, d)``, a sparse COO tensor (n, n) of X's dtype.

    Parameters
    ----------
    X : Tensor (n, d)
    knn : int, default 3
        Neighbours, the point itself counted: 3 are two others.
    symmetric : bool, default False
        Symmetrised and shifted on the diagonal until positive semidefinite.
    """
    check_count("knn", knn, "3 is the paper's")
    n = len(X)
    if not 2 <= knn <= n:
        raise ValueError(f"knn must be between 2 (the point itself and another one) and the {n} points, got {knn}")
    columns = nearest(X, knn - 1).flatten()
    rows = torch.arange(n, device=X.device).repeat_interleave(knn - 1)
    ones = torch.ones(len(rows), dtype=X.dtype, device=X.device)
    if not symmetric:
        return torch.sparse_coo_tensor(torch.stack([rows, columns]), ones, (n, n), check_invariants=False).coalesce()
    degrees = torch.bincount(rows, minlength=n) + torch.bincount(columns, minlength=n)
    diagonal = torch.arange(n, device=X.device)
    places = torch.stack([torch.cat([rows, columns, diagonal]), torch.cat([columns, rows, diagonal])])
    values = torch.cat([ones / 2, ones / 2, degrees.to(X.dtype) / 2])
    return torch.sparse_coo_tensor(places, values, (n, n), check_invariants=False).coalesce()
