"""Feedforward computations as triangular systems of equations, solved many states at once.

    s_t = h_t(s_1 … s_{t−1}),   t = 1 … T

    Jacobi               s_t ← h_t(s) for all t at once                     after k rounds s_1 … s_k are exact
    Gauss-Seidel         s_t ← h_t(s) for t = 1, 2, …                       the ordinary computation
    Jacobi-Gauss-Seidel  block after block, Jacobi inside of each           evaluates one block at a time
    Gauss-Seidel-Jacobi  all blocks at once, in order inside of each        exact after as many sweeps as there are blocks

Jacobi ends when no state changes any more, at the latest after T rounds; what it gains is T over the rounds, given the means to
evaluate so many states beside each other. The solution is that of the ordinary computation, exactly.

Y. Song, C. Meng, R. Liao, S. Ermon: Accelerating feedforward computation via parallel nonlinear equation solving, ICML 2021,
arXiv 2002.03629.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.checks import check_count
from fallline.core.fixed_point.implicit import check_tolerance
from fallline.core.keys import Key, normal_like
from fallline.core.result import Result

ParallelMethod = Literal["jacobi", "gs", "jacobi_gs", "gs_jacobi"]
METHODS = ("jacobi", "gs", "jacobi_gs", "gs_jacobi")
States = Tensor | list[Tensor]
Equations = Callable[[Any, slice], Any]


def parallel_solve(h: Equations, init: States, method: ParallelMethod = "jacobi", *, block: int | None = None, tol: float = 0.0,
                   check: bool = True) -> Result:
    """Solve s_t = h_t(s_1 … s_{t−1}) for t = 1 … T.

    Parameters
    ----------
    h : callable ``(states, where) -> states``
        The values of the equations at the positions of the slice ``where`` of ``range(T)``, from all current states: a tensor with a
        row for each position, or a list. h_t may use states before t only, and no randomness: what is random is drawn before, and
        held.
    init : Tensor (T, ...), or list of T tensors of any shapes
        Where to start: zeros, or a guess. Of floating point, or whole numbers such as tokens.
    method : {"jacobi", "gs", "jacobi_gs", "gs_jacobi"}
    block : int, optional
        States in a block; √T by default.
    tol : float, default 0
        Jacobi's rounds, and sweeps, end when no entry changes by more than this. 0 gives what the ordinary computation gives, bit for
        bit where the arithmetic of a state does not depend on which others are computed beside it; for whole numbers nothing else is
        taken.
    check : bool, default True
        Evaluate h at the first, the middle and the last position, with later states perturbed.

    Returns
    -------
    Result
        ``x`` are the states; ``nit`` the rounds, which are calls of h after another. ``counts``: ``rounds``, ``states`` evaluated in
        all, ``width`` (the most in one round), ``sweeps`` over all blocks of gs_jacobi. ``gap`` is the last change.

    Raises
    ------
    ValueError
        h_t depends on s_t or later states, or differs between two evaluations; or an argument is out of range.

    Notes
    -----
    In gs_jacobi a state uses the latest values of other blocks, those of the present sweep among them, for a position of all blocks is
    evaluated by one call of h; in the paper those of the sweep before.

    Examples
    --------
    >>> u = torch.tensor([1.0, 2.0, 3.0])
    >>> sums = parallel_solve(lambda s, where: (u + torch.cat([s.new_zeros(1), s[:-1]]))[where], torch.zeros(3))
    >>> sums.x, sums.nit
    (tensor([1., 3., 6.]), 3)
    """
    length = _checked(init, method, tol)
    size = math.isqrt(length - 1) + 1 if block is None else block
    check_count("block", size, "the square root of the number of states is typical")
    with torch.no_grad():
        rounds = _Rounds(h, init.detach().clone() if isinstance(init, Tensor) else [s.detach() for s in init])
        if check:
            _check_causal(h, rounds.states, length)
        if method == "gs_jacobi":
            rounds.sweeps(size, tol)
        else:
            width = {"jacobi": length, "gs": 1, "jacobi_gs": size}[method]
            for first in range(0, length, width):
                rounds.jacobi(first, min(first + width, length), tol)
    return rounds.result(method, tol)


class _Rounds:
    """The states, and what has been spent on them."""

    def __init__(self, h: Equations, states: Any) -> None:
        self.h, self.states, self.change, self.exact = h, states, 0.0, True
        self.counts = {"rounds": 0, "states": 0, "width": 0}

    def jacobi(self, first: int, last: int, tol: float) -> None:
        """Rounds over a block that uses nothing after it: exact after as many as it has states."""
        for left in reversed(range(last - first)):
            self.change = self._round(slice(first, last))
            if self._ended(left, tol):
                break

    def sweeps(self, size: int, tol: float) -> None:
        """Sweeps in which all blocks go forward by a position at a time."""
        length, self.counts["sweeps"] = len(self.states), 0
        for left in reversed(range(0, length, size)):
            self.change = max(self._round(slice(offset, None, size)) for offset in range(min(size, length)))
            self.counts["sweeps"] += 1
            if self._ended(left, tol):
                break

    def _ended(self, left: int, tol: float) -> bool:
        """Whether the last change allows to leave out the rounds that are left, of which a tolerance may have needed some."""
        ended = self.change <= tol
        self.exact &= not ended or left == 0 or self.change == 0
        return ended

    def _round(self, where: slice) -> float:
        new, old = self.h(self.states, where), self.states[where]
        if len(new) != len(old) or any(a.shape != b.shape for a, b in zip(new, old, strict=True)):
            raise ValueError(f"h must return the states at {where}, {_shapes(old)}, got {_shapes(new)}")
        change = _difference(new, old)
        self.states[where] = new
        self.counts["rounds"] += 1
        self.counts["states"] += len(old)
        self.counts["width"] = max(self.counts["width"], len(old))
        return change

    def result(self, method: str, tol: float) -> Result:
        rounds, finite = self.counts["rounds"], tree.all_finite(self.states)
        reached = "every equation holds" if self.exact else f"no state changed by more than {tol:g} in its last round,"
        message = f"{reached} after {rounds:,} rounds for {len(self.states):,} states" if finite else "a state is NaN or infinite"
        return Result(x=self.states, status="converged" if finite else "nonfinite", message=message, nit=rounds, gap=self.change,
                      counts=self.counts, name=f"{method} on {len(self.states):,} equations")


def _checked(init: States, method: str, tol: float) -> int:
    """The number of states, once the arguments are what they can be."""
    if not isinstance(init, Tensor) and not (isinstance(init, list) and all(isinstance(s, Tensor) for s in init)):
        raise TypeError(f"init must be a tensor with a row for every state, or a list of tensors, got a {type(init).__name__}")
    if (init.ndim if isinstance(init, Tensor) else 1) == 0 or len(init) == 0:
        raise ValueError("init must hold at least one state, got none")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    check_tolerance(tol)
    if tol and not all(s.is_floating_point() or s.is_complex() for s in tree.leaves(init)):
        raise ValueError(f"tol must be 0 for whole numbers, whose next change may be larger, got {tol!r}")
    return len(init)


def _shapes(states: Any) -> str:
    return f"shape {tuple(states.shape)}" if isinstance(states, Tensor) else f"shapes {[tuple(s.shape) for s in states]}"


def _difference(new: Any, old: Any) -> float:
    """The largest change of an entry; infinite where one is NaN, which Python's ``max`` would lose."""
    if not isinstance(new, Tensor):
        return max(_difference(a, b) for a, b in zip(new, old, strict=True))
    if new.dtype == torch.bool:
        new, old = new.long(), old.long()
    change = float((new - old).abs().max()) if new.numel() else 0.0
    return math.inf if math.isnan(change) else change


def _check_causal(h: Equations, states: Any, length: int) -> None:
    for position in sorted({0, length // 2, length - 1}):
        here = slice(position, position + 1)
        value, again = h(states, here)[0], h(states, here)[0]
        if not torch.equal(torch.nan_to_num(value), torch.nan_to_num(again)):
            raise ValueError(f"h differs between two evaluations at position {position}; draw what is random before, and hold it")
        perturbed = list(states)
        perturbed[position:] = _perturbed(perturbed[position:], Key().fold("perturbation", position))
        other = h(torch.stack(perturbed) if isinstance(states, Tensor) else perturbed, here)[0]
        if _difference(value, other) > 1e-6 * float(value.abs().max()):
            raise ValueError(f"h at position {position} must use earlier states only, and changes by {_difference(value, other):.3g} "
                             "when states from there on are perturbed; mask them")


def _perturbed(states: list[Tensor], key: Key) -> Iterator[Tensor]:
    for number, state in enumerate(states):
        if state.is_floating_point() or state.is_complex():
            yield state + 1 + normal_like(state, key.fold(number).generator())
        else:  # a token stays one of those there are
            yield ~state if state.dtype == torch.bool else torch.where(state > 0, state - 1, state + 1)
