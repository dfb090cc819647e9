"""4-bit Shampoo: a preconditioner of a seventh of the size, before the optimizer of your choice.

    A = V diag(λ) Vᵀ with V in 4-bit codes;   Ĝ = L̂ G R̂ with L̂ ≈ A_L^{−1/4};   G̃ = Ĝ ‖G‖ / ‖Ĝ‖;   the base takes G̃ for the gradient

Wang, Zhou, Li, Huang: 4-bit Shampoo for Memory-Efficient Network Training, NeurIPS 2024, arXiv 2405.18144.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from fallline.core.checks import check_count
from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.optim.adamw import AdamW
from fallline.optim.directions.kronecker.blocks import Blocked
from fallline.optim.directions.kronecker.eigencodes import EigenCodes
from fallline.optim.directions.kronecker.factors import Full, Ridged
from fallline.optim.directions.kronecker.grafting import Fed
from fallline.optim.directions.kronecker.preconditioner import Constant, Kronecker
from fallline.optim.engine.hyperparameters import check, check_positive
from fallline.optim.engine.over import Base, Over
from fallline.optim.engine.parts import Direction


@register("shampoo-4bit")
class Shampoo4bit(Over):
    """G̃ = Ĝ ‖G‖ / ‖Ĝ‖ with Ĝ = L̂ G R̂ is the gradient that the base rule sees; L̂, R̂ and what they come from are kept in 4 bits.

    Matrices, and tensors of higher order as matrices of ``p.shape[0]`` rows, are cut into blocks; vectors go to the base as they are.

    Parameters
    ----------
    params : iterable of Tensor or dict
    base : str or class, default AdamW
        An elementwise rule of the library.
    beta : float, default 0.95
        β of A ← β A + (1 − β) G Gᵀ (Gᵀ G on the right).
    eps : float, default 1e-6
        A starts at ε I; the root is that of A + max(λ) ε I.
    T1, T2 : int, default 100 and 500
        Steps between statistics, and between roots, which are I until the first.
    t1, t2 : int, default 1 and 4
        Björck steps that make the decoded eigenvectors orthonormal again, before each.
    bits : int, default 4
        3 to 8. With 32, the factors are kept whole, for comparison.
    block : int, default 64
        Numbers of one eigenvector that share a scale.
    min_size : int, default 4096
        Factors with fewer entries stay whole: of sides below 64.
    max_dim : int, default 1200
        The longest side of a matrix; longer ones are cut.
    **hyperparameters
        Of the base; and ``nonfinite``, ``maximize``, ``storage`` of the engine.

    Notes
    -----
    State for a side n: n²/2 bytes each for eigenvectors and root and 4 bytes for 64 of their numbers, and 8 n. The decomposition is
    whole (the authors approximate it by a randomised one). A base that adds weight decay to the gradient does so before it is
    preconditioned, where the authors add it afterwards. A storage in 8-bit blocks has no effect on matrices, whose state stays whole.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-5, 1e-1)}

    def __init__(self, params: Any, base: Base = AdamW, beta: float = 0.95, eps: float = 1e-6, T1: int = 100, T2: int = 500,
                 t1: int = 1, t2: int = 4, bits: int = 4, block: int = 64, min_size: int = 4096, max_dim: int = 1200,
                 **hyperparameters: Any) -> None:
        check("beta", beta)
        check_positive("eps", eps, "1e-6 is typical")
        counts = {"T1": T1, "T2": T2, "t1": t1, "t2": t2, "block": block, "min_size": min_size, "max_dim": max_dim}
        for name, value in counts.items():
            check_count(name, value, "see the optimizer's docstring")
        if isinstance(bits, bool) or not isinstance(bits, int) or not (3 <= bits <= 8 or bits == 32):
            raise ValueError(f"bits must be a whole number from 3 to 8, or 32 for no codes, got {bits!r}")
        whole = Full(Ridged(eps, "eigh"), eps)
        factor = whole if bits == 32 else EigenCodes(eps, bits, block, t1, t2, whole, min_size)
        kronecker = Kronecker(factor, None, max_dim, T2, T2, Constant(beta), vectors=False, statistics_every=T1)
        self.preconditioner = Blocked(kronecker, max_dim, merge=False)
        super().__init__(params, base, hyperparameters)

    def check_base(self) -> None:
        super().check_base()
        if self.base.direction.scope != "elementwise" or self.reevaluates:
            raise TypeError("base must be an elementwise rule of gradients, such as AdamW, SGD or Lion, got "
                            f"{type(self.base).__name__}")

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "preconditioner": self.preconditioner}

    def direction_for(self, p: Tensor, group: Mapping[str, Any]) -> Direction:
        inner = self.rule.direction_for(p, group)
        return Fed(inner, self.preconditioner) if sum(n > 1 for n in p.shape) > 1 else inner
