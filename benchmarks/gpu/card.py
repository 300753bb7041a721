"""Card, driver and library versions of this machine, and what is missing for the GPU benchmark.

The process that starts the parts imports this module, so nothing that initialises CUDA is imported here at its top.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from dataclasses import asdict
from importlib import metadata
from typing import Any

from benchmarks.common import commit
from benchmarks.gpu.parts import MODELS, Context
from benchmarks.quality.real_battles import FILES

# Packages -> what is not measured without them; "" = only reported.
PACKAGES = {
    "torch": "",
    "transformers": "",
    "peft": "",
    "triton": "",
    "bitsandbytes": "rows int8 and nf4",
    "flash-attn-4": "row flash_attention_4",
    "flash-attn-3": "row flash_attention_3",
    "flash-attn": "row flash_attention_2",
    "kernels": "compiled FlashAttention of the hub",
    "liger-kernel": "fused layers",
}
GPU_BYTES = 80e9 * 0.95  # "80 GB" cards report a little less


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that decide speed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe() -> dict[str, Any]:
    """Return card, memory, driver and versions; torch is imported only here."""
    import torch

    facts: dict[str, Any] = {"gpu": None, "cuda": torch.version.cuda, "versions": versions(), "commit": commit()}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts |= {"gpu": properties.name, "memory_gb": properties.total_memory / 1e9}
        facts |= {"capability": f"{properties.major}.{properties.minor}", "driver": driver()}
    return facts


def driver() -> str:
    """Return driver version and power limit as nvidia-smi prints them, or ""."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, "--query-gpu=driver_version,power.limit", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout.splitlines() or [""])[0]


def result_key(facts: dict[str, Any], context: Context) -> dict[str, Any]:
    """Return what all figures depend on: card, libraries and the amounts of work."""
    libraries = {name: facts["versions"].get(name) for name in ("torch", "transformers", "peft", "liger-kernel")}
    key = {"gpu": facts["gpu"], "libraries": libraries, "size": asdict(context.size)}
    return key if context.attention == "auto" else key | {"attention": context.attention}


def planned_card() -> str | None:
    """Return the plan's name of this machine's card, or None where the plan lists no such card."""
    import torch

    from oof.model.cards import card_named

    return card_named(torch.cuda.get_device_name()) if torch.cuda.is_available() else None


def missing(context: Context) -> list[str]:
    """Return what this machine lacks, each with what is not measured without it."""
    lines = []
    facts = describe()
    if facts["gpu"] is None:
        lines.append("no GPU: only QUICK=1 runs to its end in a reasonable time")
    elif facts["memory_gb"] * 1e9 < GPU_BYTES:
        lines.append(f"{facts['memory_gb']:.0f} GB of GPU memory: the shapes are meant for 80 GB; rows may not fit")
    for name, use in PACKAGES.items():
        if use and name not in facts["versions"]:
            lines.append(f"{name} is not installed: {use}")
    if facts["gpu"] and importlib.util.find_spec("triton") is None:
        lines.append("triton is not installed: no compiled kernels")
    if context.models is None or context.data is None:
        lines.append("no --models and --data: the part real")
        return lines
    files = [context.data / file for names in FILES.values() for file in names]
    paths = [*(context.models / name for name in MODELS), *files]
    return lines + [f"{path} does not exist: the part real" for path in paths if not path.exists()]
