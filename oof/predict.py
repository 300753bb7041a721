"""Score battles with a trained classifier: both orders, sorted by length, under a token budget."""

from __future__ import annotations

import sys

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from oof.batches import collate, cut
from oof.config import Member
from oof.errors import UserError
from oof.models import device, precision_context
from oof.prompts import Encoded

SWAPPED_CLASSES = [1, 0, 2]  # (a, b, tie) as presented in order ba -> canonical order


@torch.inference_mode()
def predict_logits(model: nn.Module, member: Member, encoded: Encoded, pad_id: int, label: str) -> NDArray[np.float32]:
    """Return (n, 2, 3) logits: battle x order (ab, ba) x canonical class (a, b, tie).

    Raises:
        UserError: a logit is not finite (the weights or the precision are broken).
    """
    model.eval()
    lengths = encoded.lengths
    n, n_orders = lengths.shape
    flat = np.empty((n * n_orders, 3), dtype=np.float32)
    bar = tqdm(total=n * n_orders, desc=label, disable=not sys.stderr.isatty(), leave=False)
    for rows in cut(lengths.reshape(-1), member.score_tokens_per_batch):
        sequences = [encoded.sequence(row // n_orders, row % n_orders) for row in rows]
        batch = {name: tensor.to(device()) for name, tensor in collate(sequences, pad_id).items()}
        with precision_context(member):
            flat[rows] = model(**batch).logits.float().cpu().numpy()
        bar.update(len(rows))
    bar.close()
    if not np.isfinite(flat).all():
        broken = int((~np.isfinite(flat)).any(axis=1).sum())
        raise UserError(f"{label}: {broken} rows have non-finite logits; lower train.lr, or set dtype=float32")
    logits = flat.reshape(n, n_orders, 3)
    logits[:, 1] = logits[:, 1][:, SWAPPED_CLASSES]
    return logits
