"""The Ginzburg-Landau energy: phases −1 and 1 with short interfaces, on periodic grids and on graphs.

    E(u) = (ε/2) ∫|∇u|² + (1/ε) ∫ W(u),   W(u) = (u² − 1)²/4                        (grid, unit cube, periodic)
    E(u) = (ε/2) uᵀLu + (1/ε) Σ_i W(u_i) + (ω/2) Σ_{i labelled} (u_i − y_i)²         (graph with Laplacian L)
    E = C + K,   C = (ε/2) uᵀAu + c/(2ε) ‖u‖² + fidelity convex,   K = (1/ε) Σ (W(u) − (c/2) u²) concave where 3u² ≤ 1 + c

For ε → 0 the energy of a grid is 2√2/3 times the interface's length or area. A = −Δ of second differences, by FFT, or L: with either
the implicit steps in C keep |u| ≤ 1, where c = 2 makes K concave.

Akande, Dondl, Gupta, Onwunta, Wojtowytsch: Momentum-based minimization of the Ginzburg-Landau functional on Euclidean spaces and
graphs, arXiv 2501.00389; D. Eyre, MRS Proc. 529 (1998) 39 (the splitting).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.sparse
import torch
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu
from torch import Tensor

from fallline.core.constructors import Composite, Smooth
from fallline.core.keys import Key, as_key
from fallline.core.problem import Problem
from fallline.core.terms import Term
from fallline.core.warning import warn

KIND = "convex-splitting"


class PeriodicQuadratic(Term):
    """cell · (ε/2 uᵀ(−Δ)u + curvature/2 ‖u‖²) on a periodic grid over the unit cube; its proximal map is a division of Fourier modes.

    Parameters
    ----------
    shape : tuple of int
        Points along 1, 2 or 3 dimensions.
    eps, curvature : float
    """

    def __init__(self, shape: tuple[int, ...], eps: float, curvature: float) -> None:
        self.shape, self.eps, self.curvature = shape, eps, curvature
        self.cell = 1 / math.prod(shape)

    def value(self, x: Tensor) -> Tensor:
        """Return the energy, a 0-d tensor."""
        return (x * self._apply(x, self._symbol(x))).sum() / 2

    def _prox(self, x: Tensor, step: float | Tensor) -> Tensor:
        return self._apply(x, 1 / (1 + step * self._symbol(x)))

    def _apply(self, x: Tensor, multiplier: Tensor) -> Tensor:
        return torch.fft.irfftn(torch.fft.rfftn(x) * multiplier, s=x.shape)

    def _symbol(self, x: Tensor) -> Tensor:
        """cell · (ε Σ_i (2 − 2 cos(2π k_i / n_i)) n_i² + curvature), in the layout of ``rfftn``."""
        total = x.new_full((), self.curvature)
        for axis, n in enumerate(self.shape):
            last = axis == len(self.shape) - 1
            k = torch.arange(n // 2 + 1 if last else n, dtype=x.dtype, device=x.device)
            waves = (2 - 2 * torch.cos(2 * math.pi * k / n)) * n**2
            total = total + self.eps * waves.reshape(-1, *[1] * (len(self.shape) - 1 - axis))
        return self.cell * total

    def __repr__(self) -> str:
        return f"PeriodicQuadratic({self.shape}, eps={self.eps:g}, curvature={self.curvature:g})"


class GraphQuadratic(Term):
    """ε/2 uᵀLu + curvature/2 ‖u‖² + ω/2 Σ_{y_i ≠ 0} (u_i − y_i)²; its proximal map is a sparse solve, factorised once a step size.

    Parameters
    ----------
    laplacian : scipy sparse matrix (n, n)
    eps, curvature, fidelity : float
    labels : Tensor (n,)
        ±1, and 0 where there is none.

    Attributes
    ----------
    factors : dict
        The factor by the step size, of the last one alone; terms of one matrix may share it.
    """

    def __init__(self, laplacian: Any, eps: float, curvature: float, labels: Tensor, fidelity: float) -> None:
        self.labels, self.fidelity = labels.detach().double().cpu().numpy().copy(), fidelity
        diagonal = curvature + fidelity * (self.labels != 0)
        self.matrix = (eps * laplacian + scipy.sparse.diags_array(diagonal)).tocsc()
        self.factors: dict[float, Any] = {}

    def value(self, x: Tensor) -> Tensor:
        """Return the energy, a 0-d tensor."""
        u = x.detach().double().cpu().numpy()
        constant = self.fidelity / 2 * float((self.labels != 0).sum())
        return x.new_tensor(u @ (self.matrix @ u) / 2 - self.fidelity * (self.labels @ u) + constant)

    def _prox(self, x: Tensor, step: float | Tensor) -> Tensor:
        tau = float(step)
        if tau not in self.factors:
            self.factors.clear()
            system = (scipy.sparse.eye_array(len(self.labels)) + tau * self.matrix).tocsc()
            self.factors[tau] = splu(system, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
        right = x.detach().double().cpu().numpy() + tau * self.fidelity * self.labels
        return torch.as_tensor(self.factors[tau].solve(right)).to(x)

    def __repr__(self) -> str:
        return f"GraphQuadratic({len(self.labels)} nodes, {int((self.labels != 0).sum())} labelled, fidelity={self.fidelity:g})"


def GinzburgLandau(grid: tuple[int, ...] | None = None, laplacian: Any = None, *, eps: float, labels: Tensor | None = None,
                   fidelity: float = 1.0, splitting: float = 2.0, x0: Tensor | None = None, key: Key | int = 0,
                   **options: Any) -> Problem:
    """The energy on a periodic grid or on a graph, split for ``MomentumSplitting``.

    Parameters
    ----------
    grid : tuple of 1 to 3 int
        Points along each side of the unit cube; or
    laplacian : tensor or SciPy sparse matrix (n, n)
        D − W with W symmetric and not negative (rows may sum to more than 0); scale it to a mean degree near 1, or ε and its
        entries do not compare.
    eps : float
        ε: the interface's width; at least two grid spacings.
    labels : Tensor (n,), optional
        For graphs: ±1, and 0 for nodes without one.
    fidelity : float, default 1
        ω ≥ 0.
    splitting : float, default 2
        c; at least 2, and at least 3 max|x0|² − 1.
    x0 : Tensor, optional
        By default the labels, or ±0.1 at random.
    key : Key or int, default 0
        Of the random start.
    **options
        ``name``, ``facts``, ``budget``, ``observer`` of ``Problem``.

    Returns
    -------
    Problem
        A composite: ``smooth`` is K with its gradient, the term is C with its proximal map. ``facts["cell"]`` is the volume of a grid
        cell, by which gradients in L² differ from those of the numbers; 1 on a graph.

    Raises
    ------
    ValueError
        Both or none of ``grid`` and ``laplacian``; an interface that the grid does not resolve; a splitting that is not concave; a
        matrix that is not symmetric, or under which |u| ≤ 1 is not kept: an entry beside the diagonal above 0, or a row that sums to
        less than 0, as in symmetrically normalised Laplacians; labels that are not −1, 0, 1, or do not fit; a start that is not finite.

    Warns
    -----
    UserWarning
        A component of a graph with labels has none of its own: nothing decides its phase but the start.
    """
    if (grid is None) == (laplacian is None):
        raise ValueError("give grid, such as (64, 64), or laplacian, a symmetric matrix, and not both")
    if not (math.isfinite(eps) and eps > 0):
        raise ValueError(f"eps must be a finite number > 0, the width of interfaces, got {eps!r}")
    if not (math.isfinite(fidelity) and fidelity >= 0):
        raise ValueError(f"fidelity must be a finite number >= 0, got {fidelity!r}")
    term: Term
    if grid is not None:
        shape = _checked_grid(grid, eps)
        if labels is not None:
            raise ValueError("labels are for graphs; a grid with labels is a graph: give its laplacian")
        term, cell = PeriodicQuadratic(shape, eps, splitting / eps), 1 / math.prod(shape)
    else:
        matrix = _checked_laplacian(laplacian)
        shape, cell = (matrix.shape[0],), 1.0
        term = GraphQuadratic(matrix, eps, splitting / eps, _checked_labels(labels, matrix), fidelity)
    if x0 is None and labels is not None:
        x0 = labels.detach().double().clone()
    elif x0 is None:
        x0 = 0.2 * torch.rand(shape, generator=as_key(key).generator()).double() - 0.1
    if tuple(x0.shape) != shape:
        raise ValueError(f"x0 must have the shape {shape}, got {tuple(x0.shape)}")
    if not bool(x0.isfinite().all()):
        raise ValueError("x0 must be finite, and has NaN or infinite entries")
    largest = float(x0.abs().max())
    needed = max(2.0, 3 * largest**2 - 1)
    if not (math.isfinite(splitting) and splitting >= needed * (1 - 1e-6)):
        raise ValueError(f"splitting must be at least {needed:.6g} for |x0| up to {largest:.3g}, where it makes W(u) − c u²/2 concave, "
                         f"got {splitting!r}")
    concave = Smooth(lambda u: cell / eps * ((u * u - 1) ** 2 / 4 - splitting / 2 * u * u).sum(), x0,
                     gradient=lambda u: cell / eps * (u * u - 1 - splitting) * u, name="Ginzburg-Landau")
    facts = {"cell": cell, **options.pop("facts", {})}
    return Composite(concave, term, kind=KIND, facts=facts, **options)


def _checked_grid(grid: tuple[int, ...], eps: float) -> tuple[int, ...]:
    if not (isinstance(grid, tuple | list) and 1 <= len(grid) <= 3 and all(isinstance(n, int) and n >= 4 for n in grid)):
        raise ValueError(f"grid must be 1 to 3 whole numbers of at least 4, got {grid!r}")
    if eps < 2 / min(grid) * (1 - 1e-9):
        raise ValueError(f"eps must be at least two grid spacings, {2 / min(grid):.3g}, to resolve interfaces, got {eps:g}; "
                         f"raise it, or take {math.ceil(2 / eps)} points a side")
    return tuple(grid)


def _checked_laplacian(laplacian: Any) -> Any:
    if isinstance(laplacian, Tensor):
        coo = laplacian.detach().double().cpu().to_sparse_coo().coalesce()
        laplacian = scipy.sparse.coo_array((coo.values().numpy(), coo.indices().numpy()), shape=tuple(coo.shape))
    matrix = scipy.sparse.csc_array(laplacian, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"laplacian must be a square matrix, got shape {matrix.shape}")
    if not np.isfinite(matrix.data).all():
        raise ValueError("laplacian must be finite, and has NaN or infinite entries")
    scale = abs(matrix).max()
    if abs(matrix - matrix.T).max() > 1e-10 * scale:
        raise ValueError("laplacian must be symmetric: use D − W with W = Wᵀ; a random-walk Laplacian is not")
    if (matrix.diagonal() < 0).any():
        raise ValueError("laplacian must be positive semidefinite, and has a negative diagonal entry: D − W, not W − D")
    beside = (matrix - scipy.sparse.diags_array(matrix.diagonal())).max()
    if beside > 1e-10 * scale:
        raise ValueError(f"laplacian must have no entry above 0 beside the diagonal, and has {beside:.3g}, with which |u| ≤ 1 is not "
                         "kept and the energy may rise: D − W with W >= 0, not W itself")
    least = np.asarray(matrix.sum(axis=1)).min()
    if least < -1e-6 * scale:  # float32 leaves that much
        raise ValueError(f"laplacian must have rows that sum to 0 or more, and one sums to {least:.3g}, with which |u| ≤ 1 is not kept "
                         "and the energy may rise: D − W, divided by one number if need be, not I − D^(-1/2) W D^(-1/2)")
    return matrix


def _checked_labels(labels: Tensor | None, matrix: Any) -> Tensor:
    n = matrix.shape[0]
    if labels is None:
        return torch.zeros(n)
    if tuple(labels.shape) != (n,):
        raise ValueError(f"labels must be {n} numbers, one for each node, got shape {tuple(labels.shape)}")
    wrong = ~((labels == 0) | (labels.abs() == 1))
    if bool(wrong.any()):
        raise ValueError(f"labels must be -1, 1, or 0 for none, got {float(labels[wrong][0]):g}")
    count, component = connected_components(matrix, directed=False)
    without = count - len(np.unique(component[labels.cpu().numpy() != 0]))
    if without:
        warn(f"{without} of the {count} components of the graph have no label: nothing but the start decides their phase; take more "
             "neighbours, or label a node of each")
    return labels


def plot_phases(u: Tensor) -> Any:
    """Return a plotly figure of a field on a grid: a curve, an image, or the surface u = 0."""
    import plotly.graph_objects as go

    field = u.detach().double().cpu()
    axes = [(torch.arange(n) / n).tolist() for n in field.shape]
    if field.ndim == 1:
        figure = go.Figure(go.Scatter(x=axes[0], y=field.tolist(), mode="lines"))
    elif field.ndim == 2:
        figure = go.Figure(go.Heatmap(z=field.T.tolist(), x=axes[0], y=axes[1], zmin=-1, zmax=1, colorscale="RdBu"))
        figure.update_yaxes(scaleanchor="x", constrain="domain").update_xaxes(constrain="domain")
    elif field.ndim == 3:
        x, y, z = (each.flatten().tolist() for each in torch.meshgrid(*map(torch.tensor, axes), indexing="ij"))
        figure = go.Figure(go.Isosurface(x=x, y=y, z=z, value=field.flatten().tolist(), isomin=0, isomax=0))
    else:
        raise ValueError(f"u must be a field on a grid of 1 to 3 dimensions, got shape {tuple(u.shape)}")
    return figure.update_layout(template="simple_white")
