"""Noise of gradients: how much there is, and how to add some that dies out.

With gradients g_1, …, g_K of independent batches of B samples, mean ḡ and s² = Σ ‖g_k − ḡ‖² / (K − 1):

    tr Σ = B s²,    ‖G‖² = ‖ḡ‖² − s² / K,    noise scale = tr Σ / ‖G‖²

Both estimates are unbiased. The noise scale is the batch size at which noise and signal are alike (McCandlish et al.,
arXiv 1812.06162). Annealed noise is Neelakantan et al.'s, as in Ruder's survey, arXiv 1609.04747, section 6.4.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fallline.core.keys import Key
from fallline.core.objective import Objective


@dataclass(frozen=True)
class GradientNoise:
    """What K batches of B samples say of the gradient of all parameters, or of one tensor."""

    squared_norm: float
    """‖G‖² of the exact gradient, estimated without bias; it may come out negative when noise hides the signal."""
    variance: float
    """tr Σ, the variance of one sample's gradient."""
    batch_size: int
    batches: int

    @property
    def noise_scale(self) -> float:
        """tr Σ / ‖G‖²; infinite where no signal is seen."""
        return self.variance / self.squared_norm if self.squared_norm > 0 else math.inf

    @property
    def signal_to_noise(self) -> float:
        """‖G‖ over the deviation of a batch's gradient; 0 where no signal is seen."""
        deviation = math.sqrt(self.variance / self.batch_size)
        signal = math.sqrt(max(self.squared_norm, 0.0))
        return signal / deviation if deviation > 0 else math.inf

    def __str__(self) -> str:
        return (f"‖G‖² {self.squared_norm:.3g}, tr Σ {self.variance:.3g}, noise scale {self.noise_scale:.3g} samples, "
                f"signal to noise {self.signal_to_noise:.3g} at batch {self.batch_size} ({self.batches} batches)")


@dataclass(frozen=True)
class GradientNoiseReport:
    """The noise over all parameters, and tensor by tensor."""

    whole: GradientNoise
    tensors: dict[str, GradientNoise]

    def __str__(self) -> str:
        return "\n".join([f"all parameters: {self.whole}", *(f"{name}: {noise}" for name, noise in self.tensors.items())])


def gradient_noise_report(objective: Objective, batches: Iterable[tuple[Any, Tensor]]) -> GradientNoiseReport:
    """Measure the noise of mini-batch gradients at the weights in place.

    Parameters
    ----------
    objective : Objective
        The model and its mean loss.
    batches : iterable of (inputs, targets)
        At least two independent batches of one size.

    Returns
    -------
    GradientNoiseReport
        See the module for the formulas. Gradients, buffers and the global random state are left as they were.
    """
    model = objective.model
    buffers = [(b, b.clone()) for b in model.buffers()]
    sums: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}
    sizes: list[int] = []
    try:
        with torch.random.fork_rng(devices=[]):
            for inputs, targets in batches:
                sizes.append(len(targets))
                for name, g in objective(inputs, targets).gradient().items():
                    g = g.double()
                    sums[name] = sums[name] + g if name in sums else g
                    squares[name] = squares.get(name, torch.zeros((), dtype=g.dtype, device=g.device)) + g.square().sum()
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)
    if len(sizes) < 2 or len(set(sizes)) > 1:
        raise ValueError(f"batches must be at least two of one size, got sizes {sizes}; drop a shorter last batch")
    parts = {name: _noise(float(sums[name].square().sum()), float(squares[name]), sizes) for name in sums}
    whole = GradientNoise(sum(n.squared_norm for n in parts.values()), sum(n.variance for n in parts.values()), sizes[0], len(sizes))
    return GradientNoiseReport(whole, parts)


def _noise(squared_sum: float, sum_of_squares: float, sizes: list[int]) -> GradientNoise:
    count = len(sizes)
    spread = max(0.0, sum_of_squares - squared_sum / count) / (count - 1)
    return GradientNoise(squared_sum / count**2 - spread / count, sizes[0] * spread, sizes[0], count)


@torch.no_grad()
def add_annealed_noise(params: Iterable[Tensor], t: int, eta: float = 0.3, gamma: float = 0.55, seed: int = 0) -> None:
    """g ← g + N(0, η / (1 + t)^γ), in place, between ``loss.backward()`` and ``optimizer.step()``.

    The noise depends on ``seed``, ``t`` and a tensor's place only, so a run that is resumed at step t sees the same.

    Parameters
    ----------
    params : iterable of Tensor
        Those without a gradient are left out.
    t : int
        Steps taken so far, from 0.
    eta : float, default 0.3
        The first variance.
    gamma : float, default 0.55
        The power of its decay.
    seed : int, default 0
    """
    if t < 0 or eta < 0 or gamma < 0:
        raise ValueError(f"t, eta and gamma must not be negative, got t={t}, eta={eta}, gamma={gamma}")
    deviation = math.sqrt(eta / (1 + t) ** gamma)
    for i, p in enumerate(params):
        if p.grad is not None:
            noise = torch.randn(p.grad.shape, generator=Key(seed).fold("noise", t, i).generator())
            p.grad.add_(noise.to(p.grad), alpha=deviation)
