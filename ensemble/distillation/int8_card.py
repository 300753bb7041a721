"""int8 section of the model card: drift and speed of ``dtype="int8"``, measured on this machine's processor."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl

from ensemble.distillation.card_section import finished_student, put_section
from ensemble.distillation.quantize import BATTLES, measure_drift
from oof.common.steps import locked
from oof.jobs.dataset import load_battles

HEADING = "## int8 on a CPU"
CPUINFO = Path("/proc/cpuinfo")


def add_int8_section(run: Path) -> dict[str, float]:
    """Measure a run's student in int8 and write the section of its card, in place of an earlier one.

    Returns:
        the figures of :func:`ensemble.distillation.quantize.measure_drift`.

    Raises:
        UserError: the run has no student, or this machine no int8 products.
    """
    step = finished_student(run)
    with locked(run):
        battles = load_battles(run, unlabelled=False)
        battles = battles.filter((pl.col("role") == "train") & pl.col("label").is_not_null())
        table = battles.sample(min(BATTLES, battles.height), seed=0)
        labels = table["label"].to_numpy().astype(np.int64)
        student = step.folder / "student"
        drift = measure_drift(student, student, table, labels, ("float32", "int8"))
        put_section(step, HEADING, _section(drift))
    return drift


def processor() -> str:
    """Return the name of this machine's processor, and whether it has int8 dot products (VNNI)."""
    text = CPUINFO.read_text(encoding="utf-8", errors="replace") if CPUINFO.is_file() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    return f"{name[1].strip() if name else 'CPU'}, {'with' if 'vnni' in text else 'no'} VNNI"


def _section(drift: dict[str, float]) -> str:
    return f"""
`Judge.from_pretrained(..., dtype="int8")` and `arena-distill serve --dtype int8` multiply in int8 on x86 processors.
Compared with float32 on {drift["n"]} training battles, both orders averaged:

| | |
|---|---|
| mean KL(float32, int8), nats | {drift["kl"]:.2e} (largest {drift["kl_max"]:.2e}) |
| log loss, minus float32's | {drift["log_loss"]:+.5f} |
| battles per second, times float32's ({processor()}) | {drift["speed"]:.2f} |
"""
