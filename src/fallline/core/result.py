"""Results: what came out of a run, in SciPy's names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fallline.core import tree
from fallline.core.tree import Tree

SHOWN = ("observed_loss", "observed_gap", "observed_residual_norm", "observed_upper", "observed_value", "gap", "value",
         "batch_loss")


@dataclass(repr=False)
class Result:
    """What a run gave.

    Attributes
    ----------
    x : tree
        The solution.
    fun, gap : float or None
        The objective at ``x`` and the gap as the method reported them; None where it does not know them.
    status : str
        "converged" (the gap is within ``tol``, or the method says so), "budget", "stopped" (by a callback), "interrupted",
        "nonfinite", "failed".
    message : str
        The same in a sentence.
    nit : int
        Steps taken.
    counts : dict of str to int
        What was asked: values, gradients, hvps, samples, …
    seconds : float
        Time in the method and the oracles.
    trace : list of dict
        Rows over the run: step, seconds, the counts, what the method reported (``value``, ``gap``, ``batch_loss``), and what was
        observed (``observed_value``, ``observed_loss`` …).
    certificate : object
        What the method offers as proof.
    """

    x: Tree
    status: str
    message: str
    nit: int
    fun: float | None = None
    gap: float | None = None
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    trace: list[dict[str, float]] = field(default_factory=list)
    certificate: Any = None
    name: str = ""

    @property
    def success(self) -> bool:
        """Whether the run converged."""
        return self.status == "converged"

    @property
    def nfev(self) -> int:
        """Evaluations of the objective: values and gradients."""
        return self.counts.get("values", 0) + self.counts.get("gradients", 0)

    @property
    def njev(self) -> int:
        """Gradients asked."""
        return self.counts.get("gradients", 0)

    @property
    def nhev(self) -> int:
        """Hessians and Hessian-vector products asked."""
        return self.counts.get("hessians", 0) + self.counts.get("hvps", 0)

    def to_frame(self) -> Any:
        """Return the trace as a pandas DataFrame."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_frame needs pandas: pip install pandas") from error
        return pandas.DataFrame(self.trace)

    def plot(self, x: str = "step", y: str | None = None) -> Any:
        """Return a plotly figure of the trace: ``y`` (what was observed, else the gap, else the value) against ``x``.

        ``x`` and ``y`` are columns of the trace; a column that is positive throughout is drawn on a logarithmic axis.
        """
        import plotly.graph_objects as go

        columns = {name for row in self.trace for name in row}
        if y is None:
            y = next((name for name in SHOWN if name in columns), "value")
        for axis, name in (("x", x), ("y", y)):
            if name not in columns:
                raise ValueError(f"{axis} must be a column of the trace, got {name!r}; there are {sorted(columns)}")
        rows = [row for row in self.trace if x in row and y in row]
        figure = go.Figure(go.Scatter(x=[r[x] for r in rows], y=[r[y] for r in rows], mode="lines", name=self.name))
        positive = all(r[y] > 0 for r in rows)
        figure.update_layout(template="simple_white", title=self.name, xaxis_title=x, yaxis_title=y,
                             yaxis_type="log" if positive else "linear")
        return figure

    def __repr__(self) -> str:
        lines = [f"{self.name}: {self.message}" if self.name else self.message]
        figures = {"status": self.status, "fun": self.fun, "gap": self.gap, "nit": self.nit}
        lines += [f"  {name:>8}: {value:.6g}" if isinstance(value, float) else f"  {name:>8}: {value}"
                  for name, value in figures.items() if value is not None]
        leaves = tree.leaves(self.x)
        shown = str(leaves[0].tolist()) if len(leaves) == 1 and leaves[0].numel() <= 8 else \
            f"{tree.size(self.x):,} numbers in {len(leaves)} tensor{'s' if len(leaves) > 1 else ''}"
        lines.append(f"  {'x':>8}: {shown}")
        lines.append(f"  {'counts':>8}: " + (", ".join(f"{v:,} {k}" for k, v in self.counts.items()) or "nothing"))
        lines.append(f"  {'seconds':>8}: {self.seconds:.3g}")
        return "\n".join(lines)
