"""The norm of the gradient in every step of any torch optimizer, on the device until it is asked for.

    G_t = ‖g_t‖₂ or ‖g_t‖₁ over all parameters of all groups

Defazio, Cutkosky, Mehta, Mishchenko: When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement, arXiv 2310.07831.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

ORDERS = {"l2": 2, "l1": 1}


class GradNormRecorder:
    """``with GradNormRecorder(optimizer) as record: …train…``, then ``refine(record.norms)``.

    It reads the gradients that each ``optimizer.step()`` leaves behind, so what is clipped before the step is recorded clipped, which
    bends the refined schedule; a rule that leaves its own step there (``SMB``, ``SSO``, ``GradReg``) is recorded by that. With
    clipping, collect what ``clip_grad_norm_`` returns instead: it is the ℓ2 norm before it.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Any.
    norm : {"l2", "l1"}, default "l2"
        ℓ2 for gradient descent with or without momentum, ℓ1 for rules of Adam's kind, whose schedule is ``refine(norms, p=1)``.

    Raises
    ------
    ValueError
        If ``norm`` is another one.
    """

    def __init__(self, optimizer: Optimizer, norm: Literal["l2", "l1"] = "l2") -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch optimizer, got {type(optimizer).__name__}")
        if norm not in ORDERS:
            raise ValueError(f"norm must be 'l2' (gradient descent) or 'l1' (rules of Adam's kind), got {norm!r}")
        self.optimizer, self.norm = optimizer, norm
        self._norms: list[Tensor] = []
        self._handle: Any = None

    def __enter__(self) -> GradNormRecorder:
        if self._handle is not None:
            raise RuntimeError("this GradNormRecorder is recording already; make another one, or leave its with block first")
        self._handle = self.optimizer.register_step_post_hook(self._record)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()
        self._handle = None

    @torch.no_grad()
    def _record(self, optimizer: Optimizer, arguments: Any, keywords: Any) -> None:
        order = ORDERS[self.norm]
        found = [_norm(p.grad, order) for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if found:
            self._norms.append(torch.linalg.vector_norm(torch.stack([norm.to(found[0]) for norm in found]), order))

    @property
    def norms(self) -> Tensor:
        """All norms so far, ``(T,)``; steps in which no parameter had a gradient are left out."""
        return torch.stack(self._norms) if self._norms else torch.empty(0)

    def __len__(self) -> int:
        return len(self._norms)

    def __repr__(self) -> str:
        return f"GradNormRecorder({type(self.optimizer).__name__}, norm={self.norm!r}, {len(self):,} steps)"


def _norm(g: Tensor, order: int) -> Tensor:
    """The norm of one gradient, in float32 where its own precision is less: a sum of many numbers would not fit."""
    values = g.coalesce().values() if g.is_sparse else g
    norm = torch.linalg.vector_norm(values, order, dtype=torch.float32 if g.dtype in (torch.float16, torch.bfloat16) else None)
    whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of a sharded one
    return whole
