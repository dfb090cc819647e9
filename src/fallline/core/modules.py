"""What a problem does to a torch module: call it at other weights, keep its buffers and modes, copy it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fallline.core.keys import Key


def seeded(make: Callable[[], nn.Module], key: Key) -> nn.Module:
    """Return the module that ``make`` makes, its initial weights drawn by ``key``; the global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key.integer() % 2**32)
        return make()


def call(model: nn.Module, x: Mapping[str, Tensor], arguments: tuple[Any, ...]) -> Any:
    """The model's outputs at ``x``; of the buffers in ``x`` the model gets copies, for it may write to them."""
    buffers = {name: x[name].detach().clone() for name, _ in model.named_buffers() if name in x}
    replaced = {id(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers()) if name in x}
    holders: list[dict[str, Any]] = [held for module in model.modules() for held in (module._parameters, module._buffers)]
    kept = [(held, {name: tensor for name, tensor in held.items() if id(tensor) in replaced}) for held in holders]
    try:
        return functional_call(model, {**x, **buffers}, arguments)
    finally:
        for held, tensors in kept:  # functional_call leaves its own in a module that the model has under two names
            held.update(tensors)


@contextmanager
def spare_buffers(model: nn.Module) -> Iterator[None]:
    """Let the model write to copies of its buffers: putting old numbers back into its own would spoil graphs that saved them."""
    kept = [(module, name, buffer) for module in model.modules() for name, buffer in module._buffers.items()]
    for module, name, buffer in kept:
        setattr(module, name, None if buffer is None else buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in kept:
            setattr(module, name, buffer)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode, and every module back into its own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Return a copy of the model; what is in ``memo`` is shared."""
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise TypeError(f"model must be a module that copy.deepcopy can copy, and this {type(model).__name__} is not: {error}. It may "
                        "keep a result of its forward as an attribute, as torch.nn.utils.weight_norm does: use "
                        "torch.nn.utils.parametrizations.weight_norm, or detach what is kept") from error


def load_buffers(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give the model the buffers of a checkpoint; one that has grown since the model was made (a cache) is replaced."""
    for name, value in values.items():
        path, _, own = name.rpartition(".")
        module = model.get_submodule(path)
        buffer = module._buffers.get(own)
        if buffer is not None and buffer.shape == value.shape:
            buffer.copy_(value)
        elif own in module._buffers:
            setattr(module, own, value.clone())


def sharded(model: nn.Module | None) -> bool:
    """Whether the model's parameters are spread over processes."""
    return model is not None and any(hasattr(p, "device_mesh") for p in model.parameters())


def batch_statistics(model: nn.Module) -> list[str]:
    """The names of the modules that normalise a sample by the statistics of its batch."""
    return [name or type(module).__name__ for name, module in model.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None)]
