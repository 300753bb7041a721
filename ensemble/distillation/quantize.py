"""Quantised variants of the exported student (int8, nf4), with their measured drift in the model card.

Both quantise the merged 16- or 32-bit weights, because merging into 4-bit weights would round twice. The head is not
quantised.

Sources: Dettmers et al., LLM.int8(), NeurIPS 2022; Dettmers et al., QLoRA, NeurIPS 2023 (nf4).
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from scipy.special import rel_entr
from torch import nn
from transformers import AutoModelForSequenceClassification

from ensemble.abstention.stored import ABSTENTION
from ensemble.distillation.plan import StudentPlan
from ensemble.distillation.student import PROMPTS, Student
from oof.common.errors import UserError
from oof.common.steps import Step
from oof.metrics import row_log_loss, softmax
from oof.model.quantization import quantization_config

logger = logging.getLogger(__name__)

BLOCK = 64  # weights that share a scale in nf4; the CPU kernel of bitsandbytes 0.50 takes whole blocks only
BATTLES = 400  # on which the drift is measured
COPIED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", PROMPTS, ABSTENTION)


def export_variant(plan: StudentPlan, student: Path, step: Step) -> None:
    """Write the quantised ``student`` to the step's folder, ``student-<name>``, and finish the step.

    Args:
        plan: its scored battles serve to measure the drift.
        student: folder of the exported student.
        step: of the variant; its folder's name tells which.

    Raises:
        UserError: bitsandbytes is not installed, or cannot quantise on this machine.
    """
    name = step.folder.name.removeprefix("student-")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"distill.variants={name} needs bitsandbytes; run 'make setup EXTRAS=gpu', or leave it out")
    step.begin()
    model = load_quantised(student, name)
    model.save_pretrained(step.folder)
    for file in COPIED:
        if (student / file).is_file():
            shutil.copy2(student / file, step.folder / file)
    n = min(BATTLES, plan.n_scored)
    rows = np.random.default_rng(plan.config.seed).choice(plan.n_scored, n, replace=False)
    drift = measure_drift(student, step.folder, plan.table[rows], plan.labels[rows])
    card = (student / "README.md").read_text(encoding="utf-8")
    (step.folder / "README.md").write_text(card + _card_section(name, drift), encoding="utf-8")
    step.finish({"drift": drift})
    logger.info(
        "student-%s: KL %.2g, log loss %+.4f, %.2f x the size", name, drift["kl"], drift["log_loss"], drift["size"]
    )


def load_quantised(student: Path, name: str) -> Any:
    """Return the exported student with its weights in int8 or nf4, the head excepted.

    Raises:
        UserError: bitsandbytes cannot quantise this student on this machine.
    """
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            student, quantization_config=quantization_config(name, dtype)
        )
    except (ImportError, RuntimeError, ValueError) as error:
        raise UserError(f"bitsandbytes cannot make {name} here: {str(error).splitlines()[0]}; leave it out") from error
    widths = {m.in_features for key, m in model.named_modules() if isinstance(m, nn.Linear) and key != "score"}
    odd = sorted(width for width in widths if width % BLOCK)
    if name == "nf4" and odd and not torch.cuda.is_available():
        raise UserError(f"nf4 on a CPU needs layer widths that are multiples of {BLOCK}, not {odd[0]}; use int8")
    return model


def measure_drift(
    student: Path,
    variant: Path,
    table: pl.DataFrame,
    labels: NDArray[np.int64],
    dtypes: tuple[str, str] = ("auto",) * 2,
) -> dict[str, float]:
    """Compare a quantised variant with the student on (n) battles, opened with ``dtypes``.

    Returns:
        ``kl``: mean KL(student || variant) in nats, and its largest value ``kl_max``; ``log_loss``: the variant's minus
        the student's (both were trained on these battles, so only the difference means anything); ``size`` and
        ``speed``: the variant's divided by the student's; ``n``.
    """
    probs, seconds = zip(*(_score(*of, table) for of in zip((student, variant), dtypes, strict=True)), strict=True)
    kl = rel_entr(*probs).sum(axis=1)
    losses = [float(row_log_loss(p, labels).mean()) for p in probs]
    sizes = [sum(path.stat().st_size for path in folder.glob("*.safetensors")) for folder in (student, variant)]
    return {
        "kl": float(kl.mean()),
        "kl_max": float(kl.max()),
        "log_loss": losses[1] - losses[0],
        "size": sizes[1] / sizes[0],
        "speed": seconds[0] / seconds[1],
        "n": table.height,
    }


def _score(folder: Path, dtype: str, table: pl.DataFrame) -> tuple[NDArray[np.float64], float]:
    """Return (n, 3) probabilities by the model in ``folder``, and the seconds that they took."""
    student = Student.from_pretrained(folder, dtype)
    student.logits(table[:8])  # the first call also compiles kernels and fills caches
    started = time.perf_counter()
    logits = student.logits(table)
    return softmax(logits.mean(axis=1)), time.perf_counter() - started


def _card_section(name: str, drift: dict[str, float]) -> str:
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return f"""
## {name}

Quantised with bitsandbytes from the student's merged weights. Compared with the student on {drift["n"]} training
battles, both orders averaged:

| drift | value |
|---|---|
| mean KL(student, this), nats | {drift["kl"]:.2e} (largest {drift["kl_max"]:.2e}) |
| log loss, minus the student's | {drift["log_loss"]:+.5f} |
| weight files, share of the student's size | {drift["size"]:.2f} |
| battles per second, times the student's ({where}) | {drift["speed"]:.2f} |
"""
