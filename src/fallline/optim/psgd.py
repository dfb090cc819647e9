"""PSGD: gradients preconditioned by a matrix P = Qᵀ Q that is fitted to the Hessian inside a Lie group.

    m ← μ m + (1 − μ) g;   x ← x − η P m;   P → |H|⁻¹ by pairs (v, H v),  v ~ N(0, I)

Li: Curvature-Informed SGD via General Purpose Lie-Group Preconditioners, arXiv 2402.04553.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Unpack

import torch
from torch import Tensor

from fallline.core.checks import check_count
from fallline.core.keys import Key
from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.optim.directions.lie_group import PAIR, Cross, Diagonal, LieGroup, LowRank, Triangular
from fallline.optim.engine.hyperparameters import check, check_positive
from fallline.optim.engine.layout import full
from fallline.optim.engine.optimizer import EngineOptions
from fallline.optim.engine.oracles import gradients_at, of_minimised
from fallline.optim.engine.state import working_dtype
from fallline.optim.whole_group import WholeGroup

KINDS = ("lra", "xmat", "diag", "dense")


@register("psgd")
class PSGD(WholeGroup):
    """x ← x − η Qᵀ Q m,  m ← μ m + (1 − μ) g,  Q of a group of matrices, fitted to minimise E[hᵀ P h + vᵀ P⁻¹ v],  h = H v.

    Over all matrices P that is |H|⁻¹; no damping. Needs Hessian-vector products: ``opt.step(objective(x, y))``, or with
    ``hvp="finite_diff"`` any closure that evaluates the same batch whenever it is called. A step costs a gradient and, with the
    probability ``update_prob`` (always at the first), a product or a second gradient; and per parameter O(1), O(rank), for
    ``"dense"`` O(n).

    Every group of parameters is a vector with a P of its own, which is whole on every rank; ``memory`` has the bytes of all of them.

    Parameters
    ----------
    params : iterable of Tensor or dict
    kind : {"lra", "xmat", "diag", "dense"}, default "lra"
        Q = (I + U Vᵀ) diag(d) with U, V of ``rank`` columns; diag(a) + antidiag(b); diag(d); an upper triangle.
    rank : int, default 10
        For ``"lra"``.
    lr : float, default 0.01
        η; 1 would be Newton's step.
    lr_precond : float, default 0.01
        Of the fit, below 1: every step changes Q by about this part of it.
    update_prob : float, default 1
        In (0, 1].
    hvp : {"exact", "finite_diff"}, default "exact"
        ``"finite_diff"``: (∇f(x + δ v) − ∇f(x)) / δ of the same batch, δ = √(machine epsilon), for networks that cannot be
        differentiated twice, and for sharded ones.
    momentum : float, default 0
        μ, of the gradients.
    grad_clip : float, optional
        The largest ‖P m‖ of a group; longer ones are shortened to it.
    weight_decay : float, default 0
        Of a term ½ w ‖x‖², part of the gradient and of H.
    seed : int, default 0
        Of the probes, of the choices and of U, V.
    **options
        ``nonfinite``, ``maximize``, ``storage`` of the engine; it runs eagerly. Storages keep Q in the precision of the arithmetic.

    Notes
    -----
    As in the authors' code of the time of the paper the balance of U and V is that of their norms, and they start from normal numbers
    over √(n (r + 10)).
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-3, 1.0), "lr_precond": LogUniform(1e-3, 0.3)}
    positive: ClassVar[Mapping[str, str]] = {"lr_precond": "P would stay a multiple of the identity; 0.01 is typical"}
    derivatives: ClassVar[int] = 2

    def __init__(self, params: Any, kind: Literal["lra", "xmat", "diag", "dense"] = "lra", rank: int = 10, lr: float = 0.01,
                 lr_precond: float = 0.01, update_prob: float = 1.0, hvp: Literal["exact", "finite_diff"] = "exact",
                 momentum: float = 0.0, grad_clip: float | None = None, weight_decay: float = 0.0, seed: int = 0,
                 **options: Unpack[EngineOptions]) -> None:
        check("seed", seed)
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")
        if hvp not in ("exact", "finite_diff"):
            raise ValueError(f"hvp must be 'exact' or 'finite_diff', got {hvp!r}")
        check_count("rank", rank, "without one take kind='diag'")
        if isinstance(update_prob, bool) or not isinstance(update_prob, int | float) or not 0 < update_prob <= 1:
            raise ValueError(f"update_prob must be a probability in (0, 1], got {update_prob!r}; 1 is typical, 0.1 for large networks")
        made: dict[str, LieGroup] = {"lra": LowRank(update_prob, seed, rank), "xmat": Cross(update_prob, seed),
                                     "diag": Diagonal(update_prob, seed), "dense": Triangular(update_prob, seed)}
        self.exact, self.seed = hvp == "exact", seed
        defaults = {"lr": lr, "lr_precond": lr_precond, "momentum": momentum, "grad_clip": grad_clip, "weight_decay": weight_decay}
        super().__init__(params, made[kind], defaults, **options)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "exact": self.exact, "seed": self.seed}

    @property
    def reevaluations(self) -> Mapping[str, str]:  # type: ignore[override]
        """The second gradient, where products are differences."""
        return {} if self.exact else {PAIR: "the gradient of this batch at another point"}

    def check_group(self, group: Mapping[str, Any]) -> None:
        if group["grad_clip"] is not None:
            check_positive("grad_clip", group["grad_clip"], "the largest norm of a step over lr, or None")

    def estimate(self, oracle: str, realisation: Any, t: int) -> Mapping[Tensor, Tensor]:
        """Of every parameter, v and H v one above the other; of those without a gradient zeros, which leave their part of Q alone."""
        params = [p for group in self.param_groups for p in group["params"]]
        probes = {p: self._probe(p, i, t) for i, p in enumerate(params)}
        resting = {p: torch.zeros_like(v) for p, v in probes.items() if p.grad is None}
        probes |= resting
        pairs = self._products(realisation, probes) if self.exact else self._differences(realisation, probes)
        return {p: torch.stack(pair) for p, pair in {**pairs, **{p: (v, v) for p, v in resting.items()}}.items()}

    def _probe(self, p: Tensor, index: int, t: int) -> Tensor:
        generator = Key(self.seed).fold(t, "probe", index).generator()
        numbers = torch.randn(p.shape, dtype=torch.float64, generator=generator)
        return numbers.to(p.device, p.dtype).to(working_dtype(p.dtype))

    def _products(self, realisation: Any, probes: Mapping[Tensor, Tensor]) -> dict[Tensor, tuple[Tensor, Tensor]]:
        variables = realisation.variables
        given = {name: probes[p].to(p.dtype) if p in probes else torch.zeros_like(p) for name, p in variables.items()}
        found = {variables[name]: h for name, h in realisation.hvp(None, given).items() if variables[name] in probes}
        return {p: (probes[p], h.to(probes[p])) for p, h in of_minimised(found, self.param_groups).items()}

    def _differences(self, realisation: Any, probes: Mapping[Tensor, Tensor]) -> dict[Tensor, tuple[Tensor, Tensor]]:
        here = {p: p.grad for p in probes if p.grad is not None}
        start = {p: full(p).clone() for p in here}
        step = {p: torch.finfo(p.dtype).eps ** 0.5 for p in here}
        points = {p: (x.to(probes[p]) + step[p] * probes[p]).to(p.dtype) for p, x in start.items()}
        there = gradients_at(points, realisation)
        changes = {p: full(there[p]).to(probes[p]) - full(g).to(probes[p]) for p, g in here.items()}
        # The probe as the parameter's precision has rounded it.
        return {p: ((points[p].to(probes[p]) - start[p].to(probes[p])) / step[p], h / step[p])
                for p, h in of_minimised(changes, self.param_groups).items()}
