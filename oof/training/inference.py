"""Score battles with a trained classifier: both orders, sorted by length, under a token budget.

Scores are streamed to a file beside the job, so a killed scoring goes on where it was. Several processes of one
job score every n-th batch each.
"""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from oof.classes import swap_classes
from oof.common import interrupts
from oof.common.errors import UserError
from oof.config import Member
from oof.distributed import process_group
from oof.encoding.batches import collate, cut, score_tokens
from oof.encoding.encode import Encoded
from oof.model.classifier import device, precision_context
from oof.model.optimizations import FusedLora, LastTokens, merged_where_exact
from oof.training.half import half_precision

logger = logging.getLogger(__name__)


def predict_logits(
    model: nn.Module, member: Member, encoded: Encoded, pad_id: int, label: str, partial: Path | None = None
) -> NDArray[np.float32]:
    """Return (n, 2, 3) logits (or (n, 1, 3)): battle x order (ab, ba) x canonical class (a, b, tie).

    Args:
        model: a classifier; its adapter is merged into it where that is exact.
        member: precision and token budget.
        encoded: (n) battles in both orders, or in the order ab alone.
        pad_id: the tokenizer's.
        label: of the progress bar and of errors.
        partial: file for the scores so far, continued if it is there and removed at the end.

    Raises:
        UserError: a logit is not finite (the weights or the precision are broken), or one sequence does not fit.
        interrupts.Stopped: asked to stop; ``partial`` holds what is done.
    """
    model = merged_where_exact(model).eval()
    n, n_orders = encoded.lengths.shape
    flat = _open(partial, n * n_orders)
    shortcuts = (LastTokens(model, pad_id), FusedLora(model))
    with torch.inference_mode(), ExitStack() as stack:
        for shortcut in shortcuts:
            stack.callback(shortcut.remove)
        if member.score_dtype == "float16":
            stack.enter_context(half_precision(model, member, encoded, pad_id, label))
        else:
            stack.enter_context(precision_context(member))
        _score(model, flat, encoded, pad_id, _share(encoded, member), label)
    own = np.array(flat)
    if process_group.ranks() > 1:
        # A file of an earlier call that was cut otherwise may hold rows that are another process's now.
        others = np.delete(np.arange(len(own)), np.concatenate([np.zeros(0, int), *_share(encoded, member)]))
        own[others] = 0.0
        own = process_group.add_up(np.nan_to_num(own, nan=0.0, posinf=np.inf, neginf=-np.inf), device())
    if not np.isfinite(own).all():
        broken = int((~np.isfinite(own)).any(axis=1).sum())
        raise UserError(f"{label}: {broken} rows have non-finite logits; lower train.lr, or set dtype=float32")
    if partial is not None:
        _of_rank(partial).unlink(missing_ok=True)
    logits = own.reshape(n, n_orders, 3)
    if n_orders == 2:
        logits[:, 1] = swap_classes(logits[:, 1])
    return logits


def _share(encoded: Encoded, member: Member) -> list[NDArray[np.int64]]:
    """Return this process's batches: rows of (n * orders)."""
    return cut(encoded.lengths.reshape(-1), score_tokens(member))[process_group.rank() :: process_group.ranks()]


def _score(
    model: nn.Module,
    flat: NDArray[np.float32],
    encoded: Encoded,
    pad_id: int,
    share: list[NDArray[np.int64]],
    label: str,
) -> None:
    """Fill this process's rows of ``flat`` (n * orders, 3) that are still NaN."""
    lengths = encoded.lengths.reshape(-1)
    n_orders = encoded.lengths.shape[1]
    todo = [rows for rows in share if np.isnan(flat[rows]).any()]
    bar = tqdm(total=sum(map(len, todo)), desc=label, disable=not sys.stderr.isatty(), leave=False)
    while todo:
        interrupts.check()
        rows = todo.pop(0)
        sequences = [encoded.sequence(row // n_orders, row % n_orders) for row in rows]
        try:
            batch = {name: tensor.to(device()) for name, tensor in collate(sequences, pad_id).items()}
            scores = model(**batch).logits.float().cpu().numpy()
        except torch.OutOfMemoryError:
            scores = None
        if scores is None:  # outside the handler, whose traceback would keep the tensors alive
            if len(rows) == 1:
                raise UserError(f"{label}: one sequence of {lengths[rows[0]]} tokens does not fit; lower max_tokens")
            torch.cuda.empty_cache()
            logger.info("%s: out of memory on %d sequences; halved", label, len(rows))
            todo = [part for batch_rows in (rows, *todo) for part in np.array_split(batch_rows, 2) if len(part)]
            continue
        flat[rows] = scores
        bar.update(len(rows))
    bar.close()


def _of_rank(partial: Path) -> Path:
    return partial.with_name(f"{partial.stem}-{process_group.rank()}.npy")


def _open(partial: Path | None, n: int) -> NDArray[np.float32]:
    """Return (n, 3) scores, NaN where there are none yet; a mapped file where ``partial`` is given."""
    if partial is None:
        return np.full((n, 3), np.nan, dtype=np.float32)
    path = _of_rank(partial)
    try:
        kept = np.lib.format.open_memmap(path, mode="r+")
        if kept.shape == (n, 3) and kept.dtype == np.float32:
            return kept
    except (OSError, ValueError, EOFError):
        pass  # none yet, or one that a full disk cut short
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:  # written, not mapped: a full disk ends a process that writes to a map of it
        np.save(file, np.full((n, 3), np.nan, dtype=np.float32))
    return np.lib.format.open_memmap(path, mode="r+")
