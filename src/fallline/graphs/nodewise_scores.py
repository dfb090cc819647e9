"""Scores that are sums over nodes, each a regression on other nodes, as a search over orders needs.

    least squares   (1/2n) ‖X − XW‖² + λ‖W‖₁,   columns centred
    logistic        (1/n) Σ log(1 + e^m) − x m + λ‖W‖₁,   m = XW, for X of zeros and ones

Deng, Bello, Aragam, Ravikumar, ICML 2023, arXiv 2305.17277.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fallline.graphs.lasso import lasso
from fallline.graphs.scores import Score, residuals

RIDGE = 1e-10
"""Relative to each variance: what makes collinear predecessors a regression with one answer."""
NUMBERS = 2**22
"""How many numbers a batch of matrices holds at most."""


@dataclass(frozen=True)
class NodewiseScore(Score):
    """A score that is a sum over nodes, each a regression on its predecessors in an order."""

    def regress(self, data: Tensor, nodes: Tensor, allowed: Tensor, start: Tensor) -> Tensor:
        """Return the best weights of B regressions, ``(B, d)``.

        Parameters
        ----------
        data : Tensor
            From ``condense``.
        nodes : Tensor (B,)
            Whom to explain.
        allowed : Tensor (B, d) of bool
            By whom.
        start : Tensor (B, d)
            A guess, 0 where not allowed.
        """
        raise NotImplementedError(f"{type(self).__name__} must define regress")

    def node_losses(self, data: Tensor, nodes: Tensor, weights: Tensor) -> Tensor:
        """Return each regression's share of F, its part of the penalty included, ``(B,)``."""
        raise NotImplementedError(f"{type(self).__name__} must define node_losses")

    def fit_order(self, data: Tensor, order: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best W whose edges go along the order, and the nodes' shares of F; ``start`` (d, d) is a guess."""
        nodes = torch.arange(len(order), device=order.device)
        allowed = _earlier(order[None], torch.zeros_like(nodes), torch.argsort(order))
        weights = self.regress(data, nodes, allowed, torch.where(allowed, start.T, 0))
        return weights.T.contiguous(), self.node_losses(data, nodes, weights)

    def order_scores(self, data: Tensor, orders: Tensor, spans: Tensor, W: Tensor, losses: Tensor) -> Tensor:
        """Return the best F of orders ``(k, d)`` that differ from W's only between two positions each, ``(k,)``.

        Parameters
        ----------
        orders : Tensor (k, d)
        spans : Tensor (k, 2)
            First and last position that differ.
        W, losses : Tensor (d, d) and (d,)
            From ``fit_order``.
        """
        positions = torch.arange(orders.shape[1], device=orders.device)
        candidates, places = ((positions >= spans[:, :1]) & (positions <= spans[:, 1:])).nonzero(as_tuple=True)
        changes = []
        for chosen in torch.arange(len(candidates), device=orders.device).split(max(1, NUMBERS // (len(data) + W.numel()))):
            candidate, place = candidates[chosen], places[chosen]
            nodes = orders[candidate, place]
            allowed = _earlier(orders, candidate, place)
            weights = self.regress(data, nodes, allowed, torch.where(allowed, W.T[nodes], 0))
            changes.append(self.node_losses(data, nodes, weights) - losses[nodes])
        return losses.sum() + losses.new_zeros(len(orders)).index_add_(0, candidates, torch.cat(changes))

    def count_regressions(self, spans: Tensor) -> int:
        """Return how many regressions ``order_scores`` takes."""
        return int((spans[:, 1] - spans[:, 0] + 1).sum())


def _earlier(orders: Tensor, candidate: Tensor, place: Tensor) -> Tensor:
    """Who stands before a place in an order: (B, d) of bool."""
    return torch.argsort(orders, dim=1)[candidate] < place[:, None]


@dataclass(frozen=True)
class LeastSquaresScore(NodewiseScore):
    """(1/2n) ‖X − XW‖² + λ‖W‖₁: nodes have noise of equal variances.

    Nodes are fitted by ordinary least squares where λ = 0, all those of an order by one Cholesky factor of the covariance in that
    order: C_π = U D Uᵀ with U unit lower triangular gives (I − W_π) = U⁻ᵀ and q = diag D. For λ > 0 they are lassos,
    all of them at a time (``lasso``).

    Notes
    -----
    Collinear predecessors share weights as a ridge of 10⁻¹⁰ of each variance decides. With n ≤ d nodes late in an order are
    explained wholly, whatever the truth: give λ > 0.
    """

    def loss(self, data: Tensor, W: Tensor) -> Tensor:
        return residuals(data, W)[1].sum() / 2

    def gradient(self, data: Tensor, W: Tensor) -> Tensor:
        return torch.addmm(data, data, W, beta=-1)

    def regress(self, data: Tensor, nodes: Tensor, allowed: Tensor, start: Tensor) -> Tensor:
        return lasso(_ridged(data), data[nodes], self.lam, allowed, start)

    def node_losses(self, data: Tensor, nodes: Tensor, weights: Tensor) -> Tensor:
        remainder = -weights
        remainder[torch.arange(len(nodes), device=nodes.device), nodes] += 1
        return (remainder * (remainder @ data)).sum(1) / 2 + self.lam * weights.abs().sum(1)

    def fit_order(self, data: Tensor, order: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        if self.lam > 0:
            return super().fit_order(data, order, start)
        L = torch.linalg.cholesky(_ridged(data)[order][:, order])
        unit = L / L.diagonal()
        identity = torch.eye(len(order), dtype=L.dtype, device=L.device)
        W = torch.zeros_like(data)
        W[order[:, None], order] = (identity - torch.linalg.solve_triangular(unit, identity, upper=False, unitriangular=True).T).triu(1)
        losses = torch.empty_like(data[0])
        losses[order] = L.diagonal().square() / 2
        return W, losses

    def order_scores(self, data: Tensor, orders: Tensor, spans: Tensor, W: Tensor, losses: Tensor) -> Tensor:
        if self.lam > 0:
            return super().order_scores(data, orders, spans, W, losses)
        C = _ridged(data)
        variances = [torch.linalg.cholesky(C[chosen[:, :, None], chosen[:, None, :]]).diagonal(dim1=1, dim2=2).square().sum(1)
                     for chosen in orders.split(max(1, NUMBERS // C.numel()))]
        return torch.cat(variances) / 2


def _ridged(C: Tensor) -> Tensor:
    return C + torch.diag(max(RIDGE, 16 * torch.finfo(C.dtype).eps) * C.diagonal())


@dataclass(frozen=True)
class LogisticScore(NodewiseScore):
    """(1/n) Σ log(1 + e^m) − x m + λ‖W‖₁ with m = XW: columns of zeros and ones, no intercepts, as in the paper.

    Nodes are fitted by Newton steps, each a lasso with the Hessian, halved while they do not lower the score.

    Parameters
    ----------
    lam : float, default 0.01
    """

    lam: float = 0.01

    def condense(self, X: Tensor) -> Tensor:
        if not bool(((X == 0) | (X == 1)).all()):
            raise ValueError("X must hold zeros and ones for LogisticScore; for other numbers take LeastSquaresScore")
        return X

    def loss(self, data: Tensor, W: Tensor) -> Tensor:
        margins = data @ W
        return (torch.nn.functional.softplus(margins) - data * margins).sum() / len(data)

    def gradient(self, data: Tensor, W: Tensor) -> Tensor:
        return data.T @ (torch.sigmoid(data @ W) - data) / len(data)

    def noise(self, data: Tensor, W: Tensor) -> None:
        return None

    def regress(self, data: Tensor, nodes: Tensor, allowed: Tensor, start: Tensor) -> Tensor:
        n, d = data.shape
        pairs, labels, w = (data[:, :, None] * data[:, None, :]).flatten(1), data[:, nodes], start
        ridge = torch.diag(RIDGE * data.square().mean(0))
        losses = self.node_losses(data, nodes, w)
        for _ in range(100):
            chances = torch.sigmoid(data @ w.T)
            gradient = (chances - labels).T @ data / n
            hessian = ((chances * (1 - chances)).T @ pairs / n).view(-1, d, d) + ridge
            move = lasso(hessian, (hessian @ w[:, :, None])[:, :, 0] - gradient, self.lam, allowed, w) - w
            for _ in range(20):
                after = self.node_losses(data, nodes, w + move)
                move = torch.where((after <= losses)[:, None], move, move / 2)
                if bool((after <= losses).all()):
                    break
            else:
                move = torch.where((after <= losses)[:, None], move, 0)  # no step lowers it: only rounding is left
            w, losses = w + move, torch.minimum(after, losses)
            if float(move.abs().max()) <= 1e-9 * float(w.abs().max()):
                break
        return w

    def node_losses(self, data: Tensor, nodes: Tensor, weights: Tensor) -> Tensor:
        margins = data @ weights.T
        losses = (torch.nn.functional.softplus(margins) - data[:, nodes] * margins).mean(0)
        return losses + self.lam * weights.abs().sum(1)


def check_nodewise(score: Any) -> NodewiseScore:
    """Return the score, or say which ones a search over orders takes."""
    if not isinstance(score, NodewiseScore):
        raise TypeError(f"score must be a NodewiseScore, which can regress a node on its predecessors, got {score!r}; "
                        "LeastSquaresScore(lam) and LogisticScore(lam) are such")
    return score
