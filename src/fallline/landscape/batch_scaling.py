"""The batch Hessian's largest eigenvalue, and what it says of learning rates at other batch sizes.

The Hessian of a batch is H_B = H + noise. For a noise level ν (an outlier λ₁ > √(ν/𝔟) of H, or none)

    λ₁(B) = λ₁ + ν / (𝔟 λ₁),  or 2 √(ν/𝔟);      𝔟 = B, or B / (1 − B/N) without replacement
    ν = P σ²                     σ² the variance of one entry of one sample's Hessian, were it the same for all entries
    ν = V = E‖(H_i − H) u₁‖²     u₁ the eigenvector of λ₁: what real data need
    largest SGD rate = 2 / λ₁(B): ∝ B up to about B* = V / λ₁², then 2/λ₁;      Adam's ∝ √B

Granziol, Zohren, Roberts: Learning Rates as a Function of Batch Size: A Random Matrix Theory Approach to Neural Network Training,
JMLR 2022, arXiv 2006.09092.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fallline.core.keys import Key, as_key
from fallline.core.operators import LinearOperator, top_eigenvalues
from fallline.core.operators.linear import random_signs
from fallline.core.problem import Problem
from fallline.core.tree import Tree
from fallline.landscape.evaluation import evaluation

Kind = Literal["sgd", "adam"]
TOLERANCE = 1e-4
PROBES = 5


def batch_eigenvalue(largest: float, noise: float, size: float) -> float:
    """λ₁(B) = λ₁ + ν / (𝔟 λ₁) where λ₁ > √(ν/𝔟), else 2 √(ν/𝔟); ``largest`` λ₁, ``noise`` ν, ``size`` 𝔟."""
    edge = math.sqrt(noise / size)
    return largest + edge**2 / largest if largest > edge else 2 * edge


@dataclass(frozen=True, repr=False)
class BatchHessianReport:
    """Largest eigenvalues of batch Hessians at one point, and what the two noise levels predict."""

    largest: float
    """λ₁ of all data."""
    noise: float
    """V = E‖(H_i − H) u₁‖²."""
    homogeneous_noise: float
    """P σ²."""
    sizes: tuple[int, ...]
    measured: tuple[tuple[float, ...], ...]
    """λ₁ of every batch drawn, a row a size."""
    samples: int | None
    """N where batches are drawn without replacement; None where they are drawn with it, which needs no correction."""
    parameters: int

    @property
    def means(self) -> tuple[float, ...]:
        """The mean measured λ₁(B) for each size."""
        return tuple(sum(row) / len(row) for row in self.measured)

    @property
    def critical_size(self) -> float:
        """B* = V / λ₁², from which on larger batches allow no larger SGD rate."""
        return self.noise / self.largest**2

    def predicted(self, size: float) -> float:
        """λ₁(B) by V."""
        return batch_eigenvalue(self.largest, self.noise, _effective(size, self.samples))

    def homogeneous(self, size: float) -> float:
        """λ₁(B) by P σ²; too low where a few directions hold the noise."""
        return batch_eigenvalue(self.largest, self.homogeneous_noise, _effective(size, self.samples))

    def sgd_rate(self, size: float) -> float:
        """2 / λ₁(B), about the largest rate at which SGD is stable."""
        return 2 / self.predicted(size)

    def adam_factor(self, size: float) -> float:
        """√𝔟 over that of the smallest size here: how Adam's rate grows from there."""
        return math.sqrt(_effective(size, self.samples) / _effective(self.sizes[0], self.samples))

    def plot(self) -> Any:
        """Return a plotly figure of measured and predicted λ₁(B) against the batch size, logarithmic."""
        import plotly.graph_objects as go

        low, high = math.log(self.sizes[0]), math.log(self.sizes[-1])
        grid = [math.exp(low + (high - low) * i / 99) for i in range(100)]
        figure = go.Figure()
        batches = [(size, value) for size, row in zip(self.sizes, self.measured, strict=True) for value in row]
        figure.add_scatter(x=[b for b, _ in batches], y=[v for _, v in batches], mode="markers", name="measured", opacity=0.5)
        figure.add_scatter(x=grid, y=[self.predicted(b) for b in grid], mode="lines", name="predicted, V")
        figure.add_scatter(x=grid, y=[self.homogeneous(b) for b in grid], mode="lines", name="predicted, Pσ²")
        figure.add_hline(y=self.largest, line_dash="dot", annotation_text="all data")
        return figure.update_layout(template="simple_white", xaxis_title="batch size", yaxis_title="largest eigenvalue",
                                    xaxis_type="log", yaxis_type="log", title=f"B* = {self.critical_size:.3g}")

    def __repr__(self) -> str:
        lines = [f"batch Hessian of {self.parameters:,} parameters: λ₁ {self.largest:.4g} on all data, V {self.noise:.4g}, "
                 f"Pσ² {self.homogeneous_noise:.4g}; SGD's rate saturates at B* ≈ {self.critical_size:.3g}"]
        for size, mean, row in zip(self.sizes, self.means, self.measured, strict=True):
            lines.append(f"  B = {size}: λ₁ {mean:.4g} ({min(row):.4g} to {max(row):.4g}), by V {self.predicted(size):.4g}, "
                         f"by Pσ² {self.homogeneous(size):.4g}; largest SGD rate {self.sgd_rate(size):.3g}, "
                         f"Adam's × {self.adam_factor(size):.3g}")
        return "\n".join(lines)


def batch_hessian_report(problem: Problem, x: Tree | None, sizes: Sequence[int], *, draws: int = 5, replacement: bool = True,
                         key: Key | int = 0) -> BatchHessianReport:
    """Measure λ₁ of batch Hessians by Lanczos, and the noise levels that predict it.

    Parameters
    ----------
    problem : Problem
        With random data and Hessian-vector products: ``FiniteSum``, ``Training``. A model is evaluated in evaluation mode.
    x : tree or None
        The point, in float32 or float64; None is ``problem.x0``.
    sizes : sequence of int
        Batch sizes; they are sorted.
    draws : int, default 5
        Batches of each size. V and σ² are means over all of them, each batch giving 𝔟‖(H_B − H) u‖² for u₁ and for a vector of random
        signs: unbiased whatever the size.
    replacement : bool, default True
        How batches are drawn. Without replacement their noise is smaller: 𝔟 = B / (1 − B/N), the paper's correction; sizes are then
        below N.
    key : Key or int, default 0

    Notes
    -----
    V counts noise along u₁ too, which spreads λ₁(B) and hardly raises its mean: where most noise is along u₁ the formula is too high.

    Raises
    ------
    MissingOracle
        If there are no Hessian-vector products.
    ValueError
        If the problem has no data to draw, a size is out of range, or the largest eigenvalue is not positive.
    """
    key, sizes = as_key(key), sorted(sizes)
    count = _checked_count(problem, sizes, draws, replacement)
    samples = None if replacement else count
    with evaluation(problem, x) as (whole, point):
        whole.require("hvp", by="batch_hessian_report")
        operator = whole.hessian_operator(point)
        top = top_eigenvalues(operator, tol=TOLERANCE, generator=key.fold("all").generator())
        largest, u = float(top.values[0]), top.vectors[:, 0]
        if not largest > 0:
            raise ValueError(f"the largest eigenvalue at x must be positive, got {largest:.4g}: no learning rate follows from it")
        signs = [random_signs(operator, key.fold("signs", j).generator()) for j in range(min(draws, PROBES))]
        exact = [(v, operator.matvec(v)) for v in (u, *signs)]
    measured, along, anywhere = [], [], []
    for size in sizes:
        row = []
        for j in range(draws):
            batch = _draw(problem, key.fold("batch", size, j), size, samples)
            with evaluation(batch, point) as (realisation, at):
                noisy = realisation.hessian_operator(at)
                row.append(float(top_eigenvalues(noisy, tol=TOLERANCE, start=u).values[0]))
                scale = _effective(size, samples)
                along.append(scale * _difference(noisy, *exact[0]))
                anywhere.append(scale * _difference(noisy, *exact[1 + j % len(signs)]) / len(u))
        measured.append(tuple(row))
    return BatchHessianReport(largest, sum(along) / len(along), sum(anywhere) / len(anywhere), tuple(sizes), tuple(measured), samples,
                              len(u))


def _checked_count(problem: Problem, sizes: Sequence[int], draws: int, replacement: bool) -> int:
    """N, the number of data points; 0 where it is not known and batches are drawn with replacement."""
    for name, numbers in (("sizes", sizes), ("draws", [draws])):
        if not numbers or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in numbers):
            raise ValueError(f"{name} must be whole numbers of at least 1, got {list(numbers)}")
    if not isinstance(problem, Problem):
        raise TypeError(f"problem must be a Problem, got {type(problem).__name__}; FiniteSum and Training have data to draw")
    if problem.draw(Key(), 1) is problem:
        raise ValueError(f"problem must have random data, and {problem.name!r} is the same at every draw; use FiniteSum or Training")
    count = len(problem.parts)
    if not replacement and sizes[-1] >= count:
        raise ValueError(f"sizes must be below the {count} data points without replacement, got {sizes[-1]}; use replacement=True")
    return count


def _draw(problem: Problem, key: Key, size: int, samples: int | None) -> Problem:
    if samples is None:
        return problem.draw(key, size)
    return problem.draw(key, indices=torch.randperm(samples, generator=key.generator())[:size])


def _difference(noisy: LinearOperator, v: Tensor, exact: Tensor) -> float:
    """‖(H_B − H) v‖², given H v."""
    return float((noisy.matvec(v) - exact).square().sum())


def _effective(size: float, samples: int | None) -> float:
    """𝔟 = B, or B / (1 − B/N) without replacement."""
    if samples is None:
        return size
    return size / (1 - size / samples) if size < samples else math.inf


def scale_lr(lr: float, from_size: int, to_size: int, kind: Kind = "sgd", *, report: BatchHessianReport | None = None,
             curvature: float | None = None, noise: float | None = None, samples: int | None = None) -> float:
    """Return the learning rate for another batch size.

    SGD: lr · λ₁(from) / λ₁(to), which is lr · to / from as long as noise dominates, and constant far beyond B*. Without a report, or
    λ₁ and V, it is taken to dominate. Adam: lr · √(to / from), for its preconditioner is about the root of the noise.

    Parameters
    ----------
    lr : float
        What works at ``from_size``.
    from_size, to_size : int
    kind : {"sgd", "adam"}, default "sgd"
        "adam" stands for all methods that divide by the root of squared gradients.
    report : BatchHessianReport, optional
        Of a point in training, for SGD.
    curvature, noise : float, optional
        Instead of a report: λ₁ on all data, and V.
    samples : int, optional
        N, where batches are drawn without replacement: 𝔟 = B / (1 − B/N) takes the place of B. A report knows it.

    Raises
    ------
    ValueError
        If a number is out of range, only one of ``curvature`` and ``noise`` is given, both are given beside a report, or Adam is given
        either, which the square root does not use.

    Examples
    --------
    >>> scale_lr(0.1, 64, 256)
    0.4
    >>> scale_lr(1e-3, 64, 256, kind="adam")
    0.002
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(map(repr, get_args(Kind)))}, got {kind!r}")
    for name, value in (("lr", lr), ("from_size", from_size), ("to_size", to_size)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a finite number > 0, got {value}")
    if (curvature is None) != (noise is None) or (report is not None and curvature is not None):
        raise ValueError("give either a report or both curvature (λ₁) and noise (V), or none of them; "
                         f"got report={'given' if report is not None else None}, curvature={curvature}, noise={noise}")
    if report is not None:
        curvature, noise, samples = report.largest, report.noise, report.samples
    if samples is not None and max(from_size, to_size) >= samples:
        raise ValueError(f"samples must be above both batch sizes without replacement, got {samples}; leave it out")
    first, second = _effective(from_size, samples), _effective(to_size, samples)
    if curvature is None or noise is None:
        return lr * (second / first if kind == "sgd" else math.sqrt(second / first))
    if kind == "adam":
        raise ValueError("a report, or curvature and noise, say where SGD's rate saturates, and kind is 'adam', whose square root has "
                         "no use for them; leave them out")
    for name, value in (("curvature", curvature), ("noise", noise)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a finite number > 0, got {value}")
    return lr * batch_eigenvalue(curvature, noise, first) / batch_eigenvalue(curvature, noise, second)
