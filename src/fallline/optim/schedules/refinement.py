"""A learning-rate schedule made from the gradient norms of a run before, and what the theory guarantees for any schedule.

    w_t = G̃_t^{−p};   s_t = w_t Σ_{k>t} w_k,  t = 1, …, T, divided by the largest

G̃ are the recorded norms, smoothed by a running median over a tenth of the run. Where gradients keep their length, s_t ∝ 1 − t / T;
where they shrink, it warms up first and anneals later. The last iterate of x_{t+1} = x_t − η_t g_t, for every w and convex f:

    E f(x_T) − f* ≤ (D² + Σ w_t² G_t²) / (2 Σ w_t),   η_t = w_t Σ_{k>t} w_k / Σ w

Any rates are of this form: with W_t = Σ_{k≥t} w_k / √Σ w, backwards from any W_T > 0, W_t = W_{t+1} + η_t / W_{t+1}.

Defazio, Cutkosky, Mehta, Mishchenko: When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement, arXiv 2310.07831.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import median_filter
from scipy.optimize import minimize_scalar
from torch import Tensor

from fallline.optim.schedules.table import Schedule


def refine(grad_norms: Tensor | Sequence[float], p: float = 2, width: float = 0.1) -> Schedule:
    """s_t = w_t Σ_{k>t} w_k over its largest value, w_t = G̃_t^{−p}, from the norms of a run with linear decay.

    Parameters
    ----------
    grad_norms : tensor or sequence of float, (T,)
        ‖g_t‖ before clipping, of every step: ℓ2 norms for gradient descent, ℓ1 norms for rules of Adam's kind (``GradNormRecorder``).
    p : float, default 2
        2 for gradient descent, 1 for rules of Adam's kind.
    width : float, default 0.1
        Of the running median, as a share of T, in [0, 1], rounded to an odd number of steps. Before the first step its norm repeats,
        after the last one the norms are mirrored, as in the authors' code. 0 does not smooth, which makes a spiky schedule.

    Returns
    -------
    Schedule
        T factors, the largest 1 and the last 0. Follow it with ``Tabulated(optimizer, schedule)``, the base rate tuned anew.

    Raises
    ------
    ValueError
        If there are fewer than two norms, one is not finite or negative, or the smoothed norm is 0 somewhere.
    """
    norms = _norms("grad_norms", grad_norms)
    if len(norms) < 2:
        raise ValueError(f"grad_norms must hold at least two norms, got {len(norms)}")
    if not 0 < p < math.inf:
        raise ValueError(f"p must be a finite number > 0, got {p!r}; 2 for gradient descent, 1 for rules of Adam's kind")
    if not 0 <= width <= 1:
        raise ValueError(f"width must be a share of the run, in [0, 1], got {width!r}; 0.1 is the paper's")
    half = int(width * len(norms)) // 2
    smooth = median_filter(np.pad(norms, (0, half), mode="reflect"), size=2 * half + 1, mode="nearest")[: len(norms)]
    if not smooth.min() > 0:
        raise ValueError(f"grad_norms must be above 0, got a running median of 0 in step {int(smooth.argmin())}; end the run before "
                         "the gradient vanishes, or widen the median")
    weights = (smooth / smooth.min()) ** -p
    values = weights * (np.append(weights[::-1].cumsum()[::-1], 0.0)[1:])
    return Schedule(torch.from_numpy(values / values.max()), "refined")


def last_iterate_bound(schedule: Schedule | Tensor | Sequence[float], G: float | Tensor | Sequence[float], D: float,
                       lr: float | None = None) -> float:
    """The least (D² + Σ w_t² G_t²) / (2 Σ w_t) over the w that make these rates: a bound on E f − f* after all steps, f convex.

    Parameters
    ----------
    schedule : Schedule or sequence of float, (T,)
        Factors of the base rate, such as ``linear_decay(T)``.
    G : float or sequence of float, (T,)
        Norms of the subgradients, or one bound for all. That after the last step is taken to be as the one before.
    D : float
        ‖x_1 − x*‖.
    lr : float, optional
        The base rate. By default the one that makes the bound least, which is then D √(Σ w² G²) / Σ w.

    Notes
    -----
    G = 1 and D = 1 give 1 / √(T + 1) for linear decay, which no schedule betters, and √(log T / T) up to a factor for a constant rate.
    """
    factors = (schedule if isinstance(schedule, Schedule) else Schedule(schedule)).values.numpy()
    norms = np.full(len(factors), float(G)) if isinstance(G, int | float) else _norms("G", G)
    if len(norms) != len(factors) or not np.isfinite(norms).all() or not norms.min() > 0:
        raise ValueError(f"G must be a finite number > 0, or one for each of the {len(factors)} steps, got {G!r}")
    for name, value in (("D", D), ("lr", lr)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be a finite number > 0, got {value!r}")
    squares = np.append(norms, norms[-1]) ** 2
    rates = factors if lr is None else lr * factors

    def bound(log_last: float) -> float:
        w = _weights(rates, math.exp(log_last))
        noise, total = float((w**2 * squares).sum()), float(w.sum())
        return D * math.sqrt(noise) / total if lr is None else (D**2 + noise) / (2 * total)

    # W_T between the square roots of a small part of the largest rate and of a multiple of the sum of all.
    ends = math.log(rates.max()) / 2 - 10, math.log(rates.sum()) / 2 + 5
    return float(minimize_scalar(bound, bounds=ends, method="bounded", options={"xatol": 1e-9}).fun)


def _weights(rates: np.ndarray, last: float) -> np.ndarray:
    """w_1, …, w_{T+1} whose rates these are, from the W of the last."""
    w, total = [last], last
    for rate in rates[::-1].tolist():
        w.append(rate / total)
        total += w[-1]
    return np.array(w[::-1]) * total


def _norms(name: str, norms: Tensor | Sequence[float]) -> np.ndarray:
    found = torch.as_tensor(norms, dtype=torch.float64).detach().cpu().numpy()
    if found.ndim != 1 or not np.isfinite(found).all() or (found < 0).any():
        raise ValueError(f"{name} must be a row of finite norms >= 0, got {norms!r}")
    return found
