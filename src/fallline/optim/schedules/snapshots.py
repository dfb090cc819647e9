"""Snapshots of a network, one at the end of each cycle of its schedule, and their average prediction.

    ŷ(x) = (1 / M) Σ_m predict(f(x; θ_m))

Loshchilov, Hutter: SGDR: Stochastic Gradient Descent with Warm Restarts, ICLR 2017, arXiv 1608.03983, section 4.2, after Huang et al.:
Snapshot Ensembles, ICLR 2017, arXiv 1704.00109.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fallline.core.modules import evaluating
from fallline.optim.schedules.base import check_count


class Snapshots:
    """Copies of a model's parameters and buffers, taken whenever it is called: ``WarmRestarts(…, on_cycle_end=Snapshots(model))``.

    Parameters
    ----------
    model : torch.nn.Module
        It may go on training: snapshots are copies, on its device.
    last : int, optional
        How many to keep, the newest ones; all by default.

    Attributes
    ----------
    states : list of dict of Tensor
        Oldest first.
    """

    def __init__(self, model: nn.Module, last: int | None = None) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if last is not None:
            check_count("last", last, 1, "None keeps all")
        self.model, self.last = model, last
        self.states: list[dict[str, Tensor]] = []

    def __call__(self, cycle: int | None = None) -> None:
        """Take a snapshot; the number of the cycle is not needed."""
        self.states.append({name: value.detach().clone() for name, value in self._tensors()})
        if self.last is not None:
            del self.states[: -self.last]

    def __len__(self) -> int:
        return len(self.states)

    def __repr__(self) -> str:
        size = sum(value.nbytes for state in self.states for value in state.values())
        return f"Snapshots({type(self.model).__name__}, {len(self)} taken, {size / 1e6:.3g} MB)"

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.model.named_parameters()
        yield from self.model.named_buffers()

    @torch.no_grad()
    def ensemble(self, *inputs: Any, predict: Callable[[Any], Tensor] | None = None, **keywords: Any) -> Tensor:
        """The snapshots' average prediction for ``model(*inputs, **keywords)``, in evaluation mode; the model is left as it is.

        Parameters
        ----------
        predict : callable ``output -> Tensor``, optional
            What of the output is averaged; the output itself by default. For a network that ends in logits the paper's average is that
            of probabilities: ``predict=lambda z: z.softmax(-1)``.

        Raises
        ------
        RuntimeError
            If there is no snapshot yet.
        """
        if not self.states:
            raise RuntimeError("there is no snapshot yet: pass this object as on_cycle_end of WarmRestarts, or call it")
        total = None
        with evaluating(self.model):
            for state in self.states:
                output = functional_call(self.model, state, inputs, keywords)
                prediction = output if predict is None else predict(output)
                total = prediction if total is None else total + prediction
        assert total is not None
        return total / len(self.states)

    @torch.no_grad()
    def restore(self, index: int = -1) -> None:
        """Write a snapshot's weights to the model; the last one's are the solution that the paper recommends."""
        if not self.states:
            raise RuntimeError("there is no snapshot yet to restore")
        for name, value in self._tensors():
            value.copy_(self.states[index][name])

    def state_dict(self) -> dict[str, Any]:
        """The snapshots."""
        return {"states": [dict(state) for state in self.states]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict()`` gave."""
        own = {name for name, _ in self._tensors()}
        for state in state_dict["states"]:
            if set(state) != own:
                raise ValueError(f"the loaded snapshots are of another model: they differ in {sorted(own ^ set(state))}")
        self.states = [dict(state) for state in state_dict["states"]]
