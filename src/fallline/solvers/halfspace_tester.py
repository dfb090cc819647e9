"""Learning a halfspace, and testing on the data whether the answer may be trusted.

    learn    min_w L_σ(w) = E r_σ(y⟨w, x⟩/‖w‖),   r_σ(t) = ½ − t/σ clipped to [0, 1],   by gradient descent on the sphere, several σ
    T1       P(|⟨w, x⟩| ≤ σ/2) and P(|⟨w, x⟩| ≤ σ/6) within a factor 2 of the standard normal's
    T2       second and fourth moments of x_⊥ in the band |⟨w, x⟩| ≤ σ/2 within ½ of those of N(0, I), relatively
    θ        for every w* that errs with a chance of at most η anywhere (Massart) the angle to w is at most θ,
             tan θ = (1 − η) σ / ((1 − 2η) m − ‖∇L_σ(w)‖ σ/P),   m = λ_min^{3/2} / √(3(1 + δ₄)) ≤ E[|⟨u, x⟩| in the band]
    T3       B(θ) = P(|⟨w, x⟩| < tan θ) + Σ_{i ≥ 1} min(P_i, λ_max(E[x_⊥x_⊥ᵀ in strip i])/i²) ≤ C θ

P is the mass of the band, u any unit vector orthogonal to w, strip i where i tan θ ≤ |⟨w, x⟩| < (i + 1) tan θ. B(θ) bounds the chance
that w and any v within θ of it disagree, whatever the distribution (Chebyshev, strip by strip): an accepted w errs at most by opt +
B(θ). A rejection says that the data do not look as the learner needs them; it is no error. Under adversarial noise the chance of an
error is not bounded anywhere: there η = 0 and 2√(opt λ_max/P) comes off m, with opt at most the least error seen.

Gollakota, Klivans, Stavropoulos, Vasilyan: An Efficient Tester-Learner for Halfspaces, ICLR 2024, arXiv 2302.14853. The tests are the
paper's; its constants are unspecified, and θ here follows from the moments that T2 has measured (Hölder's inequality, and the
gradient's part along w*).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fallline.core.checks import check_count
from fallline.core.keys import Key, as_key

FACTOR = 2.0
"""T1: how far the band's mass may be from the normal's."""
TOLERANCE = 0.5
"""T2: relative error of the moments."""
CONSTANT = 10.0
"""T3: B(θ) ≤ CONSTANT · θ; the normal distribution has about 2.1 θ."""
WIDTHS = (0.1, 0.2, 0.4, 0.8)
ROWS_A_MOMENT = 8
"""Data points that the band must hold for every entry of a symmetric matrix of x_⊥, or T2 says nothing."""


@dataclass(frozen=True)
class Accept:
    """A halfspace sign⟨w, x⟩ that errs by at most opt + ``bound``.

    Attributes
    ----------
    w : Tensor (d,)
        For the data as given (not whitened), of length 1.
    bound : float
        B(θ).
    theta : float
        The angle within which the best halfspace is, in radians, in whitened coordinates.
    error : float
        Share of the test half that w errs on.
    """

    w: Tensor
    bound: float
    theta: float
    error: float

    def __bool__(self) -> bool:
        return True


@dataclass(frozen=True)
class Reject:
    """No candidate passed; ``reason`` is what the one that came furthest failed."""

    reason: str

    def __bool__(self) -> bool:
        return False


def test_and_learn(X: Tensor, y: Tensor, noise: Literal["massart", "adversarial"] = "massart", eta: float = 0.3, *,
                   eps: float = 1.0, widths: Sequence[float] = WIDTHS, steps: int = 100, key: Key | int = 0) -> Accept | Reject:
    """Learn a halfspace through the origin on one half of the data, and test it on the other.

    Parameters
    ----------
    X : Tensor (n, d)
        Centred as the halfspace is to be: it goes through the origin. Whitened here, by the learning half.
    y : Tensor (n,)
        ±1.
    noise : {"massart", "adversarial"}, default "massart"
        What may be wrong with the labels.
    eta : float, default 0.3
        η: largest chance of a wrong label, below ½; not looked at under adversarial noise.
    eps : float, default 1
        Accept only with B(θ) at most eps; the default accepts whatever T3 does. B(θ) is about 2 θ, θ about 2σ at η = 0.3, and the band
        must hold some hundreds of points: small bounds need narrow bands and many data.
    widths : sequence of float, default (0.1, 0.2, 0.4, 0.8)
        σ; every candidate is tested at each.
    steps : int, default 100
        Of gradient descent, for every σ and both signs at once.
    key : Key or int, default 0
        Of the split.

    Returns
    -------
    Accept or Reject
        True or false as conditions.

    Raises
    ------
    ValueError
        Shapes, labels or η are illegal, X has no variance in some direction, or n is too small for T2 at any width.
    """
    _check(X, y, noise, eta, widths, eps, steps)
    X = X.double()
    order = torch.randperm(len(X), generator=as_key(key).fold("split").generator()).to(X.device)
    learning, testing = order[: len(X) // 2], order[len(X) // 2:]
    whiten = _whitener(X[learning])
    Z, labels = X @ whiten, y.to(X)
    candidates = _candidates(Z[learning], labels[learning], torch.tensor(widths, dtype=X.dtype, device=X.device), steps)
    tested, signs = Z[testing], labels[testing]
    errors = ((tested @ candidates.mT).sign() != signs[:, None]).double().mean(0)
    # The tests and the angle are the same for w and −w, one of which is within θ of the best: the one that errs less.
    candidates = torch.where((errors > 0.5)[:, None], -candidates, candidates)
    errors = torch.minimum(errors, 1 - errors)
    best = float(errors.min())
    accepted: list[Accept] = []
    reasons: list[tuple[int, str]] = []
    for w, error in zip(candidates, errors.tolist(), strict=True):
        back = whiten @ w
        for width in widths:
            stage, found = _test(tested, signs, w, width, noise, eta, best)
            if isinstance(found, str):
                reasons.append((stage, found))
            elif found[0] > eps:
                reasons.append((4, f"the bound {found[0]:.3g} on the disagreement is above eps = {eps:g}"))
            else:
                accepted.append(Accept(back / torch.linalg.vector_norm(back), *found, error))
    if accepted:
        return min(accepted, key=lambda accept: (accept.error, accept.bound))
    return Reject(max(reasons)[1])


def _check(X: Tensor, y: Tensor, noise: str, eta: float, widths: Sequence[float], eps: float, steps: int) -> None:
    if X.ndim != 2 or y.shape != (len(X),):
        raise ValueError(f"X must be rows (n, d) and y n labels, got shapes {tuple(X.shape)} and {tuple(y.shape)}")
    if not bool((y.abs() == 1).all()):
        raise ValueError("y must be labels -1 or 1; 2 * y - 1 makes them of 0 and 1")
    if noise not in ("massart", "adversarial"):
        raise ValueError(f"noise must be 'massart' or 'adversarial', got {noise!r}")
    if not 0 <= eta < 0.5:
        raise ValueError(f"eta must be in [0, 1/2), got {eta}: labels that are wrong half of the time say nothing")
    if not widths or not all(0 < width < math.inf for width in widths):
        raise ValueError(f"widths must be numbers > 0, got {tuple(widths)}")
    if not eps > 0:
        raise ValueError(f"eps must be > 0, got {eps}")
    check_count("steps", steps, "100 is typical")
    if not bool(torch.isfinite(X).all()):
        raise ValueError("X must be finite, and has NaN or infinite entries")
    d = X.shape[1]
    needed = ROWS_A_MOMENT * d * (d - 1) // 2
    held = len(X) / 2 * math.erf(max(widths) / 2 / math.sqrt(2))
    if d < 2 or held < needed:
        raise ValueError(f"n = {len(X)} is too small for d = {d}: the widest band would hold about {held:.0f} of the testing half, and "
                         f"its moments need {needed}" if d > 1 else f"X must have at least 2 columns, got {d}")


def _whitener(X: Tensor) -> Tensor:
    """W with E[(xW)ᵀ(xW)] = I: second moments about the origin, through which the halfspace goes."""
    values, vectors = torch.linalg.eigh(X.mT @ X / len(X))
    if not float(values[0]) > 1e-12 * float(values[-1]):
        raise ValueError(f"X must vary in every direction, and has the second moment {float(values[0]):.3g} in one; drop what depends "
                         "on other columns")
    return vectors * values.rsqrt() @ vectors.mT


def _candidates(Z: Tensor, labels: Tensor, widths: Tensor, steps: int) -> Tensor:
    """Where gradient descent on the sphere ends, (2k, d): for every width from the mean of y x and from its opposite."""
    start = (labels[:, None] * Z).mean(0)
    w = torch.stack([sign * start / torch.linalg.vector_norm(start) for sign in (1, -1)]).repeat_interleave(len(widths), 0)
    sigma = widths.repeat(2)
    for step in range(steps):
        w = w - 0.5 * sigma[:, None] / math.sqrt(1 + step) * _gradients(Z, labels, w, sigma)
        w = w / torch.linalg.vector_norm(w, dim=1, keepdim=True)
    return w


def _gradients(Z: Tensor, labels: Tensor, w: Tensor, sigma: Tensor) -> Tensor:
    """∇L_σ on the sphere at unit vectors (k, d): −E[y x_⊥ in the band]/σ."""
    along = Z @ w.mT
    inside = (along.abs() <= sigma / 2).to(Z.dtype)
    raw = -(inside * labels[:, None] / sigma).mT @ Z / len(Z)
    return raw - (raw * w).sum(1, keepdim=True) * w


def _test(Z: Tensor, labels: Tensor, w: Tensor, width: float, noise: str, eta: float,
          opt: float) -> tuple[int, str | tuple[float, float]]:
    """B(θ) and θ, or the test that failed, with its number."""
    along = Z @ w
    for share in (2, 6):
        mass = float((along.abs() <= width / share).double().mean())
        normal = math.erf(width / share / math.sqrt(2))
        if not normal / FACTOR <= mass <= FACTOR * normal:
            return 1, f"the band of width {2 * width / share:.3g} holds {mass:.3g} of the data, the normal distribution {normal:.3g}"
    band = along.abs() <= width / 2
    basis = _complement(w)
    beside = Z[band] @ basis
    d = beside.shape[1]
    if len(beside) < ROWS_A_MOMENT * d * (d + 1) // 2:
        return 2, f"the band of width {width:g} holds {len(beside)} points, too few for the fourth moments of {d} coordinates"
    second = torch.linalg.eigvalsh(beside.mT @ beside / len(beside))
    apart = max(abs(float(second[0]) - 1), abs(float(second[-1]) - 1))
    fourth = _fourth_moment_error(beside)
    if apart > TOLERANCE or fourth > TOLERANCE:
        return 2, f"in the band of width {width:g} the second moments are {apart:.3g} and the fourth {fourth:.3g} from the normal's"
    mass = len(beside) / len(Z)
    slope = float(torch.linalg.vector_norm(_gradients(Z, labels, w[None], torch.tensor([width], dtype=Z.dtype, device=Z.device))))
    least = float(second[0]) ** 1.5 / math.sqrt(3 * (1 + fourth))
    wrong, lost = (eta, 0.0) if noise == "massart" else (0.0, 2 * math.sqrt(opt * float(second[-1]) / mass))
    denominator = (1 - 2 * wrong) * least - lost - slope * width / mass
    if denominator <= 0:
        return 3, f"the gradient {slope:.3g} and the noise leave no bound on the angle at the width {width:g}"
    theta = math.atan((1 - wrong) * width / denominator)
    bound = _disagreement(along, Z @ basis, theta)
    if bound > CONSTANT * theta:
        return 3, f"the disagreement within {theta:.3g} radians is only bounded by {bound:.3g}"
    return 4, (bound, theta)


def _complement(w: Tensor) -> Tensor:
    """An orthonormal basis (d, d − 1) of what is orthogonal to a unit vector."""
    return torch.linalg.svd(w[None], full_matrices=True).Vh[1:].mT


def _fourth_moment_error(x: Tensor) -> float:
    """Largest |E q(x)² / E q(g)² − 1| over quadratic forms q, g normal: so E⟨u, x⟩⁴ ≤ 3 (1 + error) for every unit vector u."""
    d = x.shape[1]
    rows, columns = torch.triu_indices(d, d).to(x.device)
    off = rows != columns
    forms = x[:, rows] * x[:, columns] * torch.where(off, math.sqrt(2), 1.0)
    measured = forms.mT @ forms / len(x)
    normal = torch.diag(torch.full((len(rows),), 2.0, dtype=x.dtype, device=x.device))
    diagonal = (~off).to(x.dtype)
    normal = normal + torch.outer(diagonal, diagonal)
    factor = torch.linalg.cholesky(normal)
    relative = torch.linalg.solve_triangular(factor, measured - normal, upper=False)
    relative = torch.linalg.solve_triangular(factor, relative.mT, upper=False)
    return float(torch.linalg.eigvalsh(relative).abs().max())


def disagreement_bound(X: Tensor, w: Tensor, theta: float) -> float:
    """Return B(θ) ≥ the share of the rows on which sign⟨w, x⟩ and sign⟨v, x⟩ differ, for every v within the angle θ of w.

    Parameters
    ----------
    X : Tensor (n, d)
    w : Tensor (d,)
        Not 0.
    theta : float
        In [0, π/2).
    """
    if X.ndim != 2 or X.shape[1] < 2 or not bool(torch.isfinite(X).all()):
        raise ValueError(f"X must be finite rows (n, d) of at least two columns, got shape {tuple(X.shape)}")
    if w.shape != X.shape[1:] or not float(torch.linalg.vector_norm(w)) > 0:
        raise ValueError(f"w must be a vector of {X.shape[1]} numbers that is not 0, got shape {tuple(w.shape)}")
    if not 0 <= theta < math.pi / 2:
        raise ValueError(f"theta must be in [0, π/2) radians, got {theta}")
    unit = w / torch.linalg.vector_norm(w)
    return _disagreement(X @ unit, X @ _complement(unit), theta)


def _disagreement(along: Tensor, beside: Tensor, theta: float) -> float:
    slope = math.tan(theta)
    if slope == 0:
        return float((along == 0).double().mean())
    strips = (along.abs() / slope).floor()
    total = float((strips == 0).double().mean())
    # Beyond the last strip looked at, all that is left is one: its width does not matter to Chebyshev's bound.
    last = 50
    for i in range(1, last + 1):
        chosen = strips == i if i < last else strips >= last
        share = float(chosen.double().mean())
        if share:
            moments = beside[chosen].mT @ beside[chosen] / len(along)
            total += min(share, float(torch.linalg.eigvalsh(moments)[-1]) / i**2)
    return min(total, 1.0)
