"""Tests of whether a batch is large enough for its gradient to be trusted, and the batch size that would be.

    G_1, …, G_b per-sample gradients,  g = Σ G_i / b,  s² = Σ (G_i − g)² / (b − 1) coordinate by coordinate

    norm            b⁺ = Σ_j s²_j / (η² ‖g‖²)
    inner product   b⁺ = Var_i ⟨G_i, g⟩ / (η² ‖g‖⁴)
    coordinate      b⁺ = max_j s²_j / (η² g²_j)

    next b = max(b, min(largest, ⌈b⁺⌉))

Norms, inner products and the maximum are over all tensors together. Over processes, or chunks, of n_k samples with means μ_k,

    (Σ n_k − 1) s² = Σ (n_k − 1) s_k² + Σ n_k (μ_k − μ)²,

which for many samples is the mean of the local variances plus the variance of the local means.

Lau, Liu, Kolar: AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods, arXiv 2402.11215. Their code sums inner-product
tests of single tensors, which is another condition; here it is one over all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from fallline.core import tree
from fallline.core.errors import MissingOracle, NonFiniteError
from fallline.core.objective import ModelProblem
from fallline.core.tree import Tree
from fallline.optim.engine.hyperparameters import check_positive
from fallline.optim.engine.state import working_dtype

BatchNorm = nn.modules.batchnorm._BatchNorm
Gradients = Tree | Iterable[Tree] | Callable[[], Iterable[Tree]]


@dataclass(frozen=True)
class GradientMoments:
    """The mean and the squared deviations of per-sample gradients."""

    count: int
    """b, the samples."""
    mean: Tree
    """g."""
    deviations: Tree
    """Σ (G_i − g)², coordinate by coordinate."""

    @classmethod
    def of(cls, per_sample_gradients: Tree) -> Self:
        """The moments of gradients with a leading sample axis."""
        # Squares of half-precision gradients underflow or overflow.
        gradients = tree.map(lambda g: g.detach().to(working_dtype(g.dtype)), per_sample_gradients)
        mean = tree.map(lambda g: g.mean(0), gradients)
        return cls(_rows(gradients), mean, tree.map(lambda g, m: (g - m).square().sum(0), gradients, mean))

    def merged(self, other: GradientMoments) -> GradientMoments:
        """The moments of both sets of samples together."""
        count = self.count + other.count
        step = tree.sub(other.mean, self.mean)
        apart = self.count * other.count / count
        deviations = tree.map(lambda a, b, s: a + b + apart * s.square(), self.deviations, other.deviations, step)
        return GradientMoments(count, tree.axpy(other.count / count, step, self.mean), deviations)

    def pooled(self, group: Any = None) -> GradientMoments:
        """The moments of all processes' samples, each having called this on its own.

        A test of them gives the batch size of all processes together.

        Parameters
        ----------
        group : torch.distributed process group, optional
            By default all processes; without ``torch.distributed`` this one alone.
        """
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self
        mean, deviations = (tree.flatten(part).double() for part in (self.mean, self.deviations))
        sums = torch.cat([mean * self.count, mean.new_tensor([self.count])])
        torch.distributed.all_reduce(sums, group=group)
        count = round(float(sums[-1]))
        everywhere = sums[:-1] / count
        deviations = deviations + self.count * (mean - everywhere).square()
        torch.distributed.all_reduce(deviations, group=group)
        return GradientMoments(count, tree.unflatten(everywhere, self.mean), tree.unflatten(deviations, self.mean))

    @property
    def variance(self) -> Tree:
        """s², unbiased; of one sample there is none: ``ValueError``."""
        if self.count < 2:
            raise ValueError("a batch of one sample has no variance; per-sample gradients must be of 2 samples or more")
        return tree.scale(1 / (self.count - 1), self.deviations)


def _rows(gradients: Tree) -> int:
    counts = {len(g) if g.ndim else 0 for g in tree.leaves(gradients)}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"per_sample_gradients must be tensors with one common leading axis, the samples; got {sorted(counts)} rows")
    return counts.pop()


def per_sample_gradients(realisation: ModelProblem, x: Tree | None = None, micro_batch: int | None = None) -> Iterator[Tree]:
    """Yield the gradient of every sample's loss, in chunks, each a dict of tensors with a leading sample axis.

    The memory is that of ``micro_batch`` copies of the parameters. The tests take the iterator as it is.

    Parameters
    ----------
    realisation : ModelProblem
        ``objective(inputs, targets)``.
    x : dict of Tensor, optional
        By default the weights in place.
    micro_batch : int, optional
        Samples in a chunk; all by default.

    Raises
    ------
    MissingOracle
        If the model has batch normalisation in training mode, where the loss of one sample depends on the others.
    """
    if not isinstance(realisation, ModelProblem):
        raise TypeError("realisation must be objective(inputs, targets), with objective = fl.Objective(model, loss), got a "
                        f"{type(realisation).__name__}")
    refuse_batch_norm(realisation.model)
    count = len(realisation.targets)
    if micro_batch is None or micro_batch >= count:
        yield realisation.per_sample_gradients(x)
        return
    _check_whole("micro_batch", micro_batch, 1)
    for start in range(0, count, micro_batch):
        rows = slice(start, start + micro_batch)
        inputs = realisation.inputs
        chosen = tuple(part[rows] for part in inputs) if isinstance(inputs, tuple) else inputs[rows]
        piece = ModelProblem(realisation.model, realisation.loss_fn, chosen, realisation.targets[rows], name=realisation.name)
        piece.counts = realisation.counts
        yield piece.per_sample_gradients(x)


def refuse_batch_norm(model: nn.Module) -> None:
    """Raise ``MissingOracle`` where a module of the model mixes the samples of a batch."""
    for name, module in model.named_modules():
        if isinstance(module, BatchNorm) and (module.training or module.running_mean is None):
            raise MissingOracle(f"there are no per-sample gradients of a model with batch normalisation in training mode, and "
                                f"{name or 'the model'} is {type(module).__name__}: one sample's loss depends on the others. Use "
                                "GroupNorm or LayerNorm, or keep the module in evaluation mode")


def norm_test(gradients: Tree | GradientMoments | Iterable[Tree], eta: float = 0.5, largest: int | None = None) -> int:
    """Return max(b, min(largest, ⌈Σ_j s²_j / (η² ‖g‖²)⌉)), the next batch size.

    Parameters
    ----------
    gradients : tree of Tensor, GradientMoments, or chunks
        Per-sample gradients by name, ``(b, *shape)``; an iterable of such dicts that together are the batch; or moments.
    eta : float, default 0.5
        η, the relative error of the gradient that is allowed. The authors use 0.1 to 0.5.
    largest : int, optional
        A cap, at most the number of samples there are.

    Raises
    ------
    ValueError
        If b = 1, which has no variance, or g = 0 is all noise, so that no batch is large enough, and there is no cap.
    NonFiniteError
        If there are NaN or infinite entries.
    """
    moments = _moments(gradients)
    noise = sum(float(s.sum()) for s in tree.leaves(moments.variance))
    return _next(moments.count, _ratio(noise, float(tree.norm(moments.mean)) ** 2), eta, largest)


def coordinate_test(gradients: Tree | GradientMoments | Iterable[Tree], eta: float = 0.5, largest: int | None = None) -> int:
    """Return max(b, min(largest, ⌈max_j s²_j / (η² g²_j)⌉)), the next batch size.

    The test of AdaGrad's theory: every coordinate has to be told from its noise. As some g_j is always near 0, ``largest`` decides in
    practice. Coordinates without noise pass. Arguments and errors are those of `norm_test`.
    """
    moments = _moments(gradients)
    ratios = [torch.where(s == 0, 0.0, s / g.square()).max() for s, g in
              zip(tree.leaves(moments.variance), tree.leaves(moments.mean), strict=True) if s.numel()]
    return _next(moments.count, float(torch.stack([ratio.double() for ratio in ratios]).max()), eta, largest)


def inner_product_test(gradients: Gradients, eta: float = 0.5, largest: int | None = None) -> int:
    """Return max(b, min(largest, ⌈Var_i ⟨G_i, g⟩ / (η² ‖g‖⁴)⌉)), the next batch size.

    Weaker than `norm_test`: noise across the gradient does not count. Arguments and errors are those of `norm_test`, except that
    moments do not suffice, and that chunks are looked at twice: give a function that returns them.
    """
    if isinstance(gradients, GradientMoments | Iterator):
        raise TypeError("the inner product test looks at the gradients twice, for their mean and for their products with it: give a "
                        f"dict of them, a list of dicts, or a function that returns the chunks; got {type(gradients).__name__}")
    again = gradients if callable(gradients) else lambda: gradients
    moments = _moments(again())
    products = torch.cat([_products(chunk, moments.mean) for chunk in _chunks(again())])
    if moments.count < 2:
        moments.variance  # noqa: B018  raises
    return _next(moments.count, _ratio(float(products.var()), float(tree.norm(moments.mean)) ** 4), eta, largest)


TESTS: dict[str, Callable[..., int]] = {"norm": norm_test, "inner": inner_product_test, "coordinate": coordinate_test}


def _chunks(gradients: Any) -> Iterable[Tree]:
    """An iterable of trees; lists and dicts of tensors are one tree."""
    if isinstance(gradients, list | tuple) and not gradients:
        raise ValueError("gradients must hold at least one chunk, got none")
    if isinstance(gradients, Tensor | dict) or (isinstance(gradients, list | tuple) and isinstance(gradients[0], Tensor)):
        return [gradients]
    return gradients


def _moments(gradients: Any) -> GradientMoments:
    if isinstance(gradients, GradientMoments):
        return gradients
    found: GradientMoments | None = None
    for chunk in _chunks(gradients):
        own = GradientMoments.of(chunk)
        found = own if found is None else found.merged(own)
    if found is None:
        raise ValueError("gradients must hold at least one chunk, got none")
    return found


def _products(chunk: Tree, direction: Tree) -> Tensor:
    """⟨G_i, v⟩ of every sample."""
    parts = zip(tree.leaves(chunk), tree.leaves(direction), strict=True)
    return torch.stack([g.detach().to(v.dtype).reshape(len(g), -1) @ v.flatten() for g, v in parts]).sum(0)


def _ratio(noise: float, signal: float) -> float:
    return 0.0 if noise == 0 else math.inf if signal == 0 else noise / signal


def _next(size: int, ratio: float, eta: float, largest: int | None) -> int:
    """The size that a ratio of noise to signal asks for: never smaller, and capped."""
    check_positive("eta", eta, "0.5 is typical")
    if largest is not None:
        _check_whole("largest", largest, 1)
    wanted = ratio / eta**2
    if math.isnan(wanted):
        raise NonFiniteError("the per-sample gradients have NaN or infinite entries: no batch size follows from them")
    if math.isinf(wanted) and largest is None:
        raise ValueError("largest must be given where the mean gradient is 0 and its samples are not: no batch is large enough")
    capped = wanted if largest is None else min(float(largest), wanted)
    return max(size, math.ceil(capped))


def _check_whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least} (samples), got {value!r}")
