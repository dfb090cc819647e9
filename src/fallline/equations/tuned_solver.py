"""Solvers whose parameter a bandit sets, over a sequence of linear systems.

    for each system:  ω = bandit.predict(context),   x = solver(A, b, ω),   bandit.update(iterations of x)

What is learnt from is the iterations that were spent anyway: no second solve, no gradient, no spectrum.

M. Khodak, E. Chow, M. F. Balcan, A. Talwalkar: Learning to relax: setting solver parameters across a sequence of linear system
instances, ICLR 2024, arXiv 2310.02246.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fallline.core.budget import Budget
from fallline.core.constructors import LinearSystem
from fallline.core.driver import solve
from fallline.core.result import Result
from fallline.equations.bandits import Bandit
from fallline.equations.relaxation import SOR


def sor_solve(A: Tensor, b: Tensor, omega: float, *, tol: float = 1e-8, max_iterations: int = 10_000) -> Result:
    """Solve A x = b by ``SOR(omega)`` to ‖b − A x‖ ≤ tol ‖b‖, in at most so many iterations: a solver for ``TunedSolver``."""
    return solve(LinearSystem(A, b), SOR(omega), Budget(steps=max_iterations), tol=tol)


class TunedSolver:
    """A solver with one parameter, that learns the parameter from the systems it solves.

    Parameters
    ----------
    solver : callable ``(A, b, parameter) -> answer``
        The answer is a ``Result``, whose cost are its iterations; or the number of iterations alone. It caps them itself: a parameter
        with which a system takes for ever would say so only once.
    bandit : Bandit
        ``TsallisINF``, or ``ChebCB`` where a context is known, such as the offset c of A + c I.

    Attributes
    ----------
    parameters, costs : list of float
        What was taken for each system so far, and its iterations.

    Examples
    --------
    >>> tuned = TunedSolver(sor_solve, TsallisINF([1.0, 1.3, 1.6, 1.9]))
    >>> tuned.solve(torch.eye(3), torch.ones(3)).x
    tensor([1., 1., 1.])
    """

    def __init__(self, solver: Callable[[Any, Any, float], Any], bandit: Bandit) -> None:
        if not callable(solver):
            raise TypeError(f"solver must be a function of A, b and the parameter, got a {type(solver).__name__}")
        self.solver, self.bandit = solver, bandit
        self.parameters: list[float] = []
        self.costs: list[float] = []

    def solve(self, A: Any, b: Any, context: float | None = None) -> Any:
        """Solve A x = b with the parameter that the bandit gives, and let it learn what that took.

        Raises
        ------
        ValueError
            The solver failed: no parameter is to blame for an A that is not positive definite, and nothing is learnt.
        """
        parameter = self.bandit.predict(context)
        answer = self.solver(A, b, parameter)
        if isinstance(answer, Result) and answer.status in ("failed", "nonfinite"):
            raise ValueError(f"the solver failed with the parameter {parameter:g}: {answer.message}")
        cost = float(answer.nit if isinstance(answer, Result) else answer)
        self.bandit.update(max(cost, 1.0))  # an exact start takes none
        self.parameters.append(parameter)
        self.costs.append(cost)
        return answer

    def __repr__(self) -> str:
        return f"TunedSolver({getattr(self.solver, '__name__', self.solver)!s}, {self.bandit!r}; {len(self.costs):,} systems solved)"
