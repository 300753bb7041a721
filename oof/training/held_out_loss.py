"""Loss on held-out battles while a classifier trains: for the eye only, it chooses nothing and changes no weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from oof.classes import swap_classes, with_tie
from oof.config import Member
from oof.distributed.process_group import rank, ranks, sum_over_processes
from oof.encoding.batches import collate, cut
from oof.encoding.encode import Encoded
from oof.metrics import log_loss, softmax
from oof.model.precision import device, precision_context

HELD_OUT_LOSS = "held_out_loss"  # name in metrics.jsonl and in trackers


@dataclass(frozen=True)
class HeldOut:
    """A sample of the held-out battles: (n) encoded in both orders, and their (n,) integer labels."""

    encoded: Encoded
    labels: NDArray[np.integer]


def sample(rows: NDArray[np.integer], n: int) -> NDArray[np.integer]:
    """Return at most ``n`` of the rows, evenly spaced, the same in every call."""
    return rows[np.linspace(0, len(rows) - 1, min(n, len(rows))).astype(np.int64)]


def held_out_loss(model: Any, member: Member, held_out: HeldOut, pad_id: int, budget: int) -> float | None:
    """Return the log loss of the mean logits of both orders, None if a logit is not finite.

    Each process of the job scores its share.

    The model is left in training mode, and no random number is drawn. The adapter is not merged into the base.

    Args:
        model: a classifier in training.
        member: precision.
        held_out: the battles.
        pad_id: the tokenizer's.
        budget: padded tokens of one pass.
    """
    lengths = held_out.encoded.lengths
    model.eval()
    own = np.arange(rank(), len(lengths), ranks())
    logits = np.zeros((len(lengths), 2, model.config.num_labels), dtype=np.float32)
    with torch.no_grad(), precision_context(member):
        for rows in cut(lengths[own].reshape(-1), budget) if len(own) else ():
            battles, orders = own[rows // 2], rows % 2
            pairs = zip(battles, orders, strict=True)
            batch = collate([held_out.encoded.sequence(battle, order) for battle, order in pairs], pad_id)
            logits[battles, orders] = model(input_ids=batch["input_ids"].to(device())).logits.float().cpu().numpy()
    model.train()
    everyones = sum_over_processes(torch.from_numpy(logits).to(device())).cpu().numpy()
    if not np.isfinite(everyones).all():
        return None
    everyones[:, 1] = swap_classes(everyones[:, 1])
    return log_loss(softmax(with_tie(everyones.mean(axis=1))), held_out.labels)
