"""A model and its loss linearised at a point, and the Gauss-Newton matrix.

    f(θ + v) ≈ f + J v,    r = ∇ℓ(f),    Q = ∇²ℓ(f);    ∇L = Jᵀ r,    G = Jᵀ Q J

for outputs f of a batch and a loss L(θ) = ℓ(f(θ)). G is positive semi-definite for every ℓ that is convex in the outputs; for losses
that are negative log-likelihoods of an exponential family in its natural parameters (squared error, cross-entropy) it is the Fisher
matrix of the batch.

J v is the derivative of u ↦ Jᵀ u, so that all products are reverse passes through graphs that are kept: no product evaluates the model
again, random masks stay as they are, and nothing is asked of an operation but its backward pass.

Schraudolph: Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent, Neural Computation 14, 2002.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.errors import MissingOracle
from fallline.core.modules import sharded
from fallline.core.operators.linear import LinearOperator


class GaussNewton:
    """The outputs of a realisation's model, linearised: products with J, Jᵀ, Q and G = Jᵀ Q J.

    Vectors of parameters are flat, in the order of ``x`` and in its precision, at least float32; vectors of outputs are shaped as the
    outputs. Every product also takes several vectors at once, along a first dimension, with ``batched=True``. The graphs are of the
    weights as they are: a product after these have changed in place raises.

    Parameters
    ----------
    realisation
        With ``outputs(x)`` and ``loss(outputs)``: ``Objective(model, loss)(inputs, targets)``.
    x : dict of Tensor, optional
        By what is differentiated, and where: parameters by name, some of them if the rest is to be constant. By default all, in place.

    Attributes
    ----------
    outputs : Tensor
        f, detached.
    loss : Tensor
        ℓ(f), 0-d, detached.
    residual : Tensor
        r, shaped as the outputs.
    size : int
        d, the number of parameters.

    Raises
    ------
    MissingOracle
        The model is sharded, or there are no outputs.
    TypeError
        The outputs are not one tensor.
    """

    def __init__(self, realisation: Any, x: Mapping[str, Tensor] | None = None) -> None:
        if not hasattr(realisation, "outputs"):
            raise MissingOracle("the Gauss-Newton matrix needs a model's outputs: pass a realisation of Objective(model, loss)")
        if sharded(getattr(realisation, "model", None)):
            raise MissingOracle("the Gauss-Newton matrix needs whole weights, and this model is sharded; gather them into a bare copy")
        own: Mapping[str, Tensor] = getattr(realisation, "variables", {})
        point = own if x is None else x
        in_place = all(own.get(name) is p for name, p in point.items())
        self.point: dict[str, Tensor] = dict(point) if in_place else {n: p.detach().requires_grad_() for n, p in point.items()}
        self.size, self.dtype = tree.size(self.point), tree.precision(self.point)
        self._counts = realisation.counts
        self._counts.add("values")
        with torch.enable_grad():
            found = realisation.outputs(None if in_place else self.point)
            if not isinstance(found, Tensor):
                raise TypeError(f"the model must return one tensor, got {type(found).__name__}; wrap it in a module that does")
            if not found.requires_grad:
                raise MissingOracle("the model's outputs do not depend on the parameters through torch operations")
            self._outputs, self.outputs = found, found.detach()
            self._at = self.outputs.clone().requires_grad_()
            loss = realisation.loss(self._at).reshape(())
            (self._slope,) = torch.autograd.grad(loss, self._at, create_graph=True)
        self.loss, self.residual = loss.detach(), self._slope.detach()

    @functools.cached_property
    def _pulled(self) -> tuple[list[Tensor], Tensor]:
        """Jᵀ u with the graph of it, and the u, whose value is nothing to a linear map."""
        cotangent = torch.zeros_like(self.outputs, requires_grad=True)
        return _grad([self._outputs], list(self.point.values()), [cotangent], create_graph=True), cotangent

    def jvp(self, v: Tensor, batched: bool = False) -> Tensor:
        """Return J v, shaped as the outputs."""
        self._counts.add("jvps", len(v) if batched else 1)
        parts = v.split([p.numel() for p in self.point.values()], -1)
        lead = v.shape[:1] if batched else ()
        vectors = [part.reshape(*lead, *p.shape).to(p.dtype) for part, p in zip(parts, self.point.values(), strict=True)]
        pulled, cotangent = self._pulled
        return _grad(pulled, [cotangent], vectors, batched)[0]

    def vjp(self, u: Tensor, batched: bool = False) -> Tensor:
        """Return Jᵀ u, flat."""
        self._counts.add("vjps", len(u) if batched else 1)
        found = _grad([self._outputs], list(self.point.values()), [u.to(self._outputs.dtype)], batched)
        return torch.cat([g.reshape(*u.shape[:1], -1) if batched else g.reshape(-1) for g in found], -1).to(self.dtype)

    def output_hessian(self, u: Tensor, batched: bool = False) -> Tensor:
        """Return Q u, shaped as the outputs."""
        return _grad([self._slope], [self._at], [u.to(self._slope.dtype)], batched)[0]

    def product(self, v: Tensor, batched: bool = False) -> Tensor:
        """Return G v = Jᵀ Q J v, flat."""
        return self.vjp(self.output_hessian(self.jvp(v, batched), batched), batched)

    def gradient(self) -> Tensor:
        """Return ∇L = Jᵀ r, flat."""
        return self.vjp(self.residual)

    @property
    def operator(self) -> LinearOperator:
        """G as an operator."""
        device = self.outputs.device
        return LinearOperator((self.size, self.size), self.product, self.product, dtype=self.dtype, device=device, counts=self._counts)

    def to_dense(self, chunk: int = 64) -> Tensor:
        """Return G, shape (d, d), from its products with unit vectors, ``chunk`` of them at a time."""
        self._counts.add("matvecs", self.size)
        identity = torch.eye(self.size, dtype=self.dtype, device=self.outputs.device)
        return torch.cat([self.product(rows, batched=True) for rows in identity.split(chunk)]).mT

    def __repr__(self) -> str:
        return f"GaussNewton({self.outputs.numel():,} outputs of {self.size:,} parameters, loss {float(self.loss):.4g})"


def _grad(outputs: Sequence[Tensor], inputs: Sequence[Tensor], vectors: Sequence[Tensor], batched: bool = False,
          create_graph: bool = False) -> list[Tensor]:
    """Σ (∂output / ∂input)ᵀ vector for every input: zero where no output depends on it; the graph is kept."""
    followed = [(o, v) for o, v in zip(outputs, vectors, strict=True) if o.requires_grad]
    if not followed:
        lead = vectors[0].shape[:1] if batched else ()
        return [x.new_zeros(*lead, *x.shape) for x in inputs]
    found = torch.autograd.grad([o for o, _ in followed], inputs, [v for _, v in followed], retain_graph=True, allow_unused=True,
                                create_graph=create_graph, is_grads_batched=batched, materialize_grads=True)
    return list(found)
