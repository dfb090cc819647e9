"""Recurrent networks, autoregressive samplers and chains of layers, solved many states at once, with what they give in order.

    recurrent network   s_t = cell(x_t, s_{t−1});       adjoint  δ_t = J_{t+1}ᵀ δ_{t+1} + ∂L/∂s_t
    sampler             s_t = draw(model(s)_t, noise_t)
    layers              s_t = f_t(s_{t−1}), or f_t(x, s_1 … s_{t−1}) where every layer sees all before it

The adjoint is a triangular system as well, solved by the same rounds: gradients come from one application of all equations at once, so
that what is kept for them does not grow with the rounds.

Y. Song, C. Meng, R. Liao, S. Ermon, ICML 2021, arXiv 2002.03629.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from fallline.core.counts import Counts
from fallline.core.fixed_point import attach
from fallline.core.result import Result
from fallline.equations.parallel_solve import ParallelMethod, parallel_solve

Draw = Callable[[Tensor, Tensor], Tensor]


def parallel_rnn(cell: Callable[..., Any], x: Tensor, s0: Tensor | None = None, method: ParallelMethod = "jacobi", *,
                 block: int | None = None, tol: float = 0.0, adjoint_tol: float = 0.0, counts: Counts | None = None) -> Result:
    """Run a recurrent cell over a sequence, all times at once.

    Parameters
    ----------
    cell : RNNCell, GRUCell, LSTMCell, or callable ``(x_t, s) -> s``
        On batches ``(N, …)``.
    x : Tensor (T, B, …)
    s0 : Tensor (B, H), optional
        Zeros for a cell that has a ``hidden_size``. The state of an LSTM is (B, 2H): hidden beside cell.
    method, block, tol
        As for ``parallel_solve``.
    adjoint_tol : float, default 0
        The rounds of the backward pass end when the adjoint changes by no more than this in proportion to its norm.
    counts : Counts, optional
        The backward pass counts its rounds there, as ``adjoint_maps``.

    Returns
    -------
    Result
        ``x`` is (T, B, H), with gradients in the cell's parameters, in ``x`` and in ``s0``.
    """
    _check_deterministic(cell)
    step, width = _stepping(cell)
    if not isinstance(x, Tensor) or x.ndim < 2 or len(x) == 0:
        raise ValueError(f"x must be of shape (T, B, ...) with T at least 1, got {_shape(x)}")
    if s0 is None:
        if width is None:
            raise ValueError(f"s0 must be given for a {type(cell).__name__}, which has no hidden_size")
        s0 = x.new_zeros(x.shape[1], width)
    first = s0

    def h(states: Tensor, where: slice) -> Tensor:
        times, before = x[where], torch.cat([first.unsqueeze(0), states[:-1]])[where]
        return step(times.flatten(0, 1), before.flatten(0, 1)).unflatten(0, times.shape[:2])

    result = parallel_solve(h, s0.new_zeros(len(x), *s0.shape), method, block=block, tol=tol, check=False)
    result.x = attach(lambda states: h(states, slice(None)), result.x, tol=adjoint_tol, max_iterations=len(x) + 1, counts=counts)
    return result


def _stepping(cell: Callable[..., Any]) -> tuple[Callable[[Tensor, Tensor], Tensor], int | None]:
    """The cell as a function of an input and one tensor, and how wide that is."""
    width = getattr(cell, "hidden_size", None)
    if not isinstance(cell, nn.LSTMCell):
        return cell, width
    return lambda x, s: torch.cat(cell(x, s.chunk(2, -1)), -1), 2 * cell.hidden_size


def gumbel_argmax(logits: Tensor, noise: Tensor) -> Tensor:
    """Draw categories by argmax(logits + noise) over the last dimension; with standard Gumbel noise they have the softmax's law."""
    return (logits + noise).argmax(-1)


def parallel_sample(model: Callable[[Tensor], Tensor], noise: Tensor, draw: Draw = gumbel_argmax, method: ParallelMethod = "jacobi", *,
                    init: Tensor | None = None, start: int | None = None, block: int | None = None, tol: float = 0.0) -> Result:
    """Sample from an autoregressive model, all positions at once.

    Parameters
    ----------
    model : callable, samples (B, T, …) to outputs (B, T, …)
        The output at t depends on samples before t only: a masked network. One call is a round.
    noise : Tensor (B, T, …)
        All that is random, such as Gumbel noise or uniform numbers; the same noise gives the same sample whatever the method.
    draw : callable ``(outputs, noise) -> samples``, default ``gumbel_argmax``
        Position by position: argmax, an inverse distribution function, mean + scale · noise.
    method, block, tol
        As for ``parallel_solve``. Every method calls the model on all positions, so that results agree bit for bit.
    init : Tensor (B, T, …), optional
        Token 0 for ``gumbel_argmax``, else zeros like the noise.
    start : int, optional
        For a causal language model, whose output at t is about the token after t: the token that comes before the first.

    Returns
    -------
    Result
        ``x`` is (B, T, …); without gradients.

    Raises
    ------
    ValueError
        The model uses later samples, or is random (call ``.eval()``).
    """
    if not isinstance(noise, Tensor) or noise.ndim < 2 or 0 in noise.shape[:2]:
        raise ValueError(f"noise must be of shape (B, T, ...), got {_shape(noise)}")
    _check_deterministic(model)
    if init is None:
        init = torch.zeros(noise.shape[:2], dtype=torch.long, device=noise.device) if draw is gumbel_argmax else torch.zeros_like(noise)

    def h(states: Tensor, where: slice) -> Tensor:
        samples = states.transpose(0, 1)
        if start is not None:
            samples = torch.cat([torch.full_like(samples[:, :1], start), samples[:, :-1]], 1)
        return draw(model(samples), noise).transpose(0, 1)[where].to(states.dtype)

    result = parallel_solve(h, init.transpose(0, 1), method, block=block, tol=tol)
    result.x = result.x.transpose(0, 1)
    return result


def parallel_layers(layers: Iterable[nn.Module], x: Tensor, connect: Literal["chain", "dense"] = "chain",
                    method: ParallelMethod = "jacobi", *, init: list[Tensor] | None = None, block: int | None = None, tol: float = 0.0,
                    adjoint_tol: float = 0.0, counts: Counts | None = None) -> Result:
    """Evaluate a stack of layers, all of them at once.

    A chain carries information by a layer a round, and takes as many rounds as layers. In a dense block, where every layer sees all
    before it, later layers change little once the first are there.

    Parameters
    ----------
    layers : nn.Sequential, or iterable of modules
    x : Tensor
    connect : {"chain", "dense"}
        What layer t takes: the output of the one before; or x and all outputs before it, beside each other in dimension 1.
    method, block, tol, adjoint_tol, counts
        As for ``parallel_rnn``.
    init : list of tensors, optional
        The outputs to start from, such as those of another input; zeros by default.

    Returns
    -------
    Result
        ``x`` is the list of all outputs, the last of them the network's, with gradients.

    Raises
    ------
    ValueError
        A layer is random or keeps statistics: dropout or batch normalisation in training mode.
    """
    stack = list(layers)
    if not stack:
        raise ValueError("layers must hold at least one module, got none")
    if connect not in ("chain", "dense"):
        raise ValueError(f"connect must be 'chain' or 'dense', got {connect!r}")
    for layer in stack:
        _check_deterministic(layer)

    def taken(states: list[Tensor], t: int, first: Tensor) -> Tensor:
        if connect == "chain":
            return states[t - 1] if t else first
        return torch.cat([first, *states[:t]], 1)

    def h(states: list[Tensor], where: slice) -> list[Tensor]:
        return [stack[t](taken(states, t, x)) for t in range(len(stack))[where]]

    if init is None:
        shaped: list[Tensor] = []
        for t, layer in enumerate(stack):  # on the meta device nothing is computed
            weights = {name: w.to("meta") for name, w in (*layer.named_parameters(), *layer.named_buffers())}
            shaped.append(torch.func.functional_call(layer, weights, taken(shaped, t, x.to("meta"))))
        init = [torch.zeros(s.shape, dtype=s.dtype, device=x.device) for s in shaped]
    result = parallel_solve(h, init, method, block=block, tol=tol, check=False)
    result.x = attach(lambda states: h(states, slice(None)), result.x, tol=adjoint_tol, max_iterations=len(stack) + 1, counts=counts)
    return result


def _check_deterministic(model: Any) -> None:
    for name, module in model.named_modules() if isinstance(model, nn.Module) else ():
        if isinstance(module, _DropoutNd | _BatchNorm) and module.training:
            raise ValueError(f"the model must give the same output for the same input, and its {type(module).__name__} {name!r} is in "
                             "training mode; call model.eval()")


def _shape(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
