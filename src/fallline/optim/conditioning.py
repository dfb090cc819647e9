"""Weight conditioning: layers whose weight matrix is equilibrated in every forward pass.

    layer(x) = P(W) W x + b,      P(W) = diag(1 / ‖W_1‖, …, 1 / ‖W_m‖)

W stays the parameter, and P follows it. There is no learnable gain, which is how it differs from weight normalisation. By default the
gradient passes through P: what reaches row w = ‖w‖ ŵ from the gradient g of the layer's weight is (I − ŵŵᵀ) g / ‖w‖. Equilibrated rows
are within √m of the best diagonal scaling of m rows in condition number (van der Sluis, 1969).

Saratchandran, Wang, Lucey: Weight Conditioning for Smooth Optimization of Neural Networks, ECCV 2024, arXiv 2409.03424.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

Mode = Literal["row", "col", "row_col"]
# The dimension of the norms, in the order in which they are divided out.
DIMENSIONS: dict[str, tuple[int, ...]] = {"row": (1,), "col": (0,), "row_col": (1, 0)}
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
SMALLEST = 1e-12


def equilibrate(matrix: Tensor, mode: Mode = "row", detach: bool = False) -> Tensor:
    """Return ``matrix`` with its rows, its columns, or its rows and then its columns divided by their norms.

    Parameters
    ----------
    matrix : Tensor, shape (m, n)
    mode : {"row", "col", "row_col"}, default "row"
        After "row_col" the columns have norm 1, the rows no longer.
    detach : bool, default False
        Treat the norms as constants in the gradient.

    Notes
    -----
    Rows and columns of norm up to 1e-12 stay as they are: dividing them by a clamped norm would multiply their gradient by 1e12.
    """
    for dimension in DIMENSIONS[mode]:
        constant = matrix.detach()
        empty = torch.linalg.vector_norm(constant, dim=dimension, keepdim=True) <= SMALLEST
        # The norm has no derivatives at 0: where it is not used it is that of ones.
        used = torch.where(empty, 1, constant if detach else matrix)
        matrix = matrix / torch.where(empty, 1, torch.linalg.vector_norm(used, dim=dimension, keepdim=True))
    return matrix


class Conditioning(nn.Module):
    """The parametrization that ``condition`` registers: a kernel is seen as its matrix (out, in · k · k)."""

    def __init__(self, mode: Mode, detach: bool) -> None:
        super().__init__()
        self.mode, self.detach = mode, detach

    def forward(self, weight: Tensor) -> Tensor:
        return equilibrate(weight.flatten(1), self.mode, self.detach).view_as(weight)

    def extra_repr(self) -> str:
        return f"mode={self.mode!r}, detach={self.detach}"


def condition(module: nn.Module, names: Iterable[str] | None = None, mode: Mode = "row", detach: bool = False) -> nn.Module:
    """Make weights W of ``module`` act as P(W) W from now on, in place; return the module.

    Parameters
    ----------
    module : nn.Module
        A model or a single layer.
    names : iterable of str, optional
        Weights as ``module.named_parameters()`` names them, of two dimensions or more. By default those of all linear and convolution
        layers but the last, which is taken to be the output; of an only layer, its own.
    mode : {"row", "col", "row_col"}, default "row"
        As in ``equilibrate``; the paper's is "row".
    detach : bool, default False
        Whether P is a constant in the gradient. The paper does not say which its authors use; the default is the true gradient.

    Raises
    ------
    ValueError
        No such weight, fewer than two dimensions, conditioned already, shared by two layers, a transposed convolution's, groups with
        a mode other than "row", or an unknown mode. Nothing is changed.

    Notes
    -----
    The parameter itself stays the same object: an optimizer made before goes on moving it, with the new gradients. What that
    optimizer has remembered (momentum, second moments) is of the old parametrisation, and its learning rate was chosen for it: make the
    optimizer afterwards. A weight's name becomes ``layer.parametrizations.weight.original``, in ``state_dict`` too, so load a plain
    checkpoint before conditioning. The outputs do not depend on the lengths of the rows: weight decay acts on them through the learning
    rate alone, which is effectively lr / ‖w‖². Memory and time O(parameters) a forward pass;
    ``torch.nn.utils.parametrize.cached()`` computes P(W) W once for several passes.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}; equilibrate(matrix) is for a single matrix")
    if not isinstance(mode, str) or mode not in DIMENSIONS:
        raise ValueError(f"mode must be {', '.join(map(repr, DIMENSIONS))}, got {mode!r}")
    if not isinstance(detach, bool):
        raise ValueError(f"detach must be True or False, got {detach!r}")
    chosen = _hidden(module) if names is None else _named(module, names)
    for layer, name in chosen:
        _check(module, layer, name, mode)
    for layer, name in chosen:
        parametrize.register_parametrization(layer, name, Conditioning(mode, detach))
    return module


def remove_conditioning(module: nn.Module) -> nn.Module:
    """Put P(W) W in the place of every conditioned W, in place; return the module, which computes the same as before.

    Parameters stay the same objects. Raises ``ValueError`` if nothing is conditioned. A deep copy of a conditioned model shares classes
    with it (torch's, for any parametrization), so baking one breaks the other: bake, copy, and condition again.
    """
    for _, layer, name, _ in _conditioned(module):
        parametrize.remove_parametrizations(layer, name, leave_parametrized=True)
    return module


@dataclass(frozen=True, repr=False)
class ConditionReport:
    """Condition numbers σ_max / σ_min by weight: of W (``before``) and of what the layer applies (``after``)."""

    before: dict[str, float]
    after: dict[str, float]

    def __repr__(self) -> str:
        width = max(map(len, self.before))
        rows = (f"{name:<{width}}  {self.before[name]:>10.4g}  {self.after[name]:>10.4g}" for name in self.before)
        return "\n".join([f"{'condition number':<{width}}  {'of W':>10}  {'of P(W) W':>10}", *rows])


def condition_report(model: nn.Module) -> ConditionReport:
    """Return the condition numbers of every conditioned weight, in float64; infinite where a singular value is 0.

    Raises ``ValueError`` if nothing is conditioned.
    """
    found = {f"{path}.{name}".lstrip("."): (getattr(layer, name), original) for path, layer, name, original in _conditioned(model)}
    return ConditionReport({name: _condition_number(original) for name, (_, original) in found.items()},
                           {name: _condition_number(weight) for name, (weight, _) in found.items()})


def _condition_number(weight: Tensor) -> float:
    matrix = weight.detach().flatten(1)
    singular = torch.linalg.svdvals(matrix.to(torch.complex128 if matrix.is_complex() else torch.float64))
    return float(singular[0] / singular[-1])


def _hidden(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """The weights of all linear and convolution layers but the last."""
    layers = [layer for layer in module.modules() if isinstance(layer, LAYERS)]
    hidden = layers[:-1] or layers
    if not hidden:
        raise ValueError(f"module must have linear or convolution layers, and this {type(module).__name__} has none; "
                         "name other weights of two dimensions or more with names=")
    for layer in hidden:
        if parametrize.is_parametrized(layer, "weight"):
            raise ValueError(f"the weight of {layer} is parametrised already; remove_conditioning(module) bakes a conditioned one, "
                             "torch.nn.utils.parametrize.remove_parametrizations any other")
    return [(layer, "weight") for layer in hidden]


def _named(module: nn.Module, names: Iterable[str]) -> list[tuple[nn.Module, str]]:
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ValueError(f"names must be a list of parameter names, got {names!r}; names=[{names!r}]")
    known = dict(module.named_parameters(remove_duplicate=False))
    chosen = []
    for name in dict.fromkeys(names):
        path, _, own = name.rpartition(".")
        if f"{path}.parametrizations.{own}.original".lstrip(".") in known:
            raise ValueError(f"names has {name!r}, which is parametrised already; remove_conditioning(module) bakes a conditioned one")
        if name not in known:
            raise ValueError(f"names has {name!r}, which is no parameter; known are {', '.join(known)}")
        if known[name].ndim < 2:
            raise ValueError(f"names has {name!r} of shape {tuple(known[name].shape)}: fewer than two dimensions have no rows to "
                             "condition; leave it out")
        chosen.append((module.get_submodule(path), own))
    if not chosen:
        raise ValueError("names must name at least one weight, got none; leave names out to condition all layers but the last")
    return list({(id(layer), own): (layer, own) for layer, own in chosen}.values())


def _check(module: nn.Module, layer: nn.Module, name: str, mode: Mode) -> None:
    """Refuse a weight that another layer holds as well, and kernels that are not the matrix (out, in · k · k)."""
    weight = getattr(layer, name)
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise ValueError(f"{type(layer).__name__} has no weight yet; run the model once on an example first")
    paths = [path for path, p in module.named_parameters(remove_duplicate=False) if p is weight]
    if len({id(module.get_submodule(path.rpartition(".")[0])) for path in paths}) > 1:
        raise ValueError(f"{' and '.join(paths)} are one weight, which conditioning one layer would untie; name others with names=")
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        raise ValueError(f"{paths[0]!r} is the kernel of a transposed convolution, whose rows are inputs; leave it out of names")
    if mode != "row" and getattr(layer, "groups", 1) > 1:
        raise ValueError(f"mode={mode!r} needs convolutions without groups, and {paths[0]!r} has groups={layer.groups}; use mode='row'")


def _conditioned(module: nn.Module) -> list[tuple[str, nn.Module, str, Tensor]]:
    """The layer of every conditioned weight with its path, the weight's name there, and W."""
    found = []
    for path, layer in module.named_modules():
        for name, parts in getattr(layer, "parametrizations", {}).items():
            if any(isinstance(part, Conditioning) for part in parts):
                found.append((path, layer, name, parts.original))
    if not found:
        raise ValueError(f"module must have conditioned weights, and this {type(module).__name__} has none; call condition(module)")
    return found
