"""Reading layer inputs and the gradients of layer outputs.

A linear layer y = W x has the gradient ∂ℓ/∂W = Σ s xᵀ over the rows of its batch, s = ∂ℓ/∂y. Kronecker-factored curvature is made of
the x and the s, which autograd meets and forgets; `Taps` hands them out as it meets them.

A convolution is a linear layer over patches: `input_rows` and `output_rows` give the rows x and s of either, so that Σ s xᵀ is the
gradient of the weight as a matrix, ``(out, rest)``.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Receiver = Callable[[nn.Module, Tensor, Tensor], None]


class Taps:
    """Hooks that hand a layer's input and the gradient of its output to a function, whenever a backward pass goes through the layer.

    A layer is tapped in forward passes with gradients enabled, in training mode, if a parameter of its own requires a gradient.
    Layers that are frozen cost nothing. The gradient is taken from the output itself, before anything acts on it in place, so in-place
    activations do no harm; nothing is kept that the backward pass does not keep.

    Parameters
    ----------
    model : nn.Module
        Its modules, itself included.
    kinds : tuple of types
        Which of them are tapped.
    receive : callable ``(module, input, gradient) -> None``
        Called during the backward pass, without gradients enabled, once for each use of the layer in the forward pass: twice for one
        that is used twice, the later use first. ``input`` is the layer's first argument, detached, ``gradient`` that of what it
        returned; both are the tensors of the pass themselves, to be read and not kept.
    evaluating : bool, default False
        Whether layers in evaluation mode are tapped as well.

    Examples
    --------
    >>> with Taps(model, (nn.Linear,), lambda layer, x, s: print(x.shape, s.shape)):
    ...     loss_fn(model(inputs), targets).backward()
    """

    def __init__(self, model: nn.Module, kinds: tuple[type[nn.Module], ...], receive: Receiver, *, evaluating: bool = False) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        self.receive, self.evaluating = receive, evaluating
        chosen = [module for module in model.modules() if isinstance(module, kinds)]
        self._handles = [module.register_forward_hook(self._passed, with_kwargs=True) for module in chosen]

    def _passed(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> None:
        tapped = torch.is_grad_enabled() and (self.evaluating or module.training) and output.requires_grad
        if not tapped or not any(p.requires_grad for p in module.parameters(recurse=False)):
            return
        given = (*arguments, *named.values())[0].detach()

        @torch.no_grad()
        def deliver(gradient: Tensor) -> None:
            if self._handles:
                self.receive(module, given, gradient)

        output.register_hook(deliver)

    def remove(self) -> None:
        """Take the hooks away; backward passes of what was computed under them are no longer told of. May be called twice."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.remove()


def input_rows(module: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
    """The inputs of a linear layer, or the patches of a convolution, one a row: ``(rows, weight[0].numel())``.

    A sequence's positions are rows, and so are a convolution's; of a grouped convolution every group has rows of its own, group after
    group within a sample.
    """
    if isinstance(module, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    x = x if x.ndim == 4 else x.unsqueeze(0)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    patches = F.unfold(padded, module.kernel_size, module.dilation, 0, module.stride)
    return patches.unflatten(1, (module.groups, -1)).transpose(2, 3).flatten(0, 2)


def output_rows(module: nn.Linear | nn.Conv2d, s: Tensor) -> Tensor:
    """What belongs to the rows of `input_rows`, one a row: ``(rows, out)``, of a grouped convolution ``(rows, out / groups)``."""
    if isinstance(module, nn.Linear):
        return s.reshape(-1, s.shape[-1])
    s = s if s.ndim == 4 else s.unsqueeze(0)
    return s.flatten(2).unflatten(1, (module.groups, -1)).transpose(2, 3).flatten(0, 2)
