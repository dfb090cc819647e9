"""PowerSGD: data-parallel training that sends low-rank gradients and remembers what it left out.

    M_w = G_w + E_w;   M̂ = rank-r approximation of mean_w M_w by one shared power iteration;   E_w ← M_w − M̂
    u = M̂ + ω x;   v ← λ v + u;   x ← x − γ (u + v)

A tensor is a matrix of its first dimension against the rest; vectors are averaged as they are. r(n + m) numbers are sent for nm.

Vogels, Karimireddy, Jaggi: PowerSGD, NeurIPS 2019, arXiv 1905.13727.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.compressors import Mean, low_rank_mean, mean_together
from fallline.core.keys import Key, as_key
from fallline.core.method import Method, Report, State
from fallline.core.problem import Problem
from fallline.core.registry import register
from fallline.core.space import LogUniform, Range


class LowRankAggregator:
    """Averages gradients over workers at low rank, with error feedback.

    Parameters
    ----------
    rank : int, default 2
        At most this rank. A matrix for which r(n + m) numbers are no fewer than nm is averaged whole, where the paper compresses it.
    warm_start : bool, default True
        Start each power iteration from the last one's result (fresh random bases otherwise).
    error_feedback : bool, default True
        Add what the last round left out.
    start_after : int, default 0
        Rounds averaged uncompressed first.
    key : Key or int, default 0
        Of the random bases; must be the same on every worker.
    process_group : torch.distributed process group, optional
        Over which ``powersgd_hook`` averages: the one given to ``DistributedDataParallel``; the default group if None.

    Notes
    -----
    ``aggregate`` knows the tensors by the order they come in, or by ``names``. ``state_dict`` holds errors, bases, the round and what
    was sent; each worker must save its own. ``floats_sent`` and ``exchanges`` count what one worker contributes to means, and how many
    means it takes part in: one for all uncompressed tensors, two for all compressed ones, a call of ``aggregate``.

    A zero matrix says nothing of where to look next: columns of its base that come out zero are drawn anew, on every worker alike. A
    round that is not finite leaves the errors as they were.
    """

    def __init__(self, rank: int = 2, warm_start: bool = True, error_feedback: bool = True, start_after: int = 0,
                 key: Key | int = 0, process_group: Any = None) -> None:
        _check_rank(rank)
        if isinstance(start_after, bool) or not isinstance(start_after, int) or start_after < 0:
            raise ValueError(f"start_after must be a whole number of at least 0 (uncompressed rounds), got {start_after!r}")
        self.rank, self.warm_start, self.error_feedback, self.start_after = rank, warm_start, error_feedback, start_after
        self.key = as_key(key)
        self.process_group = process_group
        self.round = 0
        self.floats_sent = self.exchanges = 0
        self.errors: dict[str, Tensor] = {}
        self.bases: dict[str, Tensor] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._names: dict[int, str] = {}

    def name_of(self, parameter: Tensor) -> str:
        """Return a parameter's name, the order in which it was first seen: buckets are cut anew during a run, names must stay."""
        return self._names.setdefault(id(parameter), str(len(self._names)))

    def aggregate(self, gradients: Sequence[Tensor], mean: Mean, names: Sequence[str] | None = None,
                  advance: bool = True) -> list[Tensor]:
        """Return the aggregated gradients.

        Parameters
        ----------
        gradients : sequence of tensors ``(workers here, *shape)``
            One worker here in a real process, all of them in a simulation.
        mean : callable
            ``(workers here, k) -> (k,)``, the mean over all workers.
        names : sequence of str, optional
            Which tensors these are, when not all come at once.
        advance : bool, default True
            Whether this call ends the round (a round may come in several buckets).

        Raises
        ------
        ValueError
            A tensor has another shape than in earlier rounds: the set of parameters has changed.
        """
        names = [str(i) for i in range(len(gradients))] if names is None else names
        self._check_shapes(names, gradients)

        def counted(stacked: Tensor) -> Tensor:
            self.exchanges += 1
            self.floats_sent += stacked[0].numel()
            return mean(stacked)

        compress = self.round >= self.start_after
        chosen = [compress and self._worth_it(g.shape[1:]) for g in gradients]
        matrices = {n: self._with_error(n, g) for n, g, low in zip(names, gradients, chosen, strict=True) if low}
        whole = [g for g, low in zip(gradients, chosen, strict=True) if not low]
        bases = [self._basis(name, m) for name, m in matrices.items()]
        averaged = iter(mean_together(counted, whole))
        approximations, rights = low_rank_mean(list(matrices.values()), bases, counted)
        for (name, matrix), approximation, right in zip(matrices.items(), approximations, rights, strict=True):
            self._remember(name, matrix, approximation, right)
        self.round += advance
        compressed = iter(approximations)
        return [(next(compressed) if low else next(averaged)).reshape(g.shape[1:])
                for g, low in zip(gradients, chosen, strict=True)]

    def _worth_it(self, shape: Sequence[int]) -> bool:
        if len(shape) < 2:
            return False
        n, m = shape[0], torch.Size(shape[1:]).numel()
        return min(self.rank, n, m) * (n + m) < n * m

    def _with_error(self, name: str, g: Tensor) -> Tensor:
        matrix = g.flatten(2) if g.ndim > 2 else g
        return matrix + self.errors[name] if name in self.errors else matrix

    def _basis(self, name: str, matrix: Tensor) -> Tensor:
        return self.bases[name] if name in self.bases else self._drawn(name, self.round, matrix)

    def _drawn(self, name: str, round: int, matrix: Tensor) -> Tensor:
        n, m = matrix.shape[1:]
        generator = self.key.fold(name, round).generator(matrix.device)
        return torch.randn(m, min(self.rank, n, m), dtype=matrix.dtype, device=matrix.device, generator=generator)

    def _remember(self, name: str, matrix: Tensor, approximation: Tensor, right: Tensor) -> None:
        """Keep the base and the error for the next round; all decisions are tensors, so that the device is not waited for."""
        if self.warm_start:
            usable = torch.isfinite(right).all(0) & (right != 0).any(0)
            self.bases[name] = torch.where(usable, right, self._drawn(name, self.round + 1, matrix))
        if self.error_feedback:
            before = self.errors.get(name, matrix.new_zeros(()))
            self.errors[name] = torch.where(torch.isfinite(right).all(), matrix - approximation, before)

    def _check_shapes(self, names: Sequence[str], gradients: Sequence[Tensor]) -> None:
        for name, g in zip(names, gradients, strict=True):
            shape = tuple(g.shape[1:])
            if self.shapes.setdefault(name, shape) != shape:
                raise ValueError(f"gradient {name!r} must keep its shape {self.shapes[name]}, got {shape}: the set of parameters "
                                 "changed; make a new aggregator for the new parameters")

    def state_dict(self) -> dict[str, Any]:
        """Return errors, bases, shapes, the round, and what was sent."""
        return {"round": self.round, "floats_sent": self.floats_sent, "exchanges": self.exchanges, "errors": dict(self.errors),
                "bases": dict(self.bases), "shapes": dict(self.shapes)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict()``."""
        self.round, self.floats_sent, self.exchanges = state["round"], state["floats_sent"], state["exchanges"]
        self.errors, self.bases, self.shapes = dict(state["errors"]), dict(state["bases"]), dict(state["shapes"])

    def __repr__(self) -> str:
        return (f"LowRankAggregator(rank={self.rank}, warm_start={self.warm_start}, error_feedback={self.error_feedback}, "
                f"start_after={self.start_after}; round {self.round}, {self.floats_sent:,} floats sent)")


def powersgd_hook(aggregator: LowRankAggregator, bucket: Any) -> Any:
    """Aggregate one bucket of ``DistributedDataParallel`` at low rank.

    ``model.register_comm_hook(LowRankAggregator(rank=2), powersgd_hook)``; the same model and key on every rank. A model wrapped with
    ``process_group=g`` needs ``LowRankAggregator(process_group=g)``: a hook is not told the model's group.
    """
    group = aggregator.process_group
    world = torch.distributed.get_world_size(group)

    def mean(stacked: Tensor) -> Tensor:
        total = stacked[0].clone()
        torch.distributed.all_reduce(total, group=group)
        return total / world

    gradients = bucket.gradients()
    names = [aggregator.name_of(p) for p in bucket.parameters()]
    for gradient, averaged in zip(gradients, aggregator.aggregate([g.unsqueeze(0) for g in gradients], mean, names,
                                                                  advance=bucket.is_last()), strict=True):
        gradient.copy_(averaged)
    future: Any = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


# DistributedDataParallel compares annotations with its own types and refuses postponed ones; it accepts none.
powersgd_hook.__annotations__.clear()


def _check_rank(rank: int) -> None:
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank must be a whole number of at least 1, got {rank!r}; 1 to 4 are usual")


@register("powersgd")
@dataclass(frozen=True)
class PowerSGD(Method):
    """SGD with momentum over simulated workers that aggregate at low rank; for real processes see ``powersgd_hook``.

    Every step draws one realisation a worker, so it costs ``workers`` gradients. ``bytes`` and ``messages`` are one worker's: what it
    contributes to means, and how many means it takes part in (up to three a step).

    Parameters
    ----------
    lr : float, default 0.1
        γ.
    momentum : float, default 0.9
        λ.
    rank : int, default 2
    workers : int, default 4
    warm_start, error_feedback : bool, default True
    start_after : int, default 0
        As in ``LowRankAggregator``.
    weight_decay : float, default 0
        ω: adds ω x to what was aggregated, outside compression.
    """

    lr: float = 0.1
    momentum: float = 0.9
    rank: int = 2
    workers: int = 4
    warm_start: bool = True
    error_feedback: bool = True
    start_after: int = 0
    weight_decay: float = 0.0

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-3, 1.0)}

    def __post_init__(self) -> None:
        self._aggregator(Key())  # its checks
        for name in ("lr", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a finite number of at least 0, got {getattr(self, name)!r}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {self.momentum!r}")
        if isinstance(self.workers, bool) or not isinstance(self.workers, int) or self.workers < 1:
            raise ValueError(f"workers must be a whole number of at least 1, got {self.workers!r}")

    def _aggregator(self, key: Key) -> LowRankAggregator:
        return LowRankAggregator(self.rank, self.warm_start, self.error_feedback, self.start_after, key.fold("bases"))

    def init(self, problem: Problem, key: Key) -> State:
        x = tree.clone(problem.x0)
        return {"x": x, "velocity": tree.zeros_like(x), "t": 0, "key": key, "loss": None,
                "aggregator": self._aggregator(key).state_dict()}

    def step(self, problem: Problem, state: State) -> State:
        aggregator = self._aggregator(state["key"])
        aggregator.load_state_dict(state["aggregator"])
        key, x = state["key"].fold(state["t"]), state["x"]
        answers = [problem.draw(key.fold("worker", w)).value_and_gradient(x) for w in range(self.workers)]
        stacked = [torch.stack(leaf) for leaf in zip(*(tree.leaves(g) for _, g in answers), strict=True)]
        floats, exchanges = aggregator.floats_sent, aggregator.exchanges
        flat = iter(aggregator.aggregate(stacked, lambda t: t.mean(0)))
        update = tree.axpy(self.weight_decay, x, tree.map(lambda _: next(flat), x))
        size = tree.leaves(x)[0].element_size()
        problem.counts.add("bytes", size * (aggregator.floats_sent - floats))
        problem.counts.add("messages", aggregator.exchanges - exchanges)
        velocity = tree.axpy(self.momentum, state["velocity"], update)
        moved = tree.axpy(-self.lr, tree.add(update, velocity), x)
        loss = torch.stack([value for value, _ in answers]).mean()
        return {**state, "x": moved, "velocity": velocity, "t": state["t"] + 1, "loss": loss,
                "aggregator": aggregator.state_dict()}

    def report(self, problem: Problem, state: State) -> Report:
        return Report(state["x"], batch_loss=state["loss"])
