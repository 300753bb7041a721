"""The student in int8 or nf4, saved beside it, with what that costs measured and written into its card.

Both quantise the merged 16 or 32 bit weights: a merge into 4 bit weights would round twice. The head stays whole.

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
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

from ensemble.distillation.plan import StudentPlan
from ensemble.serving.judge import Judge
from oof.common.errors import UserError
from oof.common.steps import Step
from oof.metrics import row_log_loss, softmax

logger = logging.getLogger(__name__)

BLOCK = 64  # values that share a scale in nf4; bitsandbytes' CPU kernel takes whole blocks only (0.50)
BATTLES = 400  # on which the drift is measured
ALSO = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "prompts.json")


def export_variant(plan: StudentPlan, student: Path, step: Step) -> None:
    """Write the quantised ``student`` to the step's folder, ``student-<name>``, and finish the step.

    Raises:
        UserError: bitsandbytes is not installed, or cannot quantise on this machine.
    """
    name = step.folder.name.removeprefix("student-")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"distill.variants={name} needs bitsandbytes; run 'make setup EXTRAS=dev,gpu', or leave it out")
    step.begin()
    model = quantised(student, name)
    model.save_pretrained(step.folder)
    for file in ALSO:
        if (student / file).is_file():
            shutil.copy2(student / file, step.folder / file)
    n = min(BATTLES, plan.n_scored)
    rows = np.random.default_rng(plan.config.seed).choice(plan.n_scored, n, replace=False)
    drift = measure(student, step.folder, plan.table[rows], plan.labels[rows])
    card = (student / "README.md").read_text(encoding="utf-8")
    (step.folder / "README.md").write_text(card + _section(name, drift), encoding="utf-8")
    step.finish({"drift": drift})
    logger.info(
        "student-%s: KL %.2g, log loss %+.4f, %.2f x the size", name, drift["kl"], drift["log_loss"], drift["size"]
    )


def quantised(student: Path, name: str) -> Any:
    """Return the student's weights in int8 or nf4, its head untouched."""
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    # An explicit list replaces the default that spares the head, so the head is named.
    settings: dict[str, Any] = (
        {"load_in_8bit": True}
        if name == "int8"
        else {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": dtype,
            "bnb_4bit_use_double_quant": True,
        }
    )
    quantisation = BitsAndBytesConfig(**settings, llm_int8_skip_modules=["score"])  # type: ignore[no-untyped-call]
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        model = AutoModelForSequenceClassification.from_pretrained(student, quantization_config=quantisation)
    except (ImportError, RuntimeError, ValueError) as error:
        raise UserError(f"bitsandbytes cannot make {name} here: {str(error).splitlines()[0]}; leave it out") from error
    widths = {m.in_features for key, m in model.named_modules() if isinstance(m, nn.Linear) and key != "score"}
    odd = sorted(width for width in widths if width % BLOCK)
    if name == "nf4" and odd and not torch.cuda.is_available():
        raise UserError(f"nf4 on a CPU needs layer widths that are multiples of {BLOCK}, not {odd[0]}; use int8")
    return model


def measure(student: Path, variant: Path, table: pl.DataFrame, labels: NDArray[np.int64]) -> dict[str, float]:
    """Return what quantising changed on (n) battles.

    ``kl``: mean KL(student || variant); ``kl_max``; ``log_loss``: the variant's minus the student's (where both were
    trained on these battles, their difference is still what counts); ``size`` and ``speed``: the variant's over the
    student's.
    """
    probs, seconds = zip(*(_scored(folder, table) for folder in (student, variant)), strict=True)
    kl = rel_entr(*probs).sum(axis=1)
    loss = [float(row_log_loss(p, labels).mean()) for p in probs]
    facts = {"kl": float(kl.mean()), "kl_max": float(kl.max()), "log_loss": loss[1] - loss[0]}
    sizes = [sum(path.stat().st_size for path in folder.glob("*.safetensors")) for folder in (student, variant)]
    return {**facts, "size": sizes[1] / sizes[0], "speed": seconds[0] / seconds[1], "n": table.height}


def _scored(folder: Path, table: pl.DataFrame) -> tuple[NDArray[np.float64], float]:
    judge = Judge.from_pretrained(folder)
    judge.logits(table[:8])  # the first call pays for kernels and caches
    started = time.perf_counter()
    logits = judge.logits(table)
    return softmax(logits.mean(axis=1)), time.perf_counter() - started


def _section(name: str, drift: dict[str, float]) -> str:
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return f"""
## {name}

Quantised with bitsandbytes from the student's merged weights. Measured against it on {drift["n"]} training battles,
both orders averaged:

| drift | value |
|---|---|
| mean KL(student, this), nats | {drift["kl"]:.2e} (largest {drift["kl_max"]:.2e}) |
| log loss, minus the student's | {drift["log_loss"]:+.5f} |
| weight files, share of the student's size | {drift["size"]:.2f} |
| battles per second, times the student's ({where}) | {drift["speed"]:.2f} |
"""
