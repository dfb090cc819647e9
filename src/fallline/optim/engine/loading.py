"""Loading a state dictionary without torch's cast to the parameter's dtype.

torch converts floating-point state to the dtype of its parameter, which would round float32 state of bfloat16
parameters. Here every entry keeps the dtype it was saved with; hooks see what they would see in torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from torch import Tensor

from . import door

if TYPE_CHECKING:
    from .optimizer import Optimizer


def load_state(optimizer: Optimizer, state_dict: dict[str, Any], load: Callable[[Any], None]) -> None:
    """Run torch's own loader with the state taken out, and put it in before the post hooks run."""
    _check_groups(optimizer, state_dict)
    taken: dict[str, Any] = {}

    def take(_: Any, given: dict[str, Any]) -> dict[str, Any]:
        taken.update(given)
        return {**given, "state": {}}

    def put(_: Any) -> None:
        saved = chain.from_iterable(group["params"] for group in taken["param_groups"])
        own = chain.from_iterable(group["params"] for group in optimizer.param_groups)
        for key, p in zip(saved, own, strict=True):
            if key in taken["state"]:
                optimizer.state[p] = _on_device(taken["state"][key], p)

    before = optimizer.register_load_state_dict_pre_hook(take)
    after = optimizer.register_load_state_dict_post_hook(put, prepend=True)
    try:
        load(state_dict)
    finally:
        before.remove()
        after.remove()


def _check_groups(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    for group in state_dict["param_groups"]:
        missing = [name for name in optimizer.defaults if name not in group]
        if missing:
            raise ValueError(
                f"the state dictionary is not one of {type(optimizer).__name__}: its parameter groups have no "
                f"{', '.join(missing)}; load it into the optimizer that saved it"
            )
        _check_values(optimizer, group)


def _check_values(optimizer: Optimizer, group: Mapping[str, Any]) -> None:
    own = {name: group[name] for name in optimizer.defaults}
    door.check_values(optimizer, own)
    if not isinstance(own["maximize"], bool):
        raise ValueError(f"maximize must be True or False, got {own['maximize']!r} in the state dictionary")
    if group.get("amsgrad"):
        raise ValueError(f"the state dictionary was saved with amsgrad=True, which {type(optimizer).__name__} does not have")


def _on_device(entries: Mapping[str, Any], p: Tensor) -> dict[str, Any]:
    moved = {k: v.to(p.device) if isinstance(v, Tensor) else v for k, v in entries.items()}
    if isinstance(moved.get("step"), Tensor):
        moved["step"] = int(moved["step"])
    return moved
