"""Run a function in several real processes on this machine, joined by a gloo process group."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def _worker(rank: int, function: Callable[..., Any], world: int, folder: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(Path(folder) / "store"), world)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    try:
        torch.save(function(rank, *arguments), Path(folder) / f"{rank}.pt")
        torch.distributed.barrier()  # gloo aborts a process whose peer leaves while messages are under way
    finally:
        torch.distributed.destroy_process_group()


def run_gloo(function: Callable[..., Any], world: int, *arguments: Any) -> list[Any]:
    """Return ``[function(rank, *arguments) for rank in range(world)]``, each computed in a process of its own.

    Inside, ``torch.distributed`` is initialised with the gloo backend.

    Parameters
    ----------
    function : callable
        Importable by name (a module's function, not a lambda); returns tensors, numbers, lists and dicts.
    world : int
        How many processes.

    Raises
    ------
    torch.multiprocessing.ProcessRaisedException
        A process raised; the others are ended, and its traceback is in the message.
    """
    if isinstance(world, bool) or not isinstance(world, int) or world < 1:
        raise ValueError(f"world must be a whole number of at least 1 (processes), got {world!r}")
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _worker, args=(function, world, folder, arguments), nprocs=world, start_method="spawn")
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world)]
