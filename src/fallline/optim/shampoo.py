"""Shampoo: a preconditioner for every mode of every tensor.

    H_i ← H_i + M_i M_iᵀ (from ε I);   U = G ×_i H_i^{−1/2k};   B ← μ B + U;   W ← W − η B

Gupta, Koren, Singer: Shampoo: Preconditioned Stochastic Tensor Optimization, ICML 2018, arXiv 1802.09568.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Unpack, cast

from torch import Tensor

from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.optim.directions.kronecker.factors import Clamped, Diagonal, Full
from fallline.optim.directions.kronecker.grafting import Grafted
from fallline.optim.directions.kronecker.preconditioner import Kronecker
from fallline.optim.engine.hyperparameters import check
from fallline.optim.engine.optimizer import EngineOptions
from fallline.optim.engine.parts import Direction
from fallline.optim.momentum_by_group import MomentumByGroup


@register("shampoo")
class Shampoo(MomentumByGroup):
    """H_i ← H_i + M_i M_iᵀ;  U = G ×_1 H_1^{−1/2k} … ×_k H_k^{−1/2k};  B ← μ B + U;  W ← W − η B.

    Matrices: L^{−1/4} G R^{−1/4}. Vectors: full-matrix AdaGrad. Tensors of order k keep their order. Roots by eigendecomposition of all
    equal shapes at once, eigenvalues clamped at ε.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 0.1
    eps : float, default 1e-4
        H_i starts at ε I.
    momentum : float, default 0
        μ. Groups whose μ is 0 keep no buffer B.
    root_every : int, default 1
        Steps between roots: Σ n_i³ flops each.
    max_dim : int, default 1024
        A mode longer than this keeps only the diagonal of H_i (for vectors, diagonal AdaGrad).
    weight_decay : float, default 0
        Added to the gradient.
    exponent : {"quarter", "half"}, default "quarter"
        −1/2k for every mode, a quarter for matrices, as the paper has it; or −1/2 with a factor √tr L in front, U = √tr L · L^{−1/2} G
        R^{−1/2}: the inverse root of Shampoo², which is nearly the Kronecker product nearest to the full matrix (Morwani et al.,
        arXiv 2406.17748). For tensors of order k the factor is (tr H_1)^{(k−1)/2}.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-3, 1.0)}

    def __init__(self, params: Any, lr: float = 0.1, eps: float = 1e-4, momentum: float = 0.0, root_every: int = 1,
                 max_dim: int = 1024, weight_decay: float = 0.0, exponent: Literal["quarter", "half"] = "quarter",
                 **options: Unpack[EngineOptions]) -> None:
        check("root_every", root_every)
        if not 0 < eps < math.inf:
            raise ValueError(f"eps must be a finite number > 0 (the preconditioners start at eps · I), got {eps}")
        if isinstance(max_dim, bool) or not isinstance(max_dim, int) or max_dim < 1:
            raise ValueError(f"max_dim must be a whole number of at least 1, got {max_dim!r}; 1024 is typical")
        if exponent not in ("quarter", "half"):
            raise ValueError(f"exponent must be 'quarter' (−1/2k for every mode) or 'half' (−1/2, Shampoo²), got {exponent!r}")
        roots = Kronecker(Full(Clamped(eps), eps), Diagonal(eps), max_dim, root_every, half=exponent == "half")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, Grafted(roots), defaults, **options)

    def direction_for(self, p: Tensor, group: Mapping[str, Any]) -> Direction:
        return self.with_momentum(cast(Grafted, self.direction), group)
