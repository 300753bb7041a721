"""Inference: logits of battles in both orders from a trained classifier, in length-sorted token-budget batches.

Logits are streamed to a file beside the job, so killed scoring resumes where it was. Several processes of one job
score every n-th batch each.

float16 scoring, for cards without bfloat16, runs behind a self-check: float16 ends at 65,504, and some models'
activations do not. A sample of the longest and shortest sequences is scored in the member's own precision and in
float16, and the difference must be small.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from oof.classes import swap_classes, with_tie
from oof.common import interrupts
from oof.common.errors import UserError
from oof.common.progress import progress
from oof.config import Member
from oof.distributed import process_group
from oof.encoding.batches import collate, cut, score_tokens
from oof.encoding.encode import Encoded
from oof.model.fused_layers import FusedLayers
from oof.model.optimizations import FusedLora, LastTokens, merged_where_exact
from oof.model.precision import device, precision_context

logger = logging.getLogger(__name__)

CHECK_SEQUENCES = 4  # of the longest, and as many of the shortest sequences
CHECK_TOLERANCE = 0.05  # largest difference of a logit: it moves the log loss by less than a hundredth of it


def predict_logits(
    model: nn.Module, member: Member, encoded: Encoded, pad_id: int, label: str, partial: Path | None = None
) -> NDArray[np.float32]:
    """Return (n, 2, 3) logits (or (n, 1, 3)): battle x order (ab, ba) x canonical class (a, b, tie).

    A classifier of two classes gets a pinned tie (:func:`oof.classes.with_tie`).

    Args:
        model: a classifier; its adapter is merged into it where that is exact.
        member: precision and token budget.
        encoded: (n) battles in both orders, or in the order ab alone.
        pad_id: the tokenizer's.
        label: of the progress bar and of errors.
        partial: file for the logits so far, continued if it exists and removed at the end.

    Raises:
        UserError: a logit is not finite (the weights or the precision are broken), or one sequence does not fit.
        interrupts.Stopped: asked to stop; ``partial`` holds the logits so far.
    """
    model = merged_where_exact(model).eval()
    config: Any = model.config
    n, n_orders = encoded.lengths.shape
    logits_so_far = _open(partial, n * n_orders, config.num_labels)
    own_batches = cut(encoded.lengths.reshape(-1), score_tokens(member))[process_group.rank() :: process_group.ranks()]
    with torch.inference_mode(), ExitStack() as stack:
        for optimization in (LastTokens(model, pad_id), FusedLora(model), FusedLayers(model, member)):
            stack.callback(optimization.remove)
        if member.score_dtype == "float16":
            stack.enter_context(float16(model, member, encoded, pad_id, label))
        else:
            stack.enter_context(precision_context(member))
        _score(model, logits_so_far, encoded, pad_id, own_batches, label)
    rows = np.array(logits_so_far)
    if process_group.ranks() > 1:
        rows = _gathered(rows, own_batches)
    if not np.isfinite(rows).all():
        broken = int((~np.isfinite(rows)).any(axis=1).sum())
        raise UserError(f"{label}: {broken} rows have non-finite logits; lower train.lr, or set dtype=float32")
    if partial is not None:
        _partial_of_rank(partial).unlink(missing_ok=True)
    logits = with_tie(rows.reshape(n, n_orders, -1))
    if n_orders == 2:
        logits[:, 1] = swap_classes(logits[:, 1])
    return logits


def _gathered(rows: NDArray[np.float32], own_batches: list[NDArray[np.int64]]) -> NDArray[np.float32]:
    """Return every process's rows in one array; collective."""
    # A partial file of an earlier call with another number of processes may hold rows that another process owns now.
    foreign = np.delete(np.arange(len(rows)), np.concatenate([np.zeros(0, int), *own_batches]))
    rows[foreign] = 0.0
    # A logit of its own that is not a number stays one in the sum, so that every process refuses it.
    return np.asarray(process_group.sum_over_processes(torch.from_numpy(rows).to(device())).cpu().numpy())


def _score(
    model: nn.Module,
    logits_so_far: NDArray[np.float32],
    encoded: Encoded,
    pad_id: int,
    own_batches: list[NDArray[np.int64]],
    label: str,
) -> None:
    """Fill this process's rows of ``logits_so_far`` (n * orders, classes) that are still NaN."""
    lengths = encoded.lengths.reshape(-1)
    n_orders = encoded.lengths.shape[1]
    todo = [rows for rows in own_batches if np.isnan(logits_so_far[rows]).any()]
    with progress(label, sum(map(len, todo)), "sequences") as shown:
        while todo:
            interrupts.check()
            rows = todo.pop(0)
            sequences = [encoded.sequence(row // n_orders, row % n_orders) for row in rows]
            try:
                batch = {name: tensor.to(device()) for name, tensor in collate(sequences, pad_id).items()}
                logits = model(**batch).logits.float().cpu().numpy()
            except torch.OutOfMemoryError:
                logits = None
            if logits is None:  # outside the handler, whose traceback would keep the tensors alive
                if len(rows) == 1:
                    raise UserError(
                        f"{label}: one sequence of {lengths[rows[0]]} tokens does not fit; lower max_tokens"
                    )
                torch.cuda.empty_cache()
                logger.info("%s: out of memory on %d sequences; halved", label, len(rows))
                todo = [half for batch_rows in (rows, *todo) for half in np.array_split(batch_rows, 2) if len(half)]
                continue
            logits_so_far[rows] = logits
            shown.update(len(rows))


def _partial_of_rank(partial: Path) -> Path:
    return partial.with_name(f"{partial.stem}-{process_group.rank()}.npy")


def _open(partial: Path | None, n: int, n_classes: int) -> NDArray[np.float32]:
    """Return (n, n_classes) logits, NaN where there are none yet; a memory-mapped file where ``partial`` is given."""
    if partial is None:
        return np.full((n, n_classes), np.nan, dtype=np.float32)
    path = _partial_of_rank(partial)
    try:
        kept = np.lib.format.open_memmap(path, mode="r+")
        if kept.shape == (n, n_classes) and kept.dtype == np.float32:
            return kept
    except (OSError, ValueError, EOFError):
        pass  # none yet, or one that a full disk cut short
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:  # written, not mapped: writing to a map on a full disk kills the process
        np.save(file, np.full((n, n_classes), np.nan, dtype=np.float32))
    return np.lib.format.open_memmap(path, mode="r+")


@contextmanager
def float16(model: Any, member: Member, encoded: Encoded, pad_id: int, label: str) -> Iterator[None]:
    """Inside, ``model`` computes in float16 (its head in float32); its weights stay rounded afterwards.

    Raises:
        UserError: float16 gives non-finite or different logits; names the first module that overflows.
    """
    order = np.argsort(encoded.lengths[:, 0], kind="stable")
    sample = np.unique(np.concatenate([order[:CHECK_SEQUENCES], order[-CHECK_SEQUENCES:]]))
    batches = [collate([encoded.sequence(int(i), 0)], pad_id)["input_ids"].to(device()) for i in sample]
    with precision_context(member):
        expected = torch.cat([model(input_ids=ids).logits.float() for ids in batches])
    quantised = getattr(model, "quantization_method", None) is not None
    if not quantised:
        for name, parameter in model.named_parameters():
            if "score" not in name.split("."):  # the head computes in float32 whatever the base does
                parameter.data = parameter.data.half()
    # A quantised base keeps its weights; autocast decides the dtype of its products.
    with torch.autocast(device().type, dtype=torch.float16, enabled=quantised):
        _check_float16(model, batches, expected, label)
        yield


def _check_float16(model: nn.Module, batches: list[torch.Tensor], expected: torch.Tensor, label: str) -> None:
    overflowing: list[str] = []

    def watch(name: str) -> Any:
        def check_output(module: nn.Module, args: Any, output: Any) -> None:
            if torch.is_tensor(output) and not torch.isfinite(output).all():
                overflowing.append(name)

        return check_output

    handles = [m.register_forward_hook(watch(n)) for n, m in model.named_modules() if not any(m.children())]
    logits = torch.cat([model(input_ids=ids).logits.float() for ids in batches])
    for handle in handles:
        handle.remove()
    if overflowing or not torch.isfinite(logits).all():
        where = overflowing[0] if overflowing else "the logits"
        raise UserError(f"{label}: float16 overflows in {where}; score with score_dtype=same")
    drift = float((logits - expected).abs().max())
    if drift > CHECK_TOLERANCE:
        raise UserError(
            f"{label}: float16 changes a logit by {drift:.2g} (> {CHECK_TOLERANCE}); score with score_dtype=same"
        )
    logger.info("%s: float16 agrees with the trained precision within %.1g on %d sequences", label, drift, len(logits))
