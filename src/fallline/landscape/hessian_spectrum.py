"""The eigenvalues of a loss's Hessian, of its Gauss-Newton part, and the loss between two solutions.

    ∇²L = Jᵀ H J + Σ_i (∂ℓ/∂f_i) ∇²f_i,      J = ∂f/∂θ,  H = ∂²ℓ/∂f²

for outputs f and loss ℓ(f). The first term, Gauss-Newton, is positive semi-definite for a convex ℓ, has rank at most the
number of outputs, and makes the few large eigenvalues; the second fades as a squared error does. More parameters lengthen
the bulk of eigenvalues near zero, the data move the large ones.

Sagun, Evci, Güney, Dauphin, Bottou: Empirical Analysis of the Hessian of Over-Parametrized Neural Networks,
ICLR workshop 2018, arXiv 1706.04454.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from fallline.core import tree
from fallline.core.constructors import Smooth
from fallline.core.errors import MissingOracle
from fallline.core.keys import Key, as_key
from fallline.core.objective import ModelProblem, Training
from fallline.core.operators import LinearOperator, SpectralDensity, spectral_density, top_eigenvalues
from fallline.core.problem import Problem
from fallline.core.tree import Tree

DENSE_LIMIT, ENDS = 5_000, 10
DENSITY_STEPS, DENSITY_SAMPLES = 80, 10
BULK = 0.01


@dataclass(frozen=True, repr=False)
class Spectrum:
    """Eigenvalues of a symmetric matrix.

    Attributes
    ----------
    eigenvalues : Tensor, shape (m,)
        Descending: all ``size`` of them if ``complete``, else those at the ends that were asked for.
    size : int
        Number of parameters.
    complete, converged : bool
        Whether all eigenvalues are there; whether Lanczos reached its tolerance (true of a dense decomposition).
    density : SpectralDensity or None
        The distribution of eigenvalues; exact, with ``samples = 0``, if ``complete``.
    matrix : str
        "Hessian" or "Gauss-Newton".
    """

    eigenvalues: Tensor
    size: int
    complete: bool
    converged: bool
    density: SpectralDensity | None
    matrix: str

    def plot(self) -> Any:
        """Return a plotly figure, logarithmic: the density if there is one, else |λ| against rank by sign."""
        import plotly.graph_objects as go

        figure = go.Figure()
        if self.density is not None:
            low, high = float(self.density.nodes[0]), float(self.density.nodes[-1])
            margin = 0.05 * (high - low) or 1.0
            grid = torch.linspace(low - margin, high + margin, 500, dtype=torch.float64)
            heights = self.density.density(grid.to(self.density.nodes), margin / 5).clamp(min=1e-8)
            figure.add_scatter(x=grid.tolist(), y=heights.tolist(), mode="lines", name=self.matrix)
            titles = {"xaxis_title": "eigenvalue", "yaxis_title": "density"}
        else:
            ranked = list(enumerate(self.eigenvalues.tolist(), 1))
            for name, sign in (("positive", 1), ("negative", -1)):
                signed = [(rank, sign * value) for rank, value in ranked if sign * value > 0]
                figure.add_scatter(x=[r for r, _ in signed], y=[v for _, v in signed], mode="markers", name=name)
            titles = {"xaxis_title": "rank", "yaxis_title": "|eigenvalue|"}
        return figure.update_layout(template="simple_white", title=f"{self.matrix}, {self.size:,} parameters",
                                    yaxis_type="log", **titles)

    def __repr__(self) -> str:
        kept = "all" if self.complete else f"{len(self.eigenvalues)} at the ends"
        status = "" if self.converged else ", not converged"
        high, low = float(self.eigenvalues[0]), float(self.eigenvalues[-1])
        return f"Spectrum({self.matrix}, {self.size:,} parameters: {kept}, {low:.4g} to {high:.4g}{status})"


@dataclass(frozen=True)
class SpectrumSummary:
    """What a spectrum looks like.

    Attributes
    ----------
    largest : float
        λ_max.
    bulk_fraction : float
        Share of eigenvalues with |λ| < 0.01 λ_max.
    outliers : int
        How many are not in the bulk.
    negative_mass : float
        Σ_{λ<0} |λ| / Σ |λ|.
    gauss_newton_difference : float or None
        max |λ_i − γ_i| / |λ_i| over the largest k eigenvalues λ of the Hessian and γ of Gauss-Newton, if that was given.
    """

    largest: float
    bulk_fraction: float
    outliers: int
    negative_mass: float
    gauss_newton_difference: float | None


@dataclass(frozen=True, repr=False)
class Segment:
    """The loss at ``positions`` t, both of shape (points,), on the segment (1 − t) θ₁ + t θ₂."""

    positions: Tensor
    values: Tensor

    @property
    def barrier(self) -> float:
        """max on the segment − max of the two ends: never negative, and 0 along any convex loss."""
        return float(self.values.max() - torch.maximum(self.values[0], self.values[-1]))

    def plot(self) -> Any:
        """Return a plotly figure of the loss along the segment."""
        import plotly.graph_objects as go

        figure = go.Figure(go.Scatter(x=self.positions.tolist(), y=self.values.tolist(), mode="lines+markers"))
        return figure.update_layout(template="simple_white", xaxis_title="position on the segment", yaxis_title="loss",
                                    title=f"barrier {self.barrier:.4g}")

    def __repr__(self) -> str:
        first, last = float(self.values[0]), float(self.values[-1])
        return f"Segment(barrier={self.barrier:.4g}, ends {first:.4g} and {last:.4g}, {len(self.values)} points)"


def hessian_spectrum(problem: Problem, x: Tree | None = None, *, k: int | None = None, density: bool = False,
                     key: Key | int = 0) -> Spectrum:
    """Return eigenvalues of ∇²f(x).

    Up to 5,000 variables all of them, from the dense Hessian; beyond, the ``k`` largest and ``k`` smallest by Lanczos with full
    re-orthogonalisation, each product one backward pass through a backward pass.

    Parameters
    ----------
    problem : Problem
        ``Training`` (all training data), ``Objective(model, loss)(inputs, targets)``, or anything with ``hessian`` and ``hvp``.
        A model is evaluated in evaluation mode and put back as it was: running batch-norm statistics, no dropout.
    x : tree, optional
        The point, in float32 or float64; by default ``problem.x0``, the model's own weights. Buffers beside the parameters,
        as a training result has them, are ignored: load them into the model.
    k : int, optional
        How many at each end; asks for Lanczos whatever the size, unless 2k is at least the size. Default 10 if Lanczos is needed.
    density : bool, default False
        Also the distribution of all eigenvalues: from the eigenvalues if all are there, else by stochastic Lanczos
        quadrature with 10 random starts of 80 steps.
    key : Key or int, default 0
        Of Lanczos' start vectors.

    Notes
    -----
    The scale is that of the loss: a sum over data has eigenvalues as many times larger than a mean. The second term of a ReLU
    network's Hessian vanishes almost everywhere inside a layer.
    """
    with _evaluation(problem, x) as (realisation, point):
        realisation.require("hvp", by="hessian_spectrum")
        return _spectrum("Hessian", point, lambda: realisation.hessian(point), lambda v: realisation.hvp(point, v), k, density,
                         as_key(key))


def gauss_newton_spectrum(problem: Problem, x: Tree | None = None, *, k: int | None = None, density: bool = False,
                          key: Key | int = 0) -> Spectrum:
    """Return eigenvalues of the Gauss-Newton matrix Jᵀ H J of a model.

    Parameters as for ``hessian_spectrum``; products are one forward-mode and one reverse-mode derivative of the outputs.

    Raises
    ------
    MissingOracle
        The problem has no model whose outputs could be differentiated.
    """
    with _evaluation(problem, x) as (realisation, point):
        if not hasattr(realisation, "outputs"):
            raise MissingOracle(f"the Gauss-Newton matrix needs a model's outputs, which the {problem.kind} problem "
                                f"{problem.name!r} does not have; pass Training, or Objective(model, loss)(inputs, targets)")
        product = _gauss_newton_product(realisation, point)

        def counted(v: Tree) -> Tree:
            realisation.counts.add("matvecs")
            return product(v)

        def dense() -> Tensor:
            size = tree.size(point)
            realisation.counts.add("matvecs", size)
            identity = torch.eye(size, dtype=tree.leaves(point)[0].dtype, device=tree.leaves(point)[0].device)
            return torch.func.vmap(lambda v: tree.flatten(product(tree.unflatten(v, point))))(identity)

        return _spectrum("Gauss-Newton", point, dense, counted, k, density, as_key(key))


def _gauss_newton_product(realisation: Problem, point: Tree) -> Callable[[Tree], Tree]:
    """v ↦ Jᵀ H J v at a fixed point: the outputs' derivatives around a Hessian-vector product of the loss."""
    outputs, pullback, *_ = torch.func.vjp(realisation.outputs, point)
    if not isinstance(outputs, Tensor):
        raise TypeError(f"the model must return one tensor, got {type(outputs).__name__}; wrap it in a module that does")
    def loss(f: Tensor) -> Tensor:
        return realisation.loss(f).reshape(())

    # H is symmetric: reverse over reverse, which every loss allows (forward over reverse fails for torch's own mean squared error).
    curvature = torch.func.vjp(torch.func.grad(loss), outputs)[1]

    def product(v: Tree) -> Tree:
        along = torch.func.jvp(realisation.outputs, (point,), (v,))[1]
        return pullback(curvature(along)[0])[0]

    return product


def spectrum_summary(spectrum: Spectrum, gauss_newton: Spectrum | None = None, *, k: int = 10) -> SpectrumSummary:
    """Summarise a spectrum, and compare its top with that of Gauss-Newton.

    Parameters
    ----------
    spectrum : Spectrum
        Complete, or with a density, from which bulk, outliers and negative mass are then estimated.
    gauss_newton : Spectrum, optional
        Of the same problem and point.
    k : int, default 10
        How many of the largest eigenvalues are compared.
    """
    if not spectrum.complete and spectrum.density is None:
        raise ValueError("spectrum must hold all eigenvalues or a density, got only its ends; use density=True")
    if spectrum.complete:
        values = spectrum.eigenvalues.double()
        weights = torch.full_like(values, 1 / spectrum.size)
    else:
        assert spectrum.density is not None
        values, weights = spectrum.density.nodes.double(), spectrum.density.weights.double()
    largest = float(spectrum.eigenvalues[0])
    bulk = float(weights[values.abs() < BULK * largest].sum())
    mass = weights * values.abs()
    negative = float(mass[values < 0].sum() / mass.sum()) if mass.any() else 0.0
    difference = None if gauss_newton is None else _difference(spectrum, gauss_newton, k)
    return SpectrumSummary(largest, bulk, round(spectrum.size * (1 - bulk)), negative, difference)


def _difference(spectrum: Spectrum, gauss_newton: Spectrum, k: int) -> float:
    for side in (spectrum, gauss_newton):
        available = len(side.eigenvalues) if side.complete else len(side.eigenvalues) // 2
        if not 1 <= k <= available:
            raise ValueError(f"k must be between 1 and the {available} largest eigenvalues of {side!r}, got {k}")
    if spectrum.size != gauss_newton.size:
        raise ValueError(f"gauss_newton must be of the same problem, got {gauss_newton!r} against {spectrum!r}")
    ours, theirs = spectrum.eigenvalues[:k], gauss_newton.eigenvalues[:k]
    return float(((ours - theirs).abs() / ours.abs()).max())


def same_basin(problem: Problem, first: Tree, second: Tree, points: int = 21) -> Segment:
    """Evaluate the loss on the segment between two points; the same basin has a ``barrier`` near 0.

    Parameters
    ----------
    problem : Problem
        Models are evaluated in evaluation mode, as by ``hessian_spectrum``.
    first, second : tree
        Shaped as ``problem.x0``.
    points : int, default 21
        At least 3, ends included, evenly spread.
    """
    if isinstance(points, bool) or not isinstance(points, int) or points < 3:
        raise ValueError(f"points must be a whole number of at least 3 (two ends and one between), got {points!r}")
    with _evaluation(problem, first) as (realisation, start):
        end = _point(problem, second, "second")
        positions = torch.linspace(0, 1, points, dtype=torch.float64)
        values = [realisation.value(tree.map(lambda a, b, t=t: torch.lerp(a, b, t), start, end)) for t in positions.tolist()]
    return Segment(positions, torch.stack(values).cpu())


def _spectrum(matrix: str, point: Tree, dense: Callable[[], Tensor], product: Callable[[Tree], Tree], k: int | None,
              density: bool, key: Key) -> Spectrum:
    size = tree.size(point)
    if k is not None and (isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= size):
        raise ValueError(f"k must be a whole number between 1 and the {size} variables, got {k!r}")
    if (k is None and size <= DENSE_LIMIT) or (k is not None and 2 * k >= size):
        values = torch.linalg.eigvalsh(_symmetric(dense())).flip(0)
        exact = SpectralDensity(values.flip(0), torch.full_like(values, 1 / size), size, 0) if density else None
        return Spectrum(values, size, True, True, exact, matrix)
    operator = LinearOperator.from_function(product, point, adjoint=product)
    # Residuals of a few roundings cannot be had; those of eigenvectors this good leave eigenvalues good to rounding.
    tol = torch.finfo(operator.dtype).eps ** (2 / 3)
    ends = [top_eigenvalues(operator, k or ENDS, which=which, tol=tol, generator=key.fold(which).generator())
            for which in ("largest", "smallest")]
    values = torch.cat([ends[0].values, ends[1].values.flip(0)])
    estimate = spectral_density(operator, min(DENSITY_STEPS, size), DENSITY_SAMPLES, key.fold("density").generator()) \
        if density else None
    return Spectrum(values, size, False, all(end.converged for end in ends), estimate, matrix)


def _symmetric(A: Tensor) -> Tensor:
    if not bool(torch.isfinite(A).all()):
        raise ValueError("the matrix has NaN or infinite entries at x; give a point where the loss is finite and smooth")
    return (A + A.T) / 2


def _realisation(problem: Training | ModelProblem, point: Tree) -> Problem:
    """The loss as a plain function of the parameters, on the bill of ``problem``.

    A realisation of the caller's is not asked itself: its first evaluation moves buffers, and belongs to the caller.
    """
    model, loss_fn = problem.model, problem.loss_fn
    if any(hasattr(p, "device_mesh") for p in model.parameters()):
        raise MissingOracle("spectra need whole weights, and this model is sharded; gather them into a bare copy of the model")
    inputs, targets = problem.data if isinstance(problem, Training) else (problem.inputs, problem.targets)
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)

    def outputs(x: Tree) -> Any:
        return functional_call(model, dict(x), arguments)

    def loss(found: Any) -> Tensor:
        return loss_fn(found, targets)

    whole = Smooth(lambda x: loss(outputs(x)), point, name=problem.name, given={"outputs": outputs, "loss": loss})
    return whole.counted(problem.counts)


@contextmanager
def _evaluation(problem: Problem, x: Tree | None) -> Iterator[tuple[Problem, Tree]]:
    """Yield a problem to ask and the point; a model in evaluation mode until the end."""
    if not isinstance(problem, Problem):
        raise TypeError(f"problem must be a Problem, got {type(problem).__name__}; Objective(model, loss)(inputs, targets) and "
                        "Smooth(fun, x0) make one")
    point = _point(problem, problem.x0 if x is None else x, "x")
    if not isinstance(problem, Training | ModelProblem):
        yield problem, point
        return
    realisation = _realisation(problem, point)
    modes = [(module, module.training) for module in problem.model.modules()]
    problem.model.eval()
    try:
        yield realisation, point
    finally:
        for module, training in modes:
            module.training = training


def _point(problem: Problem, x: Tree, argument: str) -> Tree:
    """The variables of ``x``, detached, or what is wrong with them."""
    if isinstance(problem, Training | ModelProblem):
        missing = sorted(set(problem.x0) - set(x)) if isinstance(x, dict) else sorted(problem.x0)
        if missing:
            raise ValueError(f"{argument} must be a dict of the model's parameters by name, {missing[:3]} are missing")
        x = {name: x[name] for name in problem.x0}
    expected, found = ([tuple(leaf.shape) for leaf in tree.leaves(t)] for t in (problem.x0, x))
    if expected != found:
        raise ValueError(f"{argument} must have the shapes of problem.x0, {expected[:4]}, got {found[:4]}")
    dtypes = {leaf.dtype for leaf in tree.leaves(x)}
    if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.float64}:
        raise ValueError(f"{argument} must be float32 or float64 throughout, got {sorted(map(str, dtypes))}; "
                         "convert the model by .double()")
    return tree.map(lambda leaf: leaf.detach(), x)
