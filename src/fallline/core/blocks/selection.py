"""Which block moves next.

    cyclic   b = t mod m                                          random   b uniform
    gs       argmax_b ‖∇_b f‖²                                    gsl      argmax_b ‖∇_b f‖² / L_b
    gsd      argmax_b Σ_{i ∈ b} (∇_i f)² / D_i                    gsq      argmax_b ∇_bᵀ H_b⁻¹ ∇_b

L_b ≥ ‖∇²_bb f‖; H_b ⪰ ∇²_bb f; D_i = |b| L_i from the bounds L_i along coordinates, so that diag(D_b) ⪰ H_b. With a separable term r, a
variable's share is twice the decrease of its model ⟨g, d⟩ + D_i d²/2 + r_i(x_i + d) − r_i(x_i) at its minimum, which without r is g²/D.

Cyclic and random choices cost O(1); the greedy ones O(n) operations on vectors, or where a step changes few partial derivatives (a
sparse ``Quadratic`` in 200,000 fixed blocks or more) the changed ones times the logarithm of the number of blocks, by a tournament.

Nutini, Laradji, Schmidt: Let's Make Block Coordinate Descent Converge Faster, JMLR 2022, arXiv 1712.08859.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random as Lots

import torch
from torch import Tensor

from fallline.core.blocks.partition import Partition
from fallline.core.keys import Key


@dataclass(frozen=True)
class Cyclic:
    """Blocks in turn."""

    greedy = False

    def block(self, count: int, t: int, key: Key) -> int:
        """Return which of ``count`` blocks step t moves."""
        return t % count


@dataclass(frozen=True)
class Random:
    """Blocks drawn uniformly, independent of each other."""

    greedy = False

    def block(self, count: int, t: int, key: Key) -> int:
        """Return which of ``count`` blocks step t moves."""
        return key.fold("block", t).integer() % count

    def variables(self, size: int, count: int, t: int, key: Key) -> list[int]:
        """Return ``count`` different variables of ``size``."""
        return Lots(key.fold("block", t).integer()).sample(range(size), count)


@dataclass(frozen=True)
class GaussSouthwell:
    """The block that promises most, by the whole gradient.

    Parameters
    ----------
    measure : {"gs", "gsl", "gsd", "gsq"}
    """

    measure: str = "gsd"
    greedy = True

    def __post_init__(self) -> None:
        if self.measure not in ("gs", "gsl", "gsd", "gsq"):
            raise ValueError(f"measure must be 'gs', 'gsl', 'gsd' or 'gsq', got {self.measure!r}")


Selection = Cyclic | Random | GaussSouthwell
SELECTIONS: dict[str, Selection] = {"cyclic": Cyclic(), "random": Random(),
                                    **{name: GaussSouthwell(name) for name in ("gs", "gsl", "gsd", "gsq")}}


def quadratic_forms(partition: Partition, inverses: Tensor, g: Tensor) -> Tensor:
    """Return ∇_bᵀ H_b⁻¹ ∇_b of every block, given the inverses (blocks, w, w) padded by zeros."""
    width = inverses.shape[1]
    place = torch.arange(len(partition.order), device=g.device) - partition.start[:-1].repeat_interleave(partition.lengths)
    padded = g.new_zeros(len(partition), width)
    padded[partition.member[partition.order], place] = g[partition.order]
    return (padded * torch.einsum("bij,bj->bi", inverses, padded)).sum(1)
