"""The one type of problem: variables, oracles, facts, and random data.

A *problem* is a point to start from, a set of named oracles that say something about the objective, facts that are known of it
(``L``, ``mu``, ``best_value`` …), and possibly random data. Every oracle call is counted under an open name. What a constructor
does not give is derived: by autograd from ``value``; or, where ``gradient`` is given and ``value`` may be no torch function,
curvature by differences of gradients, which are what is then counted.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from fallline.core import autodiff, differences, tree
from fallline.core.bound import Bound
from fallline.core.counts import Counts
from fallline.core.errors import MissingOracle
from fallline.core.keys import Key, as_key
from fallline.core.operators.linear import LinearOperator
from fallline.core.samples import Parts, check_size
from fallline.core.tree import Tree

REMEDIES = {
    "gradient": "give `value` as a differentiable function (Smooth), or pick a method that needs values only",
    "hvp": "give `value` as a twice differentiable function (Smooth, Training)",
    "hessian": "give `value` as a twice differentiable function (Smooth)",
    "prox": "build the problem with Composite(smooth, term)",
    "project": "build the problem with Constrained(smooth, set)",
    "linear_minimize": "build the problem with Constrained(smooth, set)",
    "equality": "build the problem with Constrained(smooth, equality=...)",
    "inequality": "build the problem with Constrained(smooth, inequality=...)",
    "values": "build the problem with BlackBox(fun, x0)",
    "matvec": "build the problem with LinearSystem(A, b)",
    "rmatvec": "build the problem with LinearSystem(A, b, adjoint=...), or from a matrix",
    "residual": "build the problem with LinearSystem(A, b)",
    "matrix": "build the problem with LinearSystem(A, b) from a dense or sparse tensor A",
    "operator": "build the problem with Saddle(fun, x0, y0)",
    "map": "build the problem with FixedPoint(T, x0)",
    "upper": "build the problem with Bilevel(upper, lower, x0, y0)",
    "lower": "build the problem with Bilevel(upper, lower, x0, y0)",
    "linearization": "build the problem with LeastSquares(residuals, x0), or CompositeLoss(outer, inner, data, x0)",
    "linear_model": "build the problem with LinearModel(A, y, loss)",
    "quadratic": "build the problem with Quadratic(H, b)",
    "denominator": "build the problem with Fractional(numerator, denominator)",
    "proximal_point": "build the problem with CompositeLoss(..., proximal_point=...), and take samples of one data point",
    "per_sample_gradients": "build the problem with FiniteSum(fun, data, x0) or Training(model, loss, data)",
}
OF_SAMPLES = frozenset({"linearization", "proximal_point"})
"""Oracles beside gradients that look at a realisation's samples."""
DERIVED = frozenset({"gradient", "value_and_gradient", "hvp", "jvp", "hessian"})


class Problem:
    """Variables, oracles, facts and data of one objective.

    Usually made by a constructor: ``Smooth``, ``Composite``, ``Constrained``, ``FiniteSum``, ``LinearSystem``, ``Bilevel``,
    ``Saddle``, ``BlackBox``, ``FixedPoint``, ``Training``.

    Parameters
    ----------
    x0 : tensor or nested dict, list or tuple of tensors
        The starting point; its structure, dtypes and devices are those of every point.
    oracles : mapping of str to callable
        What can be asked; the names are the methods of this class.
    kind : str
        What sort of problem this is ("smooth", "bilevel", …); methods state the kinds they solve.
    name : str
        Shown in results and errors.
    facts : mapping
        What is known: ``L``, ``mu``, ``best_value``, ``hessian_lipschitz`` …
    differentiable : bool, default True
        Whether autograd may derive gradients and curvature from ``value``.
    sampler : callable ``(problem, key, size, indices, at) -> Problem``, optional
        Makes realisations; without one the problem is deterministic and ``draw`` returns it unchanged.
    children : mapping of str to Problem
        Sub-problems by name, reached as attributes (``problem.lower``).
    parts : sequence of Problem, or int
        Weighted sub-problems of a sum: samples, clients, tasks. Asked as ``problem.parts[i]``, each with its ``weight``; their weighted
        values sum to the value. A number n stands for n data points of weight 1/n, which ``draw`` takes by ``indices``.
    weight : float, default 1
        This problem's weight as a part.
    samples : int
        How many data points one gradient looks at (counted as ``samples``).
    observer : callable ``(problem, x) -> dict`` of floats, optional
        What ``observe`` reports; by default the value, and its distance to ``facts["best_value"]``.
    metric : str, optional
        The observed figure by which answers are judged, smaller being better.
    given : mapping of str to object
        What the constructor was given that methods may want as it is (``problem.term``, ``problem.b``).
    budget : Budget, optional
        What ``solve`` and ``compare`` spend when not told otherwise.
    """

    def __init__(
        self,
        x0: Tree,
        oracles: Mapping[str, Callable[..., Any]],
        *,
        kind: str,
        name: str = "",
        facts: Mapping[str, Any] | None = None,
        differentiable: bool = True,
        sampler: Callable[..., Problem] | None = None,
        children: Mapping[str, Problem] | None = None,
        parts: Sequence[Problem] | int = (),
        weight: float = 1.0,
        samples: int = 0,
        observer: Callable[[Problem, Tree], dict[str, float]] | None = None,
        metric: str | None = None,
        given: Mapping[str, Any] | None = None,
        budget: Any = None,
    ) -> None:
        tree.check_variables(x0, "x0")
        if tree.size(x0) == 0:
            raise ValueError("x0 must hold at least one number, got an empty point")
        self.x0 = x0
        self.kind = kind
        self.name = name or kind
        self.facts = dict(facts or {})
        self.counts = Counts()
        self.weight = weight
        self.metric = metric
        self.budget = budget
        self.samples = samples
        self._parts = parts
        self._oracles = dict(oracles)
        self._derives = differentiable and "value" in self._oracles
        self._sampler = sampler
        self._children = dict(children or {})
        self._observer = observer
        self._given = dict(given or {})
        self._billed(self.counts)

    # ---------------------------------------------------------------- what can be asked

    def has(self, oracle: str) -> bool:
        """Return whether the problem can answer ``oracle``, or was given it."""
        return any(oracle in held for held in (self._oracles, self._children, self._given)) or (self._derives and oracle in DERIVED)

    def require(self, *oracles: str, by: str = "this method") -> None:
        """Raise ``MissingOracle`` unless every named oracle is there."""
        for oracle in oracles:
            if not self.has(oracle):
                remedy = REMEDIES.get(oracle, f"give the problem an oracle named {oracle!r}")
                raise MissingOracle(f"{by} needs the oracle {oracle!r}, which the {self.kind} problem {self.name!r} "
                                    f"does not have; {remedy}")

    def __getattr__(self, name: str) -> Any:
        for holder in ("_children", "_given"):
            if name in self.__dict__.get(holder, {}):
                return self.__dict__[holder][name]
        if name in REMEDIES or name in self.__dict__.get("_oracles", {}):
            self.require(name)
            return lambda *arguments, **options: self._ask(name, name, *arguments, **options)
        raise AttributeError(f"{type(self).__name__} has no attribute or oracle {name!r}")

    def _ask(self, oracle: str, count: str, *arguments: Any, **options: Any) -> Any:
        self.require(oracle)
        self.counts.add(count)
        if self.samples and oracle in OF_SAMPLES:
            self.counts.add("samples", self.samples)
        return self._oracles[oracle](*arguments, **options)

    # ---------------------------------------------------------------- oracles

    def value(self, x: Tree) -> Tensor:
        """Return ``f(x)``, a 0-d tensor."""
        self.require("value")
        self.counts.add("values")
        with torch.no_grad():
            return autodiff.checked_scalar(self._oracles["value"](x), f"the objective of {self.name!r}")

    def gradient(self, x: Tree, wrt: int | str | None = None) -> Tree:
        """Return ``∇f(x)``; with ``wrt`` only its part at that child of ``x`` (a partial gradient)."""
        return self.value_and_gradient(x, wrt)[1] if "gradient" not in self._oracles else self._given_gradient(x, wrt)

    def value_and_gradient(self, x: Tree, wrt: int | str | None = None) -> tuple[Tensor, Tree]:
        """Return ``f(x)`` and ``∇f(x)`` from one evaluation (counted as one gradient)."""
        if "gradient" in self._oracles:
            return self.value(x), self._given_gradient(x, wrt)
        self.require("gradient")
        self._count_gradient()
        if "value_and_gradient" in self._oracles:
            value, gradient = self._oracles["value_and_gradient"](x)
            gradient = tree.aligned(gradient, x, f"the gradient of {self.name!r}")
            return value, gradient if wrt is None else gradient[wrt]
        return autodiff.value_and_gradient(self._oracles["value"], x, wrt, f"the objective of {self.name!r}")

    def _given_gradient(self, x: Tree, wrt: int | str | None) -> Tree:
        self._count_gradient()
        gradient = tree.aligned(self._oracles["gradient"](x), x, f"the gradient of {self.name!r}")
        return gradient if wrt is None else gradient[wrt]

    def _count_gradient(self) -> None:
        self.counts.add("gradients")
        if self.samples:
            self.counts.add("samples", self.samples)

    def hvp(self, x: Tree, v: Tree) -> Tree:
        """Return the Hessian-vector product ``∇²f(x) v``."""
        self.require("hvp")
        given = self._oracles.get("hvp")
        if "linearized_gradient" in self._oracles:
            given = lambda x, v: self._oracles["linearized_gradient"](x)(v)
        elif given is None and "gradient" in self._oracles:
            return differences.hvp(self.gradient, x, v)
        self.counts.add("hvps")
        name = f"the objective of {self.name!r}"
        return tree.aligned(given(x, v), x, f"the hvp of {self.name!r}") if given else \
            autodiff.hvp(self._oracles["value"], x, v, name)

    def hessian_operator(self, x: Tree) -> LinearOperator:
        """Return ``∇²f(x)`` as an operator on the flattened variables.

        Where autograd gives it, a gradient is evaluated once and its graph kept, so that products cost a backward pass each; where
        the oracle ``linearized_gradient`` is given, it is asked once; where ``hvp`` or ``gradient`` is given, products ask it.
        """
        self.require("hvp")
        dtype = tree.precision(x)
        if "linearized_gradient" in self._oracles:
            derivative = self._oracles["linearized_gradient"](x)
        elif {"hvp", "gradient"} & self._oracles.keys():
            return LinearOperator.from_function(lambda v: self.hvp(x, v), x, adjoint=lambda v: self.hvp(x, v), dtype=dtype)
        else:
            self._count_gradient()
            derivative = autodiff.linearized_gradient(self._oracles["value"], x, f"the objective of {self.name!r}")

        def product(v: Tree) -> Tree:
            self.counts.add("hvps")
            return derivative(v)

        return LinearOperator.from_function(product, x, adjoint=product, dtype=dtype)

    def jvp(self, x: Tree, v: Tree) -> tuple[Tensor, Tensor]:
        """Return ``f(x)`` and the directional derivative ``⟨∇f(x), v⟩``, by forward mode or from the gradient given."""
        self.require("jvp")
        given = self._oracles.get("jvp")
        if given is None and "gradient" in self._oracles:
            return self.value(x), tree.dot(self.gradient(x), v)
        self.counts.add("jvps")
        return given(x, v) if given else autodiff.jvp(self._oracles["value"], x, v, f"the objective of {self.name!r}")

    def hessian(self, x: Tree) -> Tensor:
        """Return the dense Hessian of the flattened variables, shape ``(n, n)``."""
        self.require("hessian")
        given = self._oracles.get("hessian")
        if given is None and "gradient" in self._oracles:
            return differences.hessian(lambda v: self.hvp(x, v), x)
        self.counts.add("hessians")
        if given is None:
            return autodiff.hessian(self._oracles["value"], x, f"the objective of {self.name!r}")
        return tree.aligned(given(x), torch.empty(tree.size(x), tree.size(x), device="meta"), f"the Hessian of {self.name!r}")

    def values(self, points: Tensor) -> Tensor:
        """Return ``f`` at each row of ``points`` (n, d), shape ``(n,)``; counted as n values."""
        self.require("values")
        self.counts.add("values", len(points))
        return self._oracles["values"](points)

    def per_sample_gradients(self, x: Tree) -> Tree:
        """Return the gradient of every sample's loss: the structure of ``x`` with a leading sample axis."""
        return self._ask("per_sample_gradients", "per_sample_gradients", x)

    def prox(self, x: Tree, step: float) -> Tree:
        """Return ``argmin_u term(u) + ‖u − x‖² / (2·step)``."""
        return self._ask("prox", "prox", x, step)

    def project(self, x: Tree) -> Tree:
        """Return the nearest point of the feasible set."""
        return self._ask("project", "projections", x)

    def linear_minimize(self, g: Tree) -> Tree:
        """Return ``argmin_s ⟨g, s⟩`` over the feasible set."""
        return self._ask("linear_minimize", "linear_minimizations", g)

    def operator(self, z: Tree) -> Tree:
        """Return the game's operator ``(∂_x f, −∂_y f)`` at ``z``."""
        return self._ask("operator", "gradients", z)

    def map(self, x: Tree) -> Tree:
        """Return ``T(x)`` of a fixed-point problem."""
        return self._ask("map", "maps", x)

    def matvec(self, v: Tensor) -> Tensor:
        """Return ``A v``."""
        return self._ask("matvec", "matvecs", v)

    def rmatvec(self, u: Tensor) -> Tensor:
        """Return ``Aᵀ u``."""
        return self._ask("rmatvec", "matvecs", u)

    def residual(self, x: Tensor) -> Tensor:
        """Return ``b − A x``."""
        return self._ask("residual", "matvecs", x)

    # ---------------------------------------------------------------- random data

    def draw(self, key: Key, size: int | None = None, indices: Tensor | None = None, at: Tree | None = None) -> Problem:
        """Return this problem frozen at a random sample.

        The oracles of the realisation reuse the sample however often they are asked, and count on this problem's bill.

        Parameters
        ----------
        key : Key
            Which sample: the same key gives the same one.
        size : int, optional
            How many data points; by default the problem's own batch size.
        indices : 1-D tensor or list of int, optional
            Which data points, instead of random ones.
        at : tree, optional
            The point that the sample's law depends on, where it does.
        """
        if self._sampler is None:
            return self
        check_size(size)
        return self._sampler(self, as_key(key), size, indices, at)._billed(self.counts)

    @property
    def parts(self) -> Sequence[Problem]:
        """The weighted sub-problems of a sum."""
        return Parts(self, self._parts if isinstance(self._parts, int) else len(self._parts))

    def _part(self, index: int) -> Problem:
        if not isinstance(self._parts, int):
            return self._parts[index].counted(self.counts)
        part = self.draw(Key(), indices=torch.tensor([index]))
        part.weight = 1 / self._parts
        return part

    @property
    def buffers(self) -> dict[str, Tensor]:
        """What evaluations move beside the variables (batch-norm statistics, caches): a run keeps its own."""
        return {}

    @property
    def persistent_buffers(self) -> dict[str, Tensor]:
        """Those of the ``buffers`` that a run adds to its solution."""
        return {}

    def load_buffers(self, values: Mapping[str, Tensor]) -> None:
        """Take over the ``buffers`` of a checkpoint."""
        if values:
            raise ValueError(f"the {self.kind} problem {self.name!r} has no buffers to load, got {sorted(values)}")

    def counted(self, counts: Counts) -> Self:
        """Return a view of this problem that counts on ``counts``."""
        return copy.copy(self)._billed(counts)

    def _billed(self, counts: Counts) -> Self:
        self.counts = counts
        self._children = {name: child.counted(counts) for name, child in self._children.items()}
        return self

    def observe(self, x: Tree) -> dict[str, float]:
        """Evaluate for the record only: nothing is counted, no key is used up."""
        free = self.counted(Counts())
        if self._observer is not None:
            return {name: float(number) for name, number in self._observer(free, x).items()}
        value = float(free.value(x))
        best = self.facts.get("best_value")
        return {"value": value} if best is None else {"value": value, "gap": value - float(best)}

    # ---------------------------------------------------------------- python

    def bind(self, variables: Tree) -> Bound:
        """Return the closure that evaluates this problem at ``variables`` and leaves gradients in their ``.grad``."""
        return Bound(self, variables)

    def __repr__(self) -> str:
        offers = sorted({*self._oracles, *(DERIVED if self._derives else ()), *self._children})
        return f"<{self.kind} problem {self.name!r}: {tree.size(self.x0):,} variables; offers {', '.join(offers)}>"
