"""The student as a plain Hugging Face folder that any tool opens, checked in a fresh process.

The adapter is merged, the calibration temperature is folded into the bias-free ``score`` head (softmax of the
logits *is* the calibrated probability), and the tokenizer carries the prompt template.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCard
from torch import nn

from ensemble.distillation.merge import merge
from oof.common.errors import UserError
from oof.jobs.run_fold_job import Texts
from oof.model.classifier import DTYPES

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4  # float32; half precision is compared at its own rounding
# Runs without our packages on its path: it sees what a stranger's program sees.
SELF_CHECK = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification
folder, rows = sys.argv[1], json.load(sys.stdin)
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
with torch.inference_mode():
    print(json.dumps([model(input_ids=torch.tensor([row])).logits[0].float().tolist() for row in rows]))
"""


def export_student(model: nn.Module, texts: Texts, temperature: float, folder: Path, card: ModelCard) -> None:
    """Write the merged, calibrated student to ``folder`` and check that plain transformers agrees with us.

    Args:
        model: the trained classifier (LoRA or full).
        texts: its member, tokenizer and battles (a few serve as the check).
        temperature: divides the logits; folded into the head.
        folder: replaced as a whole, once the check has passed.
        card: becomes README.md.

    Raises:
        UserError: a fresh process computes other logits than we do.
    """
    plain = merge(model, temperature)
    building = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    plain.save_pretrained(building)
    texts.tokenizer.save_pretrained(building)
    card.save(building / "README.md")
    (building / "prompts.json").write_text(json.dumps(_prompt_facts(texts), indent=2) + "\n", encoding="utf-8")
    self_check(plain, texts, building)
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)


def self_check(plain: Any, texts: Texts, folder: Path, n: int = 8) -> float:
    """Return the largest logit difference between ``plain`` and a fresh process that opens ``folder``."""
    n = min(n, texts.table.height)
    rows = [texts.scoring.sequence(i, i % 2).tolist() for i in range(n)]
    # The run folder and the checkout must not be importable there.
    command = [sys.executable, "-I", "-c", SELF_CHECK, str(folder.resolve())]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, input=json.dumps(rows), capture_output=True, text=True, env=environment, check=False)  # noqa: S603  # our own interpreter and a constant script
    if done.returncode:
        raise UserError(f"{folder}: plain transformers cannot open the student: {done.stderr.strip()[-300:]}")
    theirs = np.array(json.loads(done.stdout.strip().splitlines()[-1]))
    with torch.inference_mode():
        ours = np.array([plain(input_ids=torch.tensor([row])).logits[0].float().tolist() for row in rows])
    drift = float(np.abs(ours - theirs).max())
    tolerance = TOLERANCE if plain.dtype == DTYPES["float32"] else 0.05
    if not drift <= tolerance:
        raise UserError(f"{folder}: plain transformers computes other logits (by {drift:.2g}); do not deploy it")
    logger.debug("self-check: largest logit difference %.2g", drift)
    return drift


def _prompt_facts(texts: Texts) -> dict[str, object]:
    prompts = texts.config.prompts
    facts: dict[str, object] = {name: getattr(prompts, name) for name in ("layout", "prompt_share", "hints")}
    return {**facts, "max_tokens": prompts.score_max_tokens or prompts.max_tokens}
