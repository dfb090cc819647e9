"""EFCP: preconditioners from a window of compressed gradients, with error feedback.

    a = ξ + g;   c = compressed(a);   ξ ← a − c;   u from the window whose newest row is c;   v ← μ v + u;   θ ← (1 − η w) θ − η v

Modoranu, Kalinov, Kurtic, Frantar, Alistarh: Error Feedback Can Accurately Compress Preconditioners, ICML 2024, arXiv 2306.06098.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Unpack

from fallline.core.checks import check_count
from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.optim.directions.compressed import CompressedAdaGrad, CompressedFisher, Compressor, LowRank, TopK
from fallline.optim.engine.hyperparameters import check
from fallline.optim.engine.optimizer import EngineOptions
from fallline.optim.engine.parts import DecoupledDecay
from fallline.optim.whole_group import WholeGroup

Kind = Literal["topk", "lowrank"]


@register("sparse-m-fac")
class SparseMFAC(WholeGroup):
    """u = (λ I + Γᵀ Γ / m)⁻¹ c,  rows of Γ the last m compressed gradients c of a = ξ + g,  ξ ← a − c;  v ← μ v + u;  θ ← θ − η v.

    M-FAC with a window of 8 m k bytes, k = density · d, where `MFAC`'s has 4 m d: 2 % at 1 % density. A step costs O(m k + d + m³).

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 1e-3
        Depends on ``damp``; see `MFAC`.
    m : int, default 1024
        Gradients in the window.
    density : float, default 0.01
        Share of the entries of a group's parameters that a row keeps: the largest of all of them together. Less than one is an error.
    damp : float, default 1e-4
        λ > 0.
    precondition : {"sparse", "dense"}, default "sparse"
        What the inverse is applied to: c, or g.
    compressor : {"topk", "lowrank"}, default "topk"
        ``"lowrank"``: every parameter as a matrix of at most ``rank``, by one step of a power iteration from the last step's basis;
        vectors stay whole. The window then has 4 m r (n₁ + n₂) bytes for a matrix n₁ × n₂. Factors are rounded by ε of their size, of
        which the inverse makes ε ‖c‖ / λ: a ``damp`` far below ε ‖c‖² leaves little else of gradients that hardly change.
    rank : int, default 1
    momentum : float, default 0
        μ, undamped: v = Σ μᵏ u.
    weight_decay : float, default 0
        w, decoupled, times η.
    seed : int, default 0
        Of the bases that ``"lowrank"`` starts from.
    **options
        ``nonfinite``, ``maximize``, ``storage`` of the engine; it runs eagerly. Storages keep the window as it is, and may round ξ.

    Raises
    ------
    ValueError
        At the first step, if a group has fewer than 1 / ``density`` numbers.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-4, 1e-1), "damp": LogUniform(1e-6, 1e-1)}
    positive: ClassVar[Mapping[str, str]] = {"damp": "the Fisher matrix of a window has no inverse without; 1e-4 is typical"}

    def __init__(self, params: Any, lr: float = 1e-3, m: int = 1024, density: float = 0.01, damp: float = 1e-4,
                 precondition: Literal["sparse", "dense"] = "sparse", compressor: Kind = "topk", rank: int = 1, momentum: float = 0.0,
                 weight_decay: float = 0.0, seed: int = 0, **options: Unpack[EngineOptions]) -> None:
        check_count("m", m, "1024 is typical")
        if precondition not in ("sparse", "dense"):
            raise ValueError(f"precondition must be 'sparse' or 'dense', got {precondition!r}")
        made = _compressor(compressor, density, rank, seed)
        defaults = {"lr": lr, "damp": damp, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, CompressedFisher(m, made, precondition == "dense"), defaults, move=DecoupledDecay(), **options)


@register("sparse-ggt")
class SparseGGT(WholeGroup):
    """u = (1/ε) (c − U Uᵀ c) + U (Σ + ε I)⁻¹ Uᵀ c,  Γᵀ = U Σ Vᵀ the last compressed gradients c of a = ξ + g,  ξ ← a − c.

    Full-matrix AdaGrad of a window of gradients, in their span. A step costs O(m k + d + m³). The original method also fades gradients
    within the window and averages the newest; the authors' compressed version does not, nor adds this one 1e-6 to Σ² as theirs does.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 1e-3
    window : int, default 100
        m, gradients in Γ.
    density : float, default 0.01
        As in `SparseMFAC`, like ``compressor``, ``rank``, ``momentum``, ``weight_decay``, ``seed`` and the options.
    eps : float, default 1e-5
        ε > 0.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-4, 1e-1)}
    positive: ClassVar[Mapping[str, str]] = {"eps": "directions that the window hardly holds would be divided by 0; 1e-5 is typical"}

    def __init__(self, params: Any, lr: float = 1e-3, window: int = 100, density: float = 0.01, eps: float = 1e-5,
                 compressor: Kind = "topk", rank: int = 1, momentum: float = 0.0, weight_decay: float = 0.0, seed: int = 0,
                 **options: Unpack[EngineOptions]) -> None:
        check_count("window", window, "100 is typical")
        made = _compressor(compressor, density, rank, seed)
        defaults = {"lr": lr, "eps": eps, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, CompressedAdaGrad(window, made), defaults, move=DecoupledDecay(), **options)


def _compressor(kind: str, density: float, rank: int, seed: int) -> Compressor:
    check("seed", seed)
    if isinstance(density, bool) or not isinstance(density, int | float) or not 0 < density <= 1:
        raise ValueError(f"density must be a share in (0, 1], got {density!r}; 0.01 is typical")
    check_count("rank", rank, "1 is typical")
    made: dict[str, Compressor] = {"topk": TopK(density), "lowrank": LowRank(rank, seed)}
    if kind not in made:
        raise ValueError(f"compressor must be 'topk' or 'lowrank', got {kind!r}")
    return made[kind]
