"""How near a point is to a saddle: the gradient's norm, and how many directions curve downwards.

    ‖∇f(x)‖,    index = #{i : λ_i < 0},    λ_min

of the Hessian's eigenvalues. A critical point of index 0 is a minimum, of index n a maximum, and a saddle in between; in high
dimensions critical points of a high value are of a high index.

Dauphin, Pascanu, Gulcehre, Cho, Ganguli, Bengio: Identifying and attacking the saddle point problem in high-dimensional non-convex
optimization, NeurIPS 2014, arXiv 1406.2572.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fallline.core import tree
from fallline.core.keys import Key
from fallline.core.problem import Problem
from fallline.core.tree import Tree
from fallline.landscape.evaluation import evaluation
from fallline.landscape.hessian_spectrum import hessian_spectrum


@dataclass(frozen=True)
class SaddleReport:
    """What is at a point.

    Attributes
    ----------
    grad_norm : float
        ‖∇f(x)‖.
    negative_index : int
        How many eigenvalues of the Hessian are negative, beyond what rounding makes of zeros, √n ε max |λ_i|; rounded from an estimate
        of the density of eigenvalues where not all are known.
    lambda_min : float
        The least eigenvalue.
    size : int
        How many there are.
    exact : bool
        Whether all of them are known.
    """

    grad_norm: float
    negative_index: int
    lambda_min: float
    size: int
    exact: bool

    def __repr__(self) -> str:
        about = "" if self.exact else "about "
        return (f"SaddleReport(grad_norm={self.grad_norm:.3e}, negative_index={about}{self.negative_index} of {self.size:,}, "
                f"lambda_min={self.lambda_min:.4g})")


def saddle_report(problem: Problem, x: Tree | None = None, *, key: Key | int = 0) -> SaddleReport:
    """Report the gradient's norm, the number of negative eigenvalues and the least of them.

    Parameters
    ----------
    problem : Problem
        ``Training`` (all training data), ``Objective(model, loss)(inputs, targets)``, or anything with ``gradient``, ``hessian`` and
        ``hvp``. A model is evaluated in evaluation mode and put back as it was.
    x : tree, optional
        The point, in float32 or float64; by default ``problem.x0``, the model's own weights.
    key : Key or int, default 0
        Of the start vectors beyond 5,000 variables, where the eigenvalues are estimated: see ``hessian_spectrum``.
    """
    with evaluation(problem, x) as (realisation, point):
        realisation.require("gradient", "hvp", by="saddle_report")
        norm = float(tree.norm(realisation.gradient(point)))
    spectrum = hessian_spectrum(problem, x, density=True, key=key)
    assert spectrum.density is not None
    nodes, weights = spectrum.density.nodes, spectrum.density.weights
    rounding = math.sqrt(spectrum.size) * torch.finfo(nodes.dtype).eps * float(spectrum.eigenvalues.abs().max())
    index = round(spectrum.size * float(weights[nodes < -rounding].double().sum()))
    return SaddleReport(norm, index, float(spectrum.eigenvalues[-1]), spectrum.size, spectrum.complete)
