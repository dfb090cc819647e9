"""A network and its loss as a problem.

``Objective(model, loss)(inputs, targets)`` is the loss on one batch, frozen: the same data, the same dropout masks however often
it is evaluated, and batch-norm buffers that move once. It is a torch closure, and it can be asked for values and gradients
elsewhere, Hessian-vector products, the model's outputs. ``Training`` adds data, and draws such realisations.

The base oracle is plain: weights in place, the module's own forward and backward. That is the one that stays right under
DistributedDataParallel and ``fully_shard``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from fallline.core import autodiff
from fallline.core.counts import Counts
from fallline.core.errors import MissingOracle
from fallline.core.keys import Key, as_key
from fallline.core.modules import batch_statistics, call, copied, evaluating, load_buffers, sharded, spare_buffers
from fallline.core.operators.linear import LinearOperator
from fallline.core.problem import Problem
from fallline.core.samples import batch_indices, data_tuple
from fallline.core.tree import Tree

Loss = Callable[[Any, Tensor], Tensor]


@dataclass
class Frozen:
    """What all views of one realisation share: the random states that its evaluations replay, and whether buffers are done moving.

    States are by device, "cpu" and the CUDA devices that the model is on: wherever a mask may be drawn.
    """

    states: dict[str, Tensor] | None
    moved: bool = False


class ModelProblem(Problem):
    """The loss of a module on one batch; a valid torch closure.

    Every oracle takes its point as a dict of parameters by name; ``None`` means the module's weights in place.
    """

    def __init__(self, model: nn.Module, loss_fn: Loss, inputs: Any, targets: Tensor, *, name: str = "objective",
                 key: Key | None = None, samples: int | None = None) -> None:
        self.model, self.loss_fn, self.inputs, self.targets = model, loss_fn, inputs, targets
        self.variables = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._shared = Frozen(None if key is None else {device: key.generator(device).get_state() for device in self._devices()})
        count = (len(targets) if isinstance(targets, Tensor) and targets.ndim else 1) if samples is None else samples
        super().__init__(self.variables, self._own(), kind="training", name=name, samples=count)

    def _own(self) -> dict[str, Callable[..., Any]]:
        return {"value": self._evaluate, "per_sample_gradients": self._per_sample}

    # ---------------------------------------------------------------- evaluation

    def _devices(self) -> list[str]:
        return ["cpu", *sorted({str(p.device) for p in self.model.parameters() if p.device.type == "cuda"})]

    def _states(self) -> dict[str, Tensor]:
        """Of the global generators."""
        return {device: torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state(device) for device in self._devices()}

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """Replay the random masks of the first evaluation, and let buffers move only in that one."""
        shared = self._shared
        if shared.states is None:  # made by hand: the first evaluation is an ordinary one, later ones replay it
            shared.states = self._states()
            yield
        else:
            elsewhere = {device: state for device, state in shared.states.items() if device != "cpu"}
            with torch.random.fork_rng(list(elsewhere)), spare_buffers(self.model) if shared.moved else nullcontext():
                torch.set_rng_state(shared.states["cpu"])
                for device, state in elsewhere.items():
                    torch.cuda.set_rng_state(state, device)
                yield
        shared.moved = True

    def _call(self, x: Mapping[str, Tensor] | None, *arguments: Any) -> Any:
        """The model's outputs for any inputs, at ``x`` and under this realisation's masks."""
        with self._frozen():
            if x is None or x is self.variables:
                return self.model(*arguments)
            if sharded(self.model):
                raise MissingOracle("a sharded model can be evaluated only at its own weights: copy the point into the "
                                    "parameters, evaluate, and copy it back")
            return call(self.model, x, arguments)

    def _forward(self, x: Mapping[str, Tensor] | None) -> Any:
        return self._call(x, *(self.inputs if isinstance(self.inputs, tuple) else (self.inputs,)))

    def _evaluate(self, x: Mapping[str, Tensor] | None) -> Tensor:
        return autodiff.checked_scalar(self.loss_fn(self._forward(x), self.targets), "loss_fn")

    def __call__(self) -> Tensor:
        """Evaluate at the weights in place: zero, forward, backward; return the detached loss."""
        self._count_gradient()
        for parameter in self.variables.values():
            parameter.grad = None
        with torch.enable_grad():
            loss = autodiff.differentiable(self._evaluate(None), f"the loss of {self.name!r}")
            loss.backward()
        return loss.detach()

    # ---------------------------------------------------------------- oracles, with the weights in place as default

    def value(self, x: Tree | None = None) -> Tensor:
        return super().value(x)

    def value_and_gradient(self, x: Tree | None = None, wrt: int | str | None = None) -> tuple[Tensor, Tree]:
        if x is not None and x is not self.variables:
            return super().value_and_gradient(x, wrt)
        kept = {name: p.grad for name, p in self.variables.items()}
        loss = self()
        gradient = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in self.variables.items()}
        for name, p in self.variables.items():
            p.grad = kept[name]
        return loss, gradient if wrt is None else gradient[str(wrt)]

    def gradient(self, x: Tree | None = None, wrt: int | str | None = None) -> Tree:
        return self.value_and_gradient(x, wrt)[1]

    def hvp(self, x: Tree | None, v: Tree) -> dict[str, Tensor]:
        """Return ``∇²f(x) v`` by name; needs a module that autograd can differentiate twice."""
        if sharded(self.model):
            raise MissingOracle("exact Hessian-vector products need whole weights, and this model is sharded; "
                                "difference two gradients instead")
        self.counts.add("hvps")
        return autodiff.hvp(self._evaluate, self.variables if x is None else x, v, f"the loss of {self.name!r}")

    def hessian_operator(self, x: Tree | None = None) -> LinearOperator:
        """Return ``∇²f`` as an operator on the flattened parameters of ``x``, which may be some of them, with the rest in place."""
        if sharded(self.model):
            raise MissingOracle("the Hessian needs whole weights, and this model is sharded; gather them into a bare copy of the model")
        return super().hessian_operator(self.variables if x is None else x)

    def observe(self, x: Tree) -> dict[str, float]:
        """Return the value at ``x`` under this realisation's masks; nothing is counted or drawn, and no buffer moves."""
        aside, states = copy.copy(self), self._shared.states
        aside._shared = Frozen(self._states() if states is None else states, moved=True)
        aside._oracles = aside._own()
        return super(ModelProblem, aside).observe(x)

    def per_sample_gradients(self, x: Tree | None = None) -> Tree:
        return super().per_sample_gradients(x)

    def outputs(self, x: Mapping[str, Tensor] | None = None) -> Any:
        """Return the model's outputs on this batch, with their graph."""
        return self._forward(x)

    def loss(self, outputs: Any, targets: Tensor | None = None) -> Tensor:
        """Return the loss of given outputs, by default against this batch's targets."""
        return self.loss_fn(outputs, self.targets if targets is None else targets)

    def _per_sample(self, x: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        if sharded(self.model):
            raise MissingOracle("per-sample gradients need whole weights, and this model is sharded")

        def one(parameters: Mapping[str, Tensor], row: Any, target: Tensor) -> Tensor:
            rows = row if isinstance(row, tuple) else (row,)
            return self.loss_fn(call(self.model, parameters, tuple(r.unsqueeze(0) for r in rows)), target.unsqueeze(0))

        point = {n: p.detach() for n, p in (self.variables if x is None else x).items()}
        with self._frozen():
            return torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0), randomness="different")(
                point, self.inputs, self.targets)

    def per_sample_jacobians(self, x: Mapping[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return every sample's outputs and their derivatives by the parameters in ``x``, which may be some of them.

        Returns
        -------
        Tensor, shape (b, …)
            The outputs, as a batch gives them.
        dict of Tensor, each of shape (b, c, …)
            By name of the parameter, whose shape comes last; c is the number of outputs of a sample.

        Raises
        ------
        MissingOracle
            The model is sharded, or normalises a sample by its batch.
        """
        if sharded(self.model):
            raise MissingOracle("per-sample Jacobians need whole weights, and this model is sharded; gather them into a bare copy")
        if together := batch_statistics(self.model):
            raise MissingOracle("per-sample Jacobians need outputs that depend on one sample each, and batch normalisation makes them "
                                f"depend on the batch, in {', '.join(together[:3])}; call eval() on such layers, or use GroupNorm")
        self.counts.add("jacobians")

        def one(parameters: Mapping[str, Tensor], row: Any) -> tuple[Tensor, Tensor]:
            rows = row if isinstance(row, tuple) else (row,)
            outputs = call(self.model, parameters, tuple(r.unsqueeze(0) for r in rows)).squeeze(0)
            return outputs.reshape(-1), outputs

        point = {n: p.detach() for n, p in (self.variables if x is None else x).items()}
        with self._frozen(), torch.no_grad():  # no graph but the transform's own
            jacobians, outputs = torch.func.vmap(torch.func.jacrev(one, has_aux=True), in_dims=(None, 0), randomness="different")(
                point, self.inputs)
        return outputs, jacobians


class Objective:
    """What is minimised in a hand-written loop: ``Objective(model, loss_fn)(inputs, targets)``.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(inputs)``, or ``model(*inputs)`` if inputs is a tuple.
    loss_fn : callable ``(outputs, targets) -> 0-d tensor``
        The mean loss over the batch.

    Examples
    --------
    >>> objective = fl.Objective(model, torch.nn.functional.cross_entropy)
    >>> optimizer.step(objective(x, y))
    """

    def __init__(self, model: nn.Module, loss_fn: Loss) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if not callable(loss_fn):
            raise TypeError(f"loss_fn must be a function (outputs, targets) -> loss, got {type(loss_fn).__name__}")
        self.model, self.loss_fn = model, loss_fn
        self.counts = Counts()

    def __call__(self, inputs: Any, targets: Tensor) -> ModelProblem:
        realisation = ModelProblem(self.model, self.loss_fn, inputs, targets)
        realisation.counts = self.counts
        return realisation

    def __repr__(self) -> str:
        return f"Objective({type(self.model).__name__}, {getattr(self.loss_fn, '__name__', self.loss_fn)}; {self.counts!r})"


class Training(Problem):
    """min over a network's weights of its mean loss on data.

    ``x`` is a dict of parameters (and buffers, in solutions) by name. ``draw(key)`` gives a mini-batch as a ``ModelProblem``;
    ``value`` and ``gradient`` take all training data, under the same random masks at every call; ``observe`` evaluates the validation
    data. Buffers (batch-norm statistics) move where mini-batches are evaluated in a run, belong to that run, and come with its
    solution; where ``x`` has none, those of the model given are used. ``parts`` are the losses on single samples.

    Parameters
    ----------
    model : nn.Module
        Copied, and never changed: methods train copies as well.
    loss_fn : callable ``(outputs, targets) -> 0-d tensor``
        The mean loss over a batch.
    data, validation : pairs of tensors ``(inputs, targets)``
        ``validation`` defaults to the training data.
    batch_size : int, default 64, or all data if there is less
    metrics : mapping of str to callable ``(outputs, targets) -> number``, optional
        Further figures that ``observe`` reports, such as accuracy.
    """

    def __init__(self, model: nn.Module, loss_fn: Loss, data: Sequence[Tensor], *, validation: Sequence[Tensor] | None = None,
                 batch_size: int | None = None, metrics: Mapping[str, Callable[..., Any]] | None = None, **options: Any) -> None:
        Objective(model, loss_fn)  # the same checks
        self.model, self.loss_fn, self.metrics = copied(model), loss_fn, dict(metrics or {})
        self.data = data_tuple(data)
        self.validation = self.data if validation is None else data_tuple(validation)
        if len(self.data) != 2 or len(self.validation) != 2:
            raise ValueError(f"data must be a pair (inputs, targets), got {len(self.data)} tensors")
        batch_size = min(64, len(self.data[0])) if batch_size is None else batch_size
        if not 1 <= batch_size <= len(self.data[0]):
            raise ValueError(f"batch_size must be between 1 and the {len(self.data[0])} data points, got {batch_size}")
        self.batch_size = batch_size
        variables = {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}
        self._persistent = {n for n, _ in self.model.named_buffers()} & set(self.model.state_dict())
        self._moves = False  # only a run's view moves its buffers
        n = len(self.data[0])
        super().__init__(variables, self._whole(), **{"kind": "training", "samples": n, "parts": n, **options})

    def _whole(self) -> dict[str, Callable[..., Any]]:
        """The oracles of all data."""

        def everything() -> ModelProblem:
            inputs, targets = self.data
            whole = self._realisation(inputs, targets, Key().fold("masks"))
            whole._shared.moved = True  # only mini-batches move buffers
            return whole

        return {"value": lambda x: everything()._evaluate(x), "per_sample_gradients": lambda x: everything()._per_sample(x)}

    def _realisation(self, inputs: Tensor, targets: Tensor, key: Key) -> ModelProblem:
        """The loss on these data, its random masks fixed by ``key``."""
        return ModelProblem(self.model, self.loss_fn, inputs, targets, name=self.name, key=key)

    def on(self, model: nn.Module) -> Self:
        """Return this problem over a run's own copy of the model, whose buffers mini-batches move."""
        view = copy.copy(self)
        view.model, view._moves = model, True
        view._oracles = view._whole()
        return view

    def counted(self, counts: Counts) -> Self:
        """Return a view that counts on ``counts``, over the same parameters and buffers of its own."""
        return self.on(copied(self.model, {id(p): p for p in self.model.parameters()}))._billed(counts)

    @property
    def buffers(self) -> dict[str, Tensor]:
        return dict(self.model.named_buffers())

    @property
    def persistent_buffers(self) -> dict[str, Tensor]:
        return {name: buffer for name, buffer in self.buffers.items() if name in self._persistent}

    def load_buffers(self, values: Mapping[str, Tensor]) -> None:
        load_buffers(self.model, values)

    def draw(self, key: Key, size: int | None = None, indices: Tensor | None = None, at: Tree | None = None) -> ModelProblem:
        """Return the loss on a mini-batch, drawn uniformly with replacement, its random masks fixed by ``key``."""
        key = as_key(key)
        inputs, targets = self.data
        chosen = batch_indices(len(targets), key.fold("batch"), size, indices, self.batch_size).to(targets.device)
        realisation = self._realisation(inputs[chosen], targets[chosen], key.fold("masks"))
        realisation._shared.moved = not self._moves
        realisation.counts = self.counts
        return realisation

    @torch.no_grad()
    def observe(self, x: Tree) -> dict[str, float]:
        """Return the validation loss and metrics at ``x``, in evaluation mode; nothing is counted, no buffer moves."""
        with evaluating(self.model), spare_buffers(self.model):
            outputs = call(self.model, x, (self.validation[0],))
        figures = {"loss": float(self.loss_fn(outputs, self.validation[1]))}
        return figures | {name: float(metric(outputs, self.validation[1])) for name, metric in self.metrics.items()}


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of samples whose largest output is the target class (the last dimension is the classes)."""
    return (outputs.argmax(-1) == targets).double().mean()


__all__ = ["Loss", "ModelProblem", "Objective", "Training", "accuracy"]
