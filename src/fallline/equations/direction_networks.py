"""A fully convolutional network from residuals on a grid to directions.

    first convolution, linear;   pairs of 3^d convolutions, each x ← relu(W₂ relu(W₁ x)) + x;   average-pool by 2;   the next level, or
    pairs at the bottom;   upsample, add what was pooled;   pairs;   last map to one channel, linear

With a residual r on an N^d grid as the one channel it costs O(N^d) and sees as far as its levels reach, whatever N.

A. Kaneda, O. Akar, J. Chen, V. A. T. Kala, D. Hyde, J. Teran: A deep conjugate direction method for iteratively solving linear systems,
ICML 2023, arXiv 2205.10763.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fallline.core.checks import check_count
from fallline.core.keys import Key, as_key


class _Pair(nn.Module):
    """x ← relu(W₂ relu(W₁ x)) + x."""

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.inner, self.outer = _convolution(dim, channels, channels, 3), _convolution(dim, channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = F.relu(self.outer(F.relu(self.inner(x)))) + x
        return found


def _convolution(dim: int, inputs: int, outputs: int, width: int) -> nn.Module:
    kind: type[nn.Module] = nn.Conv2d if dim == 2 else nn.Conv3d
    return kind(inputs, outputs, width, padding=width // 2)


class DirectionNetwork(nn.Module):
    """Directions (B, 1, N, …) from residuals (B, 1, N, …), on grids of any size.

    Parameters
    ----------
    dim : {2, 3}
        Of the grid.
    channels : int, default 16
    levels : int, default 2
        Grids, each half as fine as the one before. Two are the paper's; long waves want more.
    pairs : int, default 2
        Pairs of convolutions on the way down and up at each level; the bottom has one more.
    key : Key or int, default 0
        Of the initial weights, drawn by torch's own rules.

    Examples
    --------
    >>> DirectionNetwork(2, channels=8, levels=3)(torch.zeros(1, 1, 32, 32)).shape
    torch.Size([1, 1, 32, 32])
    """

    def __init__(self, dim: int = 3, channels: int = 16, levels: int = 2, pairs: int = 2, *, key: Key | int = 0) -> None:
        super().__init__()
        if dim not in (2, 3):
            raise ValueError(f"dim must be 2 or 3, got {dim!r}")
        for name, count in (("channels", channels), ("levels", levels), ("pairs", pairs)):
            check_count(name, count, f"the paper's {name} are the default")
        self.dim = dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(as_key(key).fold("weights").integer())
            stage = lambda count: nn.Sequential(*(_Pair(dim, channels) for _ in range(count)))
            self.first, self.last = _convolution(dim, 1, channels, 3), _convolution(dim, channels, 1, 1)
            self.down = nn.ModuleList(stage(pairs) for _ in range(levels - 1))
            self.bottom = stage(pairs + 1)
            self.up = nn.ModuleList(stage(pairs) for _ in range(levels - 1))

    def forward(self, r: Tensor) -> Tensor:
        """Return directions shaped as the residuals, (B, 1, N, …)."""
        pool = F.avg_pool2d if self.dim == 2 else F.avg_pool3d
        x, passed = self.first(r), []
        for stage in self.down:
            passed.append(stage(x))
            x = pool(passed[-1], 2, ceil_mode=True)
        x = self.bottom(x)
        for stage, skipped in zip(self.up, reversed(passed), strict=True):
            x = stage(F.interpolate(x, size=skipped.shape[2:]) + skipped)
        d: Tensor = self.last(x)
        return d
