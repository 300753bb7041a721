"""Scoring in float16, for cards without bfloat16: only after the model has shown that it survives it.

float16 ends at 65,504, and some models' activations do not. So a sample of the longest and shortest sequences is
scored in the member's own precision and in float16, and the difference must be small.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from oof.common.errors import UserError
from oof.config import Member
from oof.encoding.batches import collate
from oof.encoding.encode import Encoded
from oof.model.classifier import device, precision_context

logger = logging.getLogger(__name__)

SAMPLE = 4  # of the longest, and as many of the shortest sequences
TOLERANCE = 0.05  # nats in a logit: log loss moves by less than a hundredth of it


@contextmanager
def half_precision(model: Any, member: Member, encoded: Encoded, pad_id: int, label: str) -> Iterator[None]:
    """Inside, ``model`` computes in float16 (its head in float32); its weights stay rounded afterwards.

    Raises:
        UserError: float16 gives non-finite or different logits; names the first module that overflows.
    """
    order = np.argsort(encoded.lengths[:, 0], kind="stable")
    sample = np.unique(np.concatenate([order[:SAMPLE], order[-SAMPLE:]]))
    batches = [collate([encoded.sequence(int(i), 0)], pad_id)["input_ids"].to(device()) for i in sample]
    with precision_context(member):
        expected = torch.cat([model(input_ids=ids).logits.float() for ids in batches])
    quantised = getattr(model, "quantization_method", None) is not None
    if not quantised:
        for name, parameter in model.named_parameters():
            if "score" not in name.split("."):  # the head computes in float32 whatever the base does
                parameter.data = parameter.data.half()
    # A quantised base keeps its weights; its products are what autocast decides on.
    with torch.autocast(device().type, dtype=torch.float16, enabled=quantised):
        _check(model, batches, expected, label)
        yield


def _check(model: nn.Module, batches: list[torch.Tensor], expected: torch.Tensor, label: str) -> None:
    culprits: list[str] = []

    def watch(name: str) -> Any:
        def look(module: nn.Module, args: Any, output: Any) -> None:
            if torch.is_tensor(output) and not torch.isfinite(output).all():
                culprits.append(name)

        return look

    handles = [m.register_forward_hook(watch(n)) for n, m in model.named_modules() if not any(m.children())]
    got = torch.cat([model(input_ids=ids).logits.float() for ids in batches])
    for handle in handles:
        handle.remove()
    if culprits or not torch.isfinite(got).all():
        where = culprits[0] if culprits else "the logits"
        raise UserError(f"{label}: float16 overflows in {where}; score with score_dtype=same")
    drift = float((got - expected).abs().max())
    if drift > TOLERANCE:
        raise UserError(f"{label}: float16 changes a logit by {drift:.2g} (> {TOLERANCE}); score with score_dtype=same")
    logger.info("%s: float16 agrees with the trained precision within %.1g on %d sequences", label, drift, len(got))
