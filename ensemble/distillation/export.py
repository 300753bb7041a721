"""Export of the student as a plain Hugging Face folder, checked in a fresh process.

The adapter is merged into the weights, the calibration temperature is folded into the bias-free ``score`` head (the
softmax of the logits *is* the calibrated probability), and the tokenizer carries the prompt template.
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
from ensemble.distillation.student import write_prompts
from oof.common.errors import UserError
from oof.jobs.encoded_battles import EncodedBattles
from oof.model.precision import DTYPES

logger = logging.getLogger(__name__)

CHECKED = 8  # battles whose logits are compared
TOLERANCE = 1e-4  # of a float32 logit
HALF_TOLERANCE = 0.05  # of a 16-bit logit, which is rounded to about three digits
# It runs without our packages on its path, as a user's own program would.
SELF_CHECK = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification
folder, rows = sys.argv[1], json.load(sys.stdin)
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
with torch.inference_mode():
    print(json.dumps([model(input_ids=torch.tensor([row])).logits[0].float().tolist() for row in rows]))
"""


def export_student(model: nn.Module, texts: EncodedBattles, temperature: float, folder: Path, card: ModelCard) -> None:
    """Write the merged, calibrated student to ``folder`` and check it with plain transformers.

    Args:
        model: the trained classifier (LoRA or full).
        texts: its recipe and tokenizer, and at least one battle for the check.
        temperature: divides the logits; folded into the head.
        folder: replaced as a whole once the check has passed.
        card: becomes README.md.

    Raises:
        UserError: a fresh process cannot open the student, or computes other logits.
    """
    plain = merge(model, temperature)
    building = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    plain.save_pretrained(building)
    texts.tokenizer.save_pretrained(building)
    card.save(building / "README.md")
    write_prompts(building, texts.config.prompts)
    self_check(plain, texts, building)
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)


def self_check(plain: Any, texts: EncodedBattles, folder: Path) -> None:
    """Compare the logits of ``plain`` with those of a fresh process that opens ``folder``.

    Raises:
        UserError: the process fails, or a logit differs by more than the tolerance.
    """
    n = min(CHECKED, texts.table.height)
    rows = [texts.scoring.sequence(i, i % 2).tolist() for i in range(n)]
    reloaded = np.array(logits_of_a_fresh_process(folder, rows))
    with torch.inference_mode():
        trained = np.array([plain(input_ids=torch.tensor([row])).logits[0].float().tolist() for row in rows])
    drift = float(np.abs(trained - reloaded).max())
    tolerance = TOLERANCE if plain.dtype == DTYPES["float32"] else HALF_TOLERANCE
    if not drift <= tolerance:
        raise UserError(
            f"{folder}: plain transformers computes logits that differ by {drift:.2g}; do not deploy this student"
        )
    logger.debug("self-check: largest logit difference %.2g", drift)


def logits_of_a_fresh_process(folder: Path, rows: list[list[int]]) -> list[list[float]]:
    """Return the logits that plain transformers computes of rows of token ids with the model in ``folder``.

    Raises:
        UserError: the process fails.
    """
    # -I: neither the run folder nor the checkout can be imported.
    command = [sys.executable, "-I", "-c", SELF_CHECK, str(folder.resolve())]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, input=json.dumps(rows), capture_output=True, text=True, env=environment, check=False)  # noqa: S603  # our own interpreter and a constant script
    if done.returncode:
        raise UserError(f"{folder}: plain transformers cannot open the student: {done.stderr.strip()[-300:]}")
    logits: list[list[float]] = json.loads(done.stdout.strip().splitlines()[-1])
    return logits
