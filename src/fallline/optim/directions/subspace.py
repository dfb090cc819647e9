"""Directions that keep state in a subspace of a matrix, and treat the rest without state.

    P, Pᵀ: project onto a subspace and lift back, chosen anew every ``gap`` steps
    u = scale · Pᵀ inner(P g) + free_lr_scale · rest(g − Pᵀ P g)

FRUGAL: rest = sign (or the gradient), and the inner state starts anew with each subspace, or is carried over to it: m ← P Pᵀ_old m, and
for an average of squares v ← (P Pᵀ_old)∘² v, which stays nonnegative. GaLore: rest = nothing, and the inner state stays as it is.

Zmushko et al.: FRUGAL, ICML 2025, arXiv 2411.07837. Zhao et al.: GaLore, ICML 2024, arXiv 2403.03507.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fallline.core.keys import Key
from fallline.core.linalg import orthonormalize
from fallline.optim.engine.parts import Direction, Scalars, Tensors
from fallline.optim.engine.state import State

Rest = Literal["sign", "sgd", "nothing"]
Renewal = Literal["discard", "reproject", "keep"]
"""What becomes of the inner state when the subspace changes."""
Order = Literal["random", "ascending"]
"""In which blocks have their turn."""


def share(density: float, whole: int) -> int:
    """``density`` of ``whole`` things, rounded, and at least one unless the density is 0."""
    return min(whole, max(round(density * whole), int(density > 0)))


@dataclass(frozen=True)
class Projector:
    """Which subspace of ``(rows, columns)`` matrices: ``dimension`` of a side or of all entries, from ``density`` or ``rank``."""

    density: float = 0.25
    rank: int | None = None

    def size(self, whole: int) -> int:
        """How many of ``whole`` dimensions the subspace has."""
        return min(self.rank, whole) if self.rank is not None else share(self.density, whole)

    def basis(self, shape: tuple[int, int]) -> State:
        """Declare what describes the subspace."""
        raise NotImplementedError

    def coordinates(self, shape: tuple[int, int]) -> tuple[int, ...]:
        """The shape of a projected matrix."""
        raise NotImplementedError

    def choose(self, g: Tensor, keys: list[Key]) -> Tensor:
        """A new basis for every matrix of the batch ``g``."""
        raise NotImplementedError

    def project(self, g: Tensor, basis: Tensor) -> Tensor:
        """P g."""
        raise NotImplementedError

    def lift(self, coordinates: Tensor, basis: Tensor, like: Tensor) -> Tensor:
        """Pᵀ c, shaped like ``like``."""
        raise NotImplementedError

    def carry(self, c: Tensor, old: Tensor, new: Tensor, like: Tensor, nonnegative: bool) -> Tensor:
        """P Pᵀ_old c."""
        return self.project(self.lift(c, old, like), new)


@dataclass(frozen=True)
class Orthonormal(Projector):
    """Columns U of the shorter side: c = Uᵀ g (or g U), lifted by U c (or c Uᵀ)."""

    def basis(self, shape: tuple[int, int]) -> State:
        side = min(shape)
        return State((side, self.size(side)))

    def coordinates(self, shape: tuple[int, int]) -> tuple[int, ...]:
        rank = self.size(min(shape))
        return (rank, shape[1]) if shape[0] <= shape[1] else (shape[0], rank)

    def project(self, g: Tensor, basis: Tensor) -> Tensor:
        return basis.mT @ g if g.shape[-2] <= g.shape[-1] else g @ basis

    def lift(self, coordinates: Tensor, basis: Tensor, like: Tensor) -> Tensor:
        return basis @ coordinates if like.shape[-2] <= like.shape[-1] else coordinates @ basis.mT

    def carry(self, c: Tensor, old: Tensor, new: Tensor, like: Tensor, nonnegative: bool) -> Tensor:
        rotation = new.mT @ old
        if nonnegative:
            rotation = rotation.square()
        return rotation @ c if like.shape[-2] <= like.shape[-1] else c @ rotation.mT


@dataclass(frozen=True)
class SingularVectors(Orthonormal):
    """The gradient's top singular vectors (GaLore's choice)."""

    def choose(self, g: Tensor, keys: list[Key]) -> Tensor:
        # A gradient that is not finite makes the update so, which is reported; it must not end the decomposition.
        side = (g if g.shape[-2] <= g.shape[-1] else g.mT).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        u = torch.linalg.svd(side, full_matrices=False).U
        return u[..., : self.size(side.shape[-2])]


@dataclass(frozen=True)
class RandomDirections(Orthonormal):
    """Uniformly random orthonormal directions."""

    def choose(self, g: Tensor, keys: list[Key]) -> Tensor:
        side = min(g.shape[-2:])
        drawn = [torch.randn(side, self.size(side), dtype=g.dtype, generator=key.generator()) for key in keys]
        return orthonormalize(torch.stack(drawn).to(g.device))


@dataclass(frozen=True)
class RandomColumns(Projector):
    """Random whole columns."""

    def basis(self, shape: tuple[int, int]) -> State:
        return State((self.size(shape[1]),), dtype=torch.int64)

    def coordinates(self, shape: tuple[int, int]) -> tuple[int, ...]:
        return (shape[0], self.size(shape[1]))

    def choose(self, g: Tensor, keys: list[Key]) -> Tensor:
        columns = g.shape[-1]
        drawn = [torch.randperm(columns, generator=key.generator())[: self.size(columns)] for key in keys]
        return torch.stack(drawn).to(g.device)

    def project(self, g: Tensor, basis: Tensor) -> Tensor:
        return g.gather(-1, basis.unsqueeze(-2).expand(*g.shape[:-1], -1))

    def lift(self, coordinates: Tensor, basis: Tensor, like: Tensor) -> Tensor:
        return torch.zeros_like(like).scatter(-1, basis.unsqueeze(-2).expand(coordinates.shape), coordinates)


@dataclass(frozen=True)
class RandomEntries(RandomColumns):
    """Random entries: columns of the matrix as one long row."""

    def basis(self, shape: tuple[int, int]) -> State:
        return super().basis((1, shape[0] * shape[1]))

    def coordinates(self, shape: tuple[int, int]) -> tuple[int, ...]:
        return super().coordinates((1, shape[0] * shape[1]))

    def choose(self, g: Tensor, keys: list[Key]) -> Tensor:
        return super().choose(g.flatten(1).unsqueeze(1), keys)

    def project(self, g: Tensor, basis: Tensor) -> Tensor:
        return super().project(g.flatten(1).unsqueeze(1), basis)

    def lift(self, coordinates: Tensor, basis: Tensor, like: Tensor) -> Tensor:
        return super().lift(coordinates, basis, like.flatten(1).unsqueeze(1)).view(like.shape)


def _sign(g: Tensor) -> Tensor:
    # The sign of NaN is 0, which would hide a broken gradient where no state remembers it.
    return g.sign() + 0 * g


PROJECTORS: dict[str, type[Projector]] = {
    "svd": SingularVectors, "random": RandomDirections, "columns": RandomColumns, "randk": RandomEntries,
}


@dataclass(frozen=True)
class InSubspace(Direction):
    """u = scale · Pᵀ inner(P g) + free · rest(g − Pᵀ P g), free being the group's ``free_lr_scale``.

    Parameters
    ----------
    projector : Projector
    inner : Direction
        An elementwise rule; it sees projected gradients and no parameters.
    gap : int
        Steps between subspaces.
    rest : {"sign", "sgd", "nothing"}
    renewal : {"discard", "reproject", "keep"}
        What becomes of the inner state with each new subspace; its step count starts anew only if it is discarded.
    seed : int
        Of random subspaces.
    scale : float
    """

    scope: ClassVar[Literal["elementwise", "matrix"]] = "matrix"

    projector: Projector
    inner: Direction
    gap: int = 200
    rest: Rest = "sign"
    renewal: Renewal = "discard"
    seed: int = 0
    scale: float = 1.0

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        inner_t = (t - 1) % self.gap + 1 if self.renewal == "discard" else t
        return {**self.inner.coefficients(group, inner_t), "t": float(t), "free": group.get("free_lr_scale", 0.0)}

    def init(self, p: Tensor) -> dict[str, State]:
        shape = (p.shape[0], p.shape[1])
        coordinates = torch.empty(self.projector.coordinates(shape), device="meta")
        declared = self.inner.init(coordinates)
        inner = {name: State(tuple(coordinates.shape), s.dtype, s.nonnegative, s.initial) for name, s in declared.items()}
        return {**inner, "basis": self.projector.basis(shape)}

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        basis, state = s["basis"], s
        renewed = int(c.t - 1) % self.gap == 0
        if renewed:
            basis = self.projector.choose(g, [Key(self.seed).fold(int(i), int(c.t)) for i in c.indices])
            state = self._renewed(s, basis, g)
        coordinates = self.projector.project(g, basis)
        u, new = self.inner(coordinates, coordinates, state, c)
        update = self.scale * self.projector.lift(u, basis, g)
        if self.rest != "nothing":
            rest = g - self.projector.lift(coordinates, basis, g)
            update = update + c.free * (_sign(rest) if self.rest == "sign" else rest)
        return update, {**new, "basis": basis} if renewed else dict(new)

    def _renewed(self, s: Tensors, basis: Tensor, g: Tensor) -> Tensors:
        """The inner state for a new basis."""
        if self.renewal == "keep":
            return s
        if self.renewal == "discard":
            return {name: torch.zeros_like(value) for name, value in s.items()}
        declared = self.inner.init(torch.empty(self.projector.coordinates((g.shape[-2], g.shape[-1])), device="meta"))
        return {name: self.projector.carry(s[name], s["basis"], basis, g, entry.nonnegative) for name, entry in declared.items()}


@dataclass(frozen=True)
class Stateless(Direction):
    """u = scale · sign(g), or scale · g: the rest of a rule whose state lives in other parameters."""

    rest: Rest = "sign"

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {"scale": group["free_lr_scale"]}

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        return c.scale * (_sign(g) if self.rest == "sign" else g), {}


@dataclass(frozen=True)
class Restarted(Direction):
    """``inner`` with a step count that starts anew every ``gap`` steps, to go with a state that does; first after step ``phase``."""

    inner: Direction
    gap: int = 200
    phase: int = 0

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return self.inner.coefficients(group, (t - 1 - self.phase) % self.gap + 1)

    def init(self, p: Tensor) -> dict[str, State]:
        return self.inner.init(p)

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        return self.inner(g, p, s, c)


def blocks_in_turn(period: int, count: int, density: float, order: Order = "random", seed: int = 0) -> list[int]:
    """Which of ``count`` blocks have state in a period: the next ones of an order that goes round and round.

    After ``count / gcd(count, chosen)`` periods all have had as many turns, and a new order is drawn.
    """
    chosen = share(density, count)
    if chosen == 0:
        return []
    cycle, place = divmod(period, count // math.gcd(count, chosen))
    blocks = list(range(count))
    if order == "random":
        blocks = torch.randperm(count, generator=Key(seed).fold("blocks", cycle).generator()).tolist()
    return [blocks[(place * chosen + i) % count] for i in range(chosen)]
