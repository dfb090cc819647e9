"""Checkpoints: one safetensors file, tensors as tensors and everything else as JSON in its header.

Loading one runs no code. A file is written beside its target and moved into place, so a run that dies while writing leaves the
previous checkpoint whole.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fallline.core.errors import CheckpointError
from fallline.core.keys import Key

FORMAT = "2"


def _encode(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # A copy: two entries of a state may share memory, which safetensors refuses.
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name, "device": str(value.device)}
    if isinstance(value, Key):
        return {"key": [value.seed, list(value.path)]}
    if isinstance(value, dict):
        return {"dict": [[_encode(k, tensors, where), _encode(v, tensors, f"{where}[{k!r}]")] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        items = [_encode(v, tensors, f"{where}[{i}]") for i, v in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return {"float": value.hex()}
    raise TypeError(f"a checkpoint holds tensors, numbers, strings and keys; {where} is a {type(value).__name__}")


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    (kind, content), *rest = value.items()
    if kind == "tensor":
        return tensors[content].to(dict(rest).get("device", "cpu"))
    if kind == "key":
        return Key(content[0], tuple(content[1]))
    if kind == "dict":
        return {_decode(k, tensors): _decode(v, tensors) for k, v in content}
    if kind == "float":
        return float.fromhex(content)
    items = [_decode(v, tensors) for v in content]
    return tuple(items) if kind == "tuple" else items


def _file(path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    if target.is_dir():
        raise CheckpointError(f"the checkpoint {str(target)!r} is a folder; give a file in it, "
                              f"such as {str(target / 'run.safetensors')!r}")
    return target


def save(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """Write nested dicts, lists, tensors, numbers, strings and keys to ``path``, whole or not at all."""
    from safetensors.torch import save_file

    target = _file(path)
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_encode(content, tensors, "content"))
    tensors = tensors or {"0": torch.zeros(0)}
    beside = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, beside, metadata={"format": FORMAT, "content": text})
        os.replace(beside, target)
    except Exception as error:
        beside.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write the checkpoint {str(target)!r}: {error}; the previous one, if any, is intact. "
                              "Free space or choose another checkpoint path") from error


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what ``save`` wrote; an unreadable file raises ``CheckpointError``."""
    from safetensors import safe_open

    path = _file(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        if header.get("format") != FORMAT:
            raise ValueError(f"its format is {header.get('format')!r}, this version reads {FORMAT!r}")
        content: dict[str, Any] = _decode(json.loads(header["content"]), tensors)
    except Exception as error:
        raise CheckpointError(f"cannot read the checkpoint {str(path)!r}: {error}; "
                              "delete it to start again, or restore an intact copy") from error
    return content
