"""How near a layer's curvature is to a Kronecker product, and how near the products come that optimizers use.

For a weight of m × n and gradients G_s of single samples,

    H = mean_s vec(G_s) vec(G_s)ᵀ  (row-major),        cos(A ⊗ B) = mean_s ⟨G_s, A G_s B⟩ / (‖H‖_F ‖A‖_F ‖B‖_F)

    optimal      the best A ⊗ B:  A ← mean_s G_s B G_sᵀ,  B ← mean_s G_sᵀ A G_s,  each normalised, from B = I
    shampoo²     A = L,  B = R:  L = mean_s G_s G_sᵀ,  R = mean_s G_sᵀ G_s, one round of that iteration from identities
    shampoo      A = L^(1/2),  B = R^(1/2)
    k-fac        A = mean s sᵀ,  B = mean x xᵀ, from the layer's inputs x and output gradients s

H rearranged to (m², n²) has the best product as its top singular pair, which is what the iteration finds; it is never formed, and costs
S (m² n + m n²) a round.

Morwani, Shapira, Vyas, Malach, Kakade, Janson: A New Perspective on Shampoo's Preconditioner, arXiv 2406.17748.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fallline.core.curvature import drawn_labels
from fallline.core.keys import Key, as_key
from fallline.core.linalg import sqrtm
from fallline.core.modules import evaluating
from fallline.core.objective import ModelProblem, Training
from fallline.core.taps import Taps, input_rows, output_rows
from fallline.core.tree import Tree
from fallline.landscape.evaluation import checked_point

Labels = Literal["sampled", "real"]
APPROXIMATIONS = ("optimal", "shampoo2", "shampoo", "kfac")
TOLERANCE, ROUNDS = 1e-12, 1_000
Factors = tuple[Tensor, Tensor]


@dataclass(frozen=True, repr=False)
class KroneckerReport:
    """Cosines between Kronecker products and the curvature that they approximate.

    Attributes
    ----------
    cosines : dict of dict
        ``cosines[weight][name]`` in [0, 1], for the names "optimal", "shampoo2", "shampoo" and, where the weight belongs to a linear
        layer or an ungrouped convolution, or to several of them and to no other layer, "kfac". NaN for a weight without gradients.
    shapes : dict
        Of the weights as matrices, (m, n).
    samples, batch : int
        How many gradients there are, and of how many data points each is the mean.
    labels : str
        "sampled": H is the Gauss-Newton matrix of cross-entropy; "real": the empirical Fisher matrix, or AdaGrad's.
    """

    cosines: Mapping[str, Mapping[str, float]]
    shapes: Mapping[str, tuple[int, int]]
    samples: int
    batch: int
    labels: str

    def to_frame(self) -> Any:
        """Return the cosines as a pandas DataFrame, a row a weight."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_frame needs pandas: pip install 'fallline[frames]'") from error
        return pandas.DataFrame.from_dict(self.cosines, orient="index", columns=list(APPROXIMATIONS))

    def plot(self) -> Any:
        """Return a plotly figure: the cosines by weight."""
        import plotly.graph_objects as go

        figure = go.Figure()
        for name in APPROXIMATIONS:
            found = {weight: row[name] for weight, row in self.cosines.items() if name in row}
            figure.add_bar(x=list(found), y=list(found.values()), name=name)
        return figure.update_layout(template="simple_white", yaxis_title="cosine", title=f"labels {self.labels}, batch {self.batch}")

    def __repr__(self) -> str:
        lines = [f"KroneckerReport: {self.samples:,} gradients, labels {self.labels}, batch {self.batch}"]
        for weight, row in self.cosines.items():
            m, n = self.shapes[weight]
            lines.append(f"  {weight} ({m} × {n}): " + ", ".join(f"{name} {cosine:.4f}" for name, cosine in row.items()))
        return "\n".join(lines)


def kronecker_report(problem: Training | ModelProblem, x: Tree | None = None, *, names: Sequence[str] | None = None,
                     labels: Labels = "sampled", batch: int = 1, key: Key | int = 0) -> KroneckerReport:
    """Compare a network's curvature, weight by weight, with the best Kronecker product, with Shampoo's and with K-FAC's.

    Parameters
    ----------
    problem : Training or ModelProblem
        ``Training`` (all training data), or ``Objective(model, loss)(inputs, targets)``; the loss is a mean over samples. The model is
        evaluated in evaluation mode. Per-sample gradients of all parameters are held at once.
    x : tree, optional
        The point, in float32 or float64; by default ``problem.x0``, the model's own weights.
    names : sequence of str, optional
        The weights to look at; by default all of two or more dimensions. Trailing dimensions are merged: (out, rest).
    labels : {"sampled", "real"}, default "sampled"
        Labels drawn from the model's softmax, anew for every sample, or those of the data.
    batch : int, default 1
        Data points of one gradient, in the order of the data; a rest is left out. Gauss-Newton times 1/batch has the same cosines.
    key : Key or int, default 0
        Of the labels.

    Raises
    ------
    TypeError
        If the problem is no network's.
    ValueError
        If a name is unknown or has fewer than two dimensions, labels is neither, batch is out of range, or labels cannot be sampled.
    """
    if not isinstance(problem, Training | ModelProblem):
        raise TypeError(f"problem must be Training(model, loss, data) or Objective(model, loss)(inputs, targets), got "
                        f"{type(problem).__name__}")
    if labels not in get_args(Labels):
        raise ValueError(f"labels must be 'sampled' or 'real', got {labels!r}")
    point = checked_point(problem, problem.x0 if x is None else x, "x")
    chosen = _checked_names(point, names)
    inputs, targets = problem.data if isinstance(problem, Training) else (problem.inputs, problem.targets)
    if isinstance(batch, bool) or not isinstance(batch, int) or not 1 <= batch <= len(targets):
        raise ValueError(f"batch must be a whole number between 1 and the {len(targets)} data points, got {batch!r}")
    with evaluating(problem.model):
        if labels == "sampled":
            targets = _sampled(problem, inputs, targets, point, as_key(key))
        realisation = ModelProblem(problem.model, problem.loss_fn, inputs, targets, name=problem.name)
        realisation.counts = problem.counts
        gradients = realisation.per_sample_gradients(point)
        factored = _kfac(realisation, point)
    count = len(targets) // batch
    cosines, shapes = {}, {}
    for name in chosen:
        G = gradients[name][:count * batch].double().flatten(2).unflatten(0, (count, batch)).mean(1)
        cosines[name], shapes[name] = _cosines(G, factored.get(name)), (G.shape[1], G.shape[2])
    return KroneckerReport(cosines, shapes, count, batch, labels)


def _checked_names(point: Mapping[str, Tensor], names: Sequence[str] | None) -> list[str]:
    weights = [name for name, p in point.items() if p.ndim >= 2]
    if names is None:
        return weights
    wrong = [name for name in names if name not in weights]
    if wrong or isinstance(names, str):
        raise ValueError(f"names must be weights of two or more dimensions, such as {weights[:3]}, got {wrong or names}")
    return list(names)


def _sampled(problem: Training | ModelProblem, inputs: Any, targets: Tensor, point: Tree, key: Key) -> Tensor:
    """Labels from the model's softmax."""
    with torch.no_grad():
        logits = ModelProblem(problem.model, problem.loss_fn, inputs, targets).outputs(point)
    if not isinstance(logits, Tensor) or logits.ndim < 2 or logits.shape[-1] < 2 or targets.is_floating_point():
        raise ValueError("labels can be sampled only of a classifier, with logits (samples, …, classes) and whole numbers as targets; "
                         "use labels='real'")
    return drawn_labels(logits, targets, key.fold("labels").generator())[0]


def _kfac(realisation: ModelProblem, point: Mapping[str, Tensor]) -> dict[str, Factors]:
    """Σ s sᵀ and Σ x xᵀ over all rows, by the name of the weight; every use of it adds its rows, in one layer or in several."""
    names, found = _linear_weights(realisation), dict[str, Factors]()

    def add(module: Any, x: Tensor, s: Tensor) -> None:
        name = names.get(module)
        if name is None:
            return
        rows, outputs = input_rows(module, x).double(), output_rows(module, s).double()
        A, B = found.get(name, (0.0, 0.0))
        found[name] = (A + outputs.mT @ outputs, B + rows.mT @ rows)

    with Taps(realisation.model, (nn.Linear, nn.Conv2d), add, evaluating=True):
        realisation.value_and_gradient(point)
    return found


def _linear_weights(realisation: ModelProblem) -> dict[nn.Module, str]:
    """The name of the weight of every linear layer and ungrouped convolution, if no layer of another kind has it as well."""
    names = {id(p): name for name, p in realisation.variables.items()}
    owned: dict[nn.Module, int] = {}
    elsewhere: set[int] = set()
    for module in realisation.model.modules():
        linear = isinstance(module, nn.Linear | nn.Conv2d) and getattr(module, "groups", 1) == 1
        for name, p in module.named_parameters(recurse=False):
            if linear and name == "weight":
                owned[module] = id(p)
            else:
                elsewhere.add(id(p))
    return {module: names[p] for module, p in owned.items() if p in names and p not in elsewhere}


def _cosines(G: Tensor, kfac: Factors | None) -> dict[str, float]:
    """Of every product with H, from gradients of shape (S, m, n)."""
    norm = _norm(G)
    L, R = _left(G, None), _right(G, None)
    products = {"optimal": _optimal(G), "shampoo2": (L, R), "shampoo": (sqrtm(L), sqrtm(R))}
    if kfac is not None:
        products["kfac"] = kfac
    return {name: _cosine(G, A, B, norm) for name, (A, B) in products.items()}


def _left(G: Tensor, B: Tensor | None) -> Tensor:
    """mean_s G_s B G_sᵀ."""
    return torch.tensordot(G if B is None else G @ B, G, dims=([0, 2], [0, 2])) / len(G)


def _right(G: Tensor, A: Tensor | None) -> Tensor:
    """mean_s G_sᵀ A G_s."""
    return torch.tensordot(G, G if A is None else A @ G, dims=([0, 1], [0, 1])) / len(G)


def _norm(G: Tensor) -> Tensor:
    """‖H‖_F, from H or from the gradients' Gram matrix, whichever is smaller."""
    flat = G.flatten(1)
    return torch.linalg.matrix_norm(flat.mT @ flat if flat.shape[1] < len(flat) else flat @ flat.mT) / len(G)


def _optimal(G: Tensor) -> Factors:
    """The top singular pair of the rearranged H, by alternating products."""
    B = torch.eye(G.shape[2], dtype=G.dtype, device=G.device) / math.sqrt(G.shape[2])
    value = torch.zeros((), dtype=G.dtype, device=G.device)
    for _ in range(ROUNDS):
        A = _left(G, B)
        A = A / torch.linalg.matrix_norm(A)
        B = _right(G, A)
        before, value = value, torch.linalg.matrix_norm(B)
        B = B / value
        if not bool(value - before > TOLERANCE * value):
            break
    return A, B


def _cosine(G: Tensor, A: Tensor, B: Tensor, norm: Tensor) -> float:
    return float((A * _left(G, B)).sum() / (torch.linalg.matrix_norm(A) * torch.linalg.matrix_norm(B) * norm))
