"""What a thing is, as text: equal for equal inputs in every process, different when data or code differ.

    fingerprint(function) = hash(name, bytecode, constants, defaults, closure, what it names in its own module)
    fingerprint(class)    = hash(name, its own functions and attributes, its bases)
    fingerprint(tensor)   = hash(dtype, shape, bytes)
    fingerprint(object)   = hash(type, attributes)

Not followed: the classes of torch, numpy, fallline and Python itself, which are their names (fallline's version enters a trial's
id beside them); the functions and classes that a function names and another module defines, and all that it reaches as
``module.name``, which are names too: a change there is not seen.

No address enters, so a stored trial is found again by another process, and no count of what was evaluated. What only an address
tells apart (a generator, an open file) looks the same as another of its type.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import sys
import types
from collections.abc import Mapping
from typing import Any

import numpy
import torch

from fallline.core import tree
from fallline.core.counts import Counts
from fallline.core.objective import Training
from fallline.core.problem import Problem

KNOWN_BY_NAME = {"torch", "numpy", "fallline", *sys.stdlib_module_names} - {"__main__"}
PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))


def digest(content: Any) -> str:
    """Hash of plain data, 24 hexadecimal digits."""
    text = json.dumps(content, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def fingerprint(thing: Any) -> str:
    """Hash of any object by its type and content, 24 hexadecimal digits."""
    return digest(_described(thing, {}))


def problem_identity(problem: Problem) -> str:
    """Hash of a problem: everything it holds, and what it answers at its starting point; nothing is counted."""
    observed = sorted(problem.observe(problem.x0).items())
    return digest([fingerprint(vars(problem)), observed, fingerprint(_gradient(problem))])


def _gradient(problem: Problem) -> Any:
    """The gradient at the start; none of a network, whose data and weights are told apart already, and whose masks would be drawn."""
    if isinstance(problem, Training) or not problem.has("gradient"):
        return None
    try:
        return tree.leaves(problem.counted(Counts()).gradient(problem.x0))
    except Exception as error:  # a function that autograd cannot see through; methods that need its gradient will say so
        return type(error).__name__


def where(thing: Any) -> str:
    """Module and qualified name."""
    return f"{_module(thing)}:{getattr(thing, '__qualname__', type(thing).__qualname__)}"


def _module(thing: Any) -> str:
    """Where a thing is defined; a script is one module, run as itself or imported by a worker."""
    name = str(getattr(thing, "__module__", ""))
    return "__main__" if name == "__mp_main__" else name


Seen = dict[int, tuple[int, Any]]


def _described(thing: Any, seen: Seen) -> Any:
    """Plain data that says what a thing is; something met before is its number in the order of meeting."""
    if isinstance(thing, PLAIN):
        return [type(thing).__name__, repr(thing)]
    if isinstance(thing, Counts):
        return "counts"
    if id(thing) in seen:
        return ["met", seen[id(thing)][0]]
    seen[id(thing)] = (len(seen), thing)  # kept alive, so that no other object gets its address
    if isinstance(thing, torch.Tensor | numpy.ndarray):
        return _array(thing)
    if isinstance(thing, Mapping):
        items = sorted(thing.items()) if all(isinstance(key, str) for key in thing) else thing.items()
        return [where(type(thing)), [[_described(key, seen), _described(value, seen)] for key, value in items]]
    if isinstance(thing, list | tuple):
        return [where(type(thing)), [_described(item, seen) for item in thing]]
    if isinstance(thing, set | frozenset):
        return [where(type(thing)), sorted(fingerprint(item) for item in thing)]
    if isinstance(thing, functools.partial):
        return ["partial", [_described(part, seen) for part in (thing.func, thing.args, thing.keywords)]]
    if isinstance(thing, types.MethodType):
        return ["method", _described(thing.__func__, seen), _described(thing.__self__, seen)]
    if isinstance(thing, staticmethod | classmethod):
        return [where(type(thing)), _described(thing.__func__, seen)]
    if isinstance(thing, property):
        return ["property", [_described(part, seen) for part in (thing.fget, thing.fset, thing.fdel)]]
    if isinstance(thing, types.FunctionType):
        return _function(thing, seen)
    if isinstance(thing, type):
        return _class(thing, seen)
    return _object(thing, seen)


def _array(thing: Any) -> list[Any]:
    if isinstance(thing, torch.Tensor):
        plain = thing.detach().cpu().clone(memory_format=torch.contiguous_format) if thing.layout is torch.strided else thing
        content = plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.layout is torch.strided else repr(thing).encode()
    else:
        content = thing.tobytes()
    return [str(thing.dtype), list(thing.shape), hashlib.sha256(content).hexdigest()]


def _function(function: types.FunctionType, seen: Seen) -> list[Any]:
    cells = [_cell(cell) for cell in function.__closure__ or ()]
    named = [(name, function.__globals__[name]) for name in _names(function.__code__) if name in function.__globals__]
    own = [[name, _global(value, function.__module__, seen)] for name, value in named]
    held = [_described(part, seen) for part in (function.__defaults__, function.__kwdefaults__, cells)]
    return [where(function), _code(function.__code__), held, own]


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _names(code: types.CodeType) -> list[str]:
    """Everything that a function and those inside it name."""
    inner = [name for constant in code.co_consts if isinstance(constant, types.CodeType) for name in _names(constant)]
    return list(dict.fromkeys([*code.co_names, *inner]))


def _global(value: Any, module: str, seen: Seen) -> Any:
    """What a function names in its module: described if it is defined or held there, by its name if it comes from elsewhere."""
    if isinstance(value, types.ModuleType):
        return value.__name__
    elsewhere = isinstance(value, type | types.FunctionType) and value.__module__ != module
    return where(value) if elsewhere else _described(value, seen)


def _code(code: types.CodeType) -> list[Any]:
    constants = [_code(c) if isinstance(c, types.CodeType) else fingerprint(c) for c in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), list(code.co_varnames), constants]


def _class(found: type, seen: Seen) -> list[Any]:
    """A class by its name, and, unless it is a library's, by what it and its bases define."""
    if "<locals>" not in found.__qualname__ and _module(found).partition(".")[0] in KNOWN_BY_NAME:
        return [where(found)]
    return [where(found), [_described(base, seen) for base in found.__bases__], _described(_own(found), seen)]


def _own(found: type) -> dict[str, Any]:
    """What a class defines, as if none had been made: torch wraps an optimizer's step, also an inherited one, when it is first made."""
    functions = types.FunctionType | staticmethod | classmethod
    defined = {name: value for name, value in vars(found).items() if isinstance(value, functions) or not name.startswith("__")}
    plain = {name: _unhooked(value) for name, value in defined.items()}
    inherited = {name: _unhooked(getattr(super(found, found), name, None)) for name in defined if plain[name] is not defined[name]}
    return {name: value for name, value in plain.items() if name not in inherited or value is not inherited[name]}


def _unhooked(value: Any) -> Any:
    """The function within torch's wrapper, which is marked by its attribute ``hooked``."""
    return inspect.unwrap(value, stop=lambda function: not hasattr(function, "hooked"))


def _object(thing: Any, seen: Seen) -> list[Any]:
    """Any other object: its type and attributes, or its text where it has none and the text has no address."""
    held = {name: getattr(thing, name, None) for name in _slots(type(thing))} | getattr(thing, "__dict__", {})
    if held:
        return [where(type(thing)), _described(type(thing), seen), _described(held, seen)]
    text = where(thing) if isinstance(thing, types.BuiltinFunctionType) else repr(thing)
    return [where(type(thing)), "" if " at 0x" in text or "object at" in text else text]


def _slots(found: type) -> list[str]:
    names = [name for base in found.__mro__ for name in _listed(base.__dict__.get("__slots__", ()))]
    return [name for name in names if not name.startswith("__")]


def _listed(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)
