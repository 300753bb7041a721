"""Does a training step fit into this machine's accelerator as it is, or only with activation checkpointing?"""

from __future__ import annotations

import logging
from typing import Any

import torch

from oof.config import Member
from oof.encoding.batches import TrainingSteps
from oof.model.classifier import resolve_dtype
from oof.model.cost_model import kind_of_attention, trace

logger = logging.getLogger(__name__)

ROOM = 0.9  # share of the memory that a plan may fill; the rest is for fragmentation


def needs_checkpointing(model: Any, member: Member, steps: TrainingSteps) -> bool:
    """Return whether the layers with trainable weights must recompute their activations.

    ``train.activation_checkpointing: auto`` says yes where the plan of the longest micro-batch fills more than
    90 % of the GPU. On a CPU it says no.
    """
    wanted = member.train.activation_checkpointing
    if wanted != "auto":
        return wanted == "on"
    if not torch.cuda.is_available():
        return False
    lengths = steps.encoded.lengths
    longest = int(-(-int(lengths.max()) // 8) * 8)
    attention = kind_of_attention(model.config._attn_implementation, model.config, resolve_dtype(member.dtype))
    cost = trace(member, max(steps.unit, steps.budget // longest), longest, True, False, attention)
    free = torch.cuda.mem_get_info()[1] * ROOM
    if cost.peak_bytes > free:
        logger.info("activation checkpointing: on (%.0f GB planned, %.0f GB there)", cost.peak_bytes / 1e9, free / 1e9)
    return cost.peak_bytes > free
