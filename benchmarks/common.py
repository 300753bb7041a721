"""What the benchmarks' pages share: a figure with its interval as a table cell, the commit and the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oof.metrics import group_interval


def cell(values: NDArray[np.float64], groups: NDArray[np.integer], sign: str = "", seed: int = 0) -> str:
    """Return the mean of (n,) values with its 95 % interval over groups; ``sign="+"`` for a difference."""
    row = group_interval(values, groups, seed)
    return f"{row['value']:{sign}.4f} [{row['low']:{sign}.4f}, {row['high']:{sign}.4f}]"


def commit() -> str:
    """Return the commit of the checkout, marked where tracked files were changed."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def made() -> str:
    """Return when, from which commit and on what a page is made."""
    return f"Made on {date.today()} at commit {commit()} ({machine()})"


def machine() -> str:
    """Return the processor, its cores and the GPU in words."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{platform.machine()}, {os.cpu_count()} cores, {gpu}"
