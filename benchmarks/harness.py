"""What the benchmarks share: results as JSON beside the machine they were measured on."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch


def record(name: str, figures: Any, **settings: Any) -> None:
    """Write ``benchmarks/results/<name>.json``."""
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__,
               "python": platform.python_version()}
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"figures": figures, "settings": settings, "machine": machine}, indent=1) + "\n")
