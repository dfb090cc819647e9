"""Early stopping of hopeless settings, by any of Optuna's pruners that judges a trial by what others had at the same point.

Every trial of a side is held against the trials of the same side and tuning seed that earlier rounds finished: who is stopped
depends on whole rounds, never on which worker was faster, so that a continued run stops the same trials. Trials at fresh seeds
are never stopped. A stopped trial counts among the side's trials, and its setting cannot be chosen. Only the latest rivals are held
against a trial, a hundred of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fallline.study.identity import digest, fingerprint
from fallline.study.sources import StudyError

if TYPE_CHECKING:
    from optuna.pruners import BasePruner

POINTS = 60
"""A trial is looked at so often over its budget: the points of its curve, and the steps a pruner knows."""
UNPRUNED_TRIALS, UNPRUNED_SHARE, RIVALS = 4, 0.25, 100


@dataclass(frozen=True)
class Rivals:
    """What a pruner knows beside the trial it judges: for each earlier trial, whether it was finished and its values by point."""

    pruner: Any
    trials: tuple[tuple[bool, Mapping[int, float]], ...]

    @property
    def identity(self) -> str:
        """Equal for equal pruners and rivals."""
        return digest([fingerprint(self.pruner), [[done, sorted(values.items())] for done, values in self.trials]])

    def judge(self) -> Callable[[int, float], bool]:
        """A function of the point and the value there that says whether to stop."""
        import optuna
        from optuna.trial import TrialState, create_trial

        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(pruner=self.pruner)
        optuna.logging.set_verbosity(level)
        for done, values in self.trials:
            state = TrialState.COMPLETE if done else TrialState.PRUNED
            study.add_trial(create_trial(state=state, value=list(values.values())[-1], intermediate_values=dict(values)))
        trial = study.ask()

        def hopeless(point: int, value: float) -> bool:
            trial.report(value, point)
            return bool(trial.should_prune())

        return hopeless


def pruner_of(prune: str | BasePruner | None) -> BasePruner | None:
    """Accept ``"median"`` (worse than the median of the earlier trials, from a quarter of the budget on), or a pruner of Optuna's."""
    if prune is None:
        return None
    import optuna

    if prune == "median":
        return optuna.pruners.MedianPruner(UNPRUNED_TRIALS, n_warmup_steps=int(UNPRUNED_SHARE * POINTS))
    if isinstance(prune, optuna.pruners.BasePruner):
        return prune
    raise StudyError(f"prune must be None, 'median' or one of optuna.pruners, got {prune!r}")
