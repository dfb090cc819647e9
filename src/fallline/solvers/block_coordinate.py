"""Block coordinate descent: which blocks there are, which one moves next, and how.

    choose b;   x_b ← x_b + d,   d from ∇_b f and a matrix H_b ⪰ ∇²_bb f, or ∇²_bb f itself, and the term r(x) = Σ_i r_i(x_i)

    blocks    a partition, any τ variables, or forests of the graph of dependencies        ``core.blocks.schemes``
    select    cyclic, random, or greedy: gs, gsl, gsd, gsq                                 ``core.blocks.selection``
    update    gradient, matrix, newton, exact, message passing                             ``core.blocks.updates``

The greedy rules promise at least the progress of Gauss-Southwell's. Variables at a kink of r (zeros of ‖·‖₁) or at a bound stop
changing after finitely many steps; from then on a Newton block that holds the others converges superlinearly, on quadratics at once.

Nutini, Laradji, Schmidt: Let's Make Block Coordinate Descent Converge Faster: Faster Greedy Rules, Message-Passing, Active-Set
Complexity, and Superlinear Convergence, JMLR 2022, arXiv 1712.08859.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.blocks import (
    SCHEMES,
    SELECTIONS,
    UPDATES,
    BlockModel,
    Blocks,
    BlockStep,
    Fixed,
    Forests,
    Plan,
    QuadraticBlocks,
    Random,
    Selection,
    Sight,
    Update,
    Variable,
    VariableForest,
    block_model,
    prox_gradient,
    slopes,
    tournament,
)
from fallline.core.errors import MissingOracle, WrongProblem
from fallline.core.keys import Key
from fallline.core.method import Method, Report, State
from fallline.core.problem import Problem
from fallline.core.registry import register
from fallline.core.space import Choice, Range
from fallline.core.terms import Term

REFRESH = 1_000  # steps, or blocks where those are more, after which rounding is cleared from what is kept


@dataclass(frozen=True)
class ActiveSet:
    """Which variables the term holds (zeros of ‖·‖₁, bounds), and since when.

    Attributes
    ----------
    active : Tensor (n,) of bool
    since : int
        The step from which on no report of the whole gradient has changed it.
    """

    active: Tensor
    since: int

    def __repr__(self) -> str:
        return f"ActiveSet({int(self.active.sum()):,} of {len(self.active):,} variables held, the same since step {self.since:,})"


@register("block-cd")
@dataclass(frozen=True)
class BlockCD(Method):
    """x_b ← x_b + d for one block b a step, chosen from ``blocks`` by ``select`` and moved by ``update``.

    Parameters
    ----------
    blocks : {"fixed", "variable", "forest", "variable-forest"}, int, lists of int, or an object of ``core.blocks``, default "fixed"
        "fixed" and a number are neighbours, 5 by default (``Fixed``); lists are a partition; "variable" any 5 variables
        (``Variable(size)``); "forest" a partition into forests (``Forests``); "variable-forest" one grown by a greedy rule.
    select : {"cyclic", "random", "gs", "gsl", "gsd", "gsq"} or an object, default "gsd"
        Variable blocks take "random", "gs" and "gsd": for the others the best block is a combinatorial problem.
    update : {"gradient", "matrix", "newton", "exact", "message"} or an object, default "newton"
        "matrix", "message" and "gsq" need fixed bounds on curvature: a ``Quadratic``, or a ``LinearModel`` with loss "squared" or
        "logistic". "newton" and "exact" take any smooth problem, and convex ones only.

    Raises
    ------
    ValueError, WrongProblem, MissingOracle
        Unknown names, blocks that overlap or leave out a variable, a combination or a term that has no meaning here, a problem that
        does not know what is needed.

    Notes
    -----
    Solves a smooth problem, or ``Composite`` of one 1-D tensor and a separable term (``L1``, ``ElasticNet``, ``Box`` …). Fast where
    f is a ``LinearModel`` or a ``Quadratic``, dense or sparse (by columns; a sparse one best on the CPU): a step then costs the
    nonzeros of the block's columns and |b|³, and a greedy one a whole gradient as well, which a ``Quadratic`` has for nothing. Other
    problems give a whole gradient every step. Columns of zeros are left out of partitions where there is no term.

    The gap is ‖∇f‖, with a term ‖D ∘ (x − prox_{r/D}(x − ∇f/D))‖ for D the bounds L_i (1 where none are known, until doubled). Greedy
    methods know it at every step; cyclic and random ones look at the whole gradient once a pass, and report the last one seen.
    ``counts["gradients"]`` are in units of whole gradients, ∂f/∂x_i being 1/n of one; ``counts["coordinates"]`` are variables moved.
    With a term the certificate is an ``ActiveSet``. float64 recommended.
    """

    blocks: Literal["fixed", "variable", "forest", "variable-forest"] | int | Sequence[Sequence[int]] | Blocks = "fixed"
    select: Literal["cyclic", "random", "gs", "gsl", "gsd", "gsq"] | Selection = "gsd"
    update: Literal["gradient", "matrix", "newton", "exact", "message"] | Update = "newton"

    kinds: ClassVar[tuple[str, ...]] = ("smooth", "finite-sum", "training", "composite")
    needs: ClassVar[tuple[str, ...]] = ("gradient", "hvp")
    space: ClassVar[Mapping[str, Range]] = {"select": Choice("gsd", "gs", "random", "cyclic")}

    def __post_init__(self) -> None:
        for name, known in (("blocks", SCHEMES), ("select", SELECTIONS), ("update", UPDATES)):
            value = getattr(self, name)
            if isinstance(value, str) and value not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, or an object of core.blocks, got {value!r}")
        scheme, rule = self._scheme, self._rule
        if isinstance(scheme, Variable) and not (isinstance(rule, Random) or getattr(rule, "measure", "") in ("gs", "gsd")):
            raise ValueError(f"variable blocks take select='random', 'gs' or 'gsd', got {self.select!r}; the best block of the others "
                             "is a combinatorial problem: give fixed blocks, or 'gsd', whose measure bounds theirs")
        if isinstance(scheme, VariableForest) and getattr(rule, "measure", "") not in ("gs", "gsd"):
            raise ValueError(f"a variable forest grows by select='gs' or 'gsd', got {self.select!r}; blocks='forest' is a partition")

    @property
    def _scheme(self) -> Blocks:
        if isinstance(self.blocks, str):
            return SCHEMES[self.blocks]
        return Fixed(self.blocks) if isinstance(self.blocks, int | list | tuple) else self.blocks  # type: ignore[return-value]

    @property
    def _rule(self) -> Selection:
        return SELECTIONS[self.select] if isinstance(self.select, str) else self.select

    @property
    def _move(self) -> Update:
        return UPDATES[self.update] if isinstance(self.update, str) else self.update

    # ---------------------------------------------------------------- the door

    def check(self, problem: Problem) -> None:
        """Raise unless the problem knows what blocks, selection and update ask of it."""
        super().check(problem.smooth if problem.kind == "composite" else problem)
        term, model, update = _term(problem), block_model(problem), self._move
        graph = isinstance(self._scheme, Forests | VariableForest)
        if not model.bounded and (update.bounded or graph or getattr(self._rule, "measure", "") == "gsq"):
            asks = "blocks" if graph else "update" if update.bounded else "select"
            raise MissingOracle(f"BlockCD with {asks}={getattr(self, asks)!r} needs a problem that bounds its curvature: a Quadratic, "
                                f"or a LinearModel with loss 'squared' or 'logistic', got {problem!r}; update='newton' needs none")
        if term is None:
            return
        if not isinstance(problem.x0, Tensor) or problem.x0.ndim != 1:
            raise WrongProblem("BlockCD takes a term with one 1-D tensor of variables; flatten them, or leave the term out")
        if not getattr(term, "separable", False):
            raise WrongProblem(f"BlockCD needs a term that is a sum over variables (L1, ElasticNet, SquaredL2, Box), got {term!r}")
        if not update.proximal or getattr(self._rule, "measure", "") == "gsq":
            raise WrongProblem(f"BlockCD with update={self.update!r} and select={self.select!r} takes no term; 'matrix' and 'gsd' do")
        if term.weak_convexity > 0:
            raise WrongProblem(f"BlockCD needs a convex term, got {term!r}: its proximal step is not unique for small curvatures")

    # ---------------------------------------------------------------- start

    def init(self, problem: Problem, key: Key) -> State:
        model, term = block_model(problem), _term(problem)
        x = tree.flatten(tree.clone(problem.x0)).to(tree.precision(problem.x0)).clone()
        if term is not None:
            x = term.prox(x, 0.0)  # into the domain
        kept = model.start(x)
        bounds = model.coordinate_bounds().clamp(min=torch.finfo(x.dtype).tiny) if model.bounded else torch.ones_like(x)
        plan = self._plan(model, bounds, term)
        state: State = {"x": x, "kept": kept, "L": bounds, "plan": plan, "t": 0, "key": key, "work": 0.0, "failure": "",
                        "gradient": None, "gap": None, "active": torch.zeros_like(x, dtype=torch.bool),
                        "since": torch.zeros((), dtype=torch.int64, device=x.device), "tree": None}
        self._look(problem, model, state)
        if plan.many:
            state["tree"] = tournament.tournament(plan.scores(Sight(x, self._gradient(model, state), bounds, term)))
        return state

    def _plan(self, model: BlockModel, bounds: Tensor, term: Term | None) -> Plan:
        return Plan.of(self._scheme, self._rule, model, bounds, term)

    # ---------------------------------------------------------------- step

    def step(self, problem: Problem, state: State) -> State:
        model, term, plan, t, x = block_model(problem), _term(problem), state["plan"], state["t"] + 1, state["x"]
        greedy, sight = self._rule.greedy, Sight(x, self._gradient(model, state), state["L"], term)
        number, block = plan.choose(sight, state["active"], state["tree"], t - 1, state["key"])
        partial = sight.gradient[block] if greedy else model.partial(x, state["kept"], block)
        restricted = None if term is None else term.restricted(block)
        failure = self._move(BlockStep(model, x, state["kept"], block, partial, state["L"], restricted, number, plan.made))
        if failure:
            return {**state, "failure": failure}
        state = {**state, "t": t}
        problem.counts.add("coordinates", len(block))
        if model.follows or not greedy:
            _spent(problem, model, state, len(block) / len(x))
        blocks = len(plan.partition) if plan.partition is not None else -(-len(x) // max(1, len(block)))
        if not model.counted and t % max(REFRESH, blocks) == 0:
            state["kept"] = model.start(x)
            _spent(problem, model, state, 1.0)
        if (greedy and state["tree"] is None) or model.counted or t % blocks == 0:
            self._look(problem, model, state)
        if state["tree"] is not None:
            assert isinstance(model, QuadraticBlocks) and plan.partition is not None
            numbers = plan.partition.member[model.columns.triplets(block)[0]].unique()
            sight = Sight(x, self._gradient(model, state), state["L"], term)
            tournament.replace(state["tree"], numbers, plan.scores(sight, numbers))
        return state

    @staticmethod
    def _gradient(model: BlockModel, state: State) -> Tensor:
        """The last whole gradient seen: that of the point, where the model or a greedy rule keeps it up to date."""
        gradient: Tensor = model.gradient(state["x"], state["kept"]) if model.follows else state["gradient"]
        return gradient

    def _look(self, problem: Problem, model: BlockModel, state: State) -> None:
        """Take the whole gradient, and see which variables the term holds."""
        term, x, L = _term(problem), state["x"], state["L"]
        if not model.follows:
            _spent(problem, model, state, 1.0)
            state["gradient"] = model.gradient(x, state["kept"])
            if not self._rule.greedy:
                state["gap"] = _gap(term, x, state["gradient"], L)
        if term is not None:
            active = slopes(term, x - self._gradient(model, state) / L, 1 / L)[1] == 0
            state["since"] = torch.where((active != state["active"]).any(), state["t"], state["since"])
            state["active"] = active

    # ---------------------------------------------------------------- report, checkpoints

    def report(self, problem: Problem, state: State) -> Report:
        model, term, x = block_model(problem), _term(problem), state["x"]
        value = model.value(x, state["kept"]) + (0 if term is None else term.value(x))
        solution = tree.unflatten(x.clone(), problem.x0)
        certificate = None if term is None else ActiveSet(state["active"].clone(), int(state["since"]))
        current = model.follows or self._rule.greedy
        gap = _gap(term, x, self._gradient(model, state), state["L"]) if current else state["gap"]
        report = Report(solution, value=value, gap=gap, certificate=certificate)
        if state["failure"]:
            report.status, report.message = "failed", state["failure"]
        return report

    def clone(self, state: State) -> State:
        return {**copy.deepcopy(self.pack(state)), "plan": state["plan"]}

    def pack(self, state: State) -> State:
        return {name: value for name, value in state.items() if name != "plan"}

    def unpack(self, problem: Problem, key: Key, packed: State) -> State:
        return {**packed, "plan": self._plan(block_model(problem), packed["L"], _term(problem))}


def _term(problem: Problem) -> Term | None:
    return problem.term if problem.kind == "composite" else None


def _gap(term: Term | None, x: Tensor, gradient: Tensor, L: Tensor) -> Tensor:
    return torch.linalg.vector_norm(prox_gradient(term, x, gradient, L))


def _spent(problem: Problem, model: BlockModel, state: State, share: float) -> None:
    """Count a share of a gradient that no oracle has counted."""
    if model.counted:
        return
    work = state["work"] + share
    problem.counts.add("gradients", int(work))
    state["work"] = work - int(work)
