"""Where a trial took place: versions, machine, cores, threads."""

from __future__ import annotations

import os
import platform

from fallline import __version__


def versions() -> dict[str, str]:
    """Versions of what figures depend on."""
    import torch

    return {"fallline": __version__, "torch": torch.__version__, "python": platform.python_version()}


def environment() -> dict[str, str]:
    """What a reader of figures needs to judge them by."""
    import torch

    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count() or 1} cores"
    return {**versions(), "machine": machine, "threads": str(torch.get_num_threads())}
