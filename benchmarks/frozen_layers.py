"""Score many students of one base, with what their common frozen layers make of each text computed once.

Students with adapters in the upper layers alone have the lower ones in common. These layers' output, a hidden state per
token, is stored; a student's scoring begins above them. Attention is causal, so the padding to a sequence's right
changes nothing. The logits differ from those of whole passes by rounding (tests/test_frozen_layers.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from oof import store
from oof.batches import collate, cut, score_tokens
from oof.config import Member
from oof.predict import predict_logits
from oof.prompts import Encoded
from oof.shortcuts import decoder_layers, merged_where_exact

WAIT = 3600.0  # seconds for another process that computes the same states


class _Reached(Exception):  # noqa: N818 - not an error
    """The last frozen layer is done; nothing above it is needed."""


def predict_from_states(
    model: nn.Module, member: Member, encoded: Encoded, pad_id: int, label: str, partial: Path, folder: Path
) -> NDArray[np.float32]:
    """Return what :func:`oof.predict.predict_logits` returns, reading the frozen layers' output from ``folder``.

    Args:
        model: a classifier with adapters in its upper layers alone, on the CPU.
        member: precision and token budget.
        encoded: (n) battles.
        pad_id: the tokenizer's.
        label: of the progress bar and of errors.
        partial: file for the scores so far.
        folder: keeps the hidden states, one file per set of texts, computed by whoever comes first. All that use it
            have the same base.
    """
    adapted = [any("lora_" in name for name, _ in layer.named_parameters()) for layer in decoder_layers(model)]
    model, n = merged_where_exact(model).eval(), adapted.index(True)
    lengths, n_orders = encoded.lengths.reshape(-1), encoded.lengths.shape[1]
    sequences = [encoded.sequence(row // n_orders, row % n_orders) for row in range(len(lengths))]
    path = folder / f"{store.digest(n, *(s.tobytes().hex() for s in sequences))[:12]}.npy"
    with store.locked(folder, f".{path.stem}.lock", WAIT):
        if not path.is_file():
            with store.replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, _states(model, n, sequences, pad_id, score_tokens(member)))
    with _known_below(model, n, sequences, np.load(path, mmap_mode="r"), pad_id):
        return predict_logits(model, member, encoded, pad_id, label, partial)


def _states(
    model: nn.Module, n: int, sequences: list[NDArray[np.int32]], pad_id: int, budget: int
) -> NDArray[np.float32]:
    """Return (tokens, d): the output of the lowest ``n`` layers, the sequences' one after another."""
    taken: list[torch.Tensor] = []

    def reached(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        taken.append(output)
        raise _Reached

    states: dict[int, NDArray[np.float32]] = {}
    handle = decoder_layers(model)[n - 1].register_forward_hook(reached)
    with torch.inference_mode():
        for rows in cut(np.array([len(s) for s in sequences]), budget):
            try:
                model(**collate([sequences[row] for row in rows], pad_id))
            except _Reached:
                for row, hidden in zip(rows, taken.pop().float().numpy(), strict=True):
                    states[row] = hidden[: len(sequences[row])].copy()
    handle.remove()
    return np.concatenate([states[row] for row in range(len(sequences))])


@contextmanager
def _known_below(
    model: nn.Module, n: int, sequences: list[NDArray[np.int32]], states: NDArray[np.float32], pad_id: int
) -> Iterator[None]:
    """Inside, the model's lowest ``n`` layers pass on what they get, and the last of them gives the stored states."""
    starts = np.concatenate([[0], np.cumsum([len(s) for s in sequences])])
    row_of = {sequence.tobytes(): row for row, sequence in enumerate(sequences)}
    batch: list[torch.Tensor] = []

    def remember(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        batch[:] = [kwargs["input_ids"]]

    def look_up(module: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(output)
        for i, ids in enumerate(batch[0].numpy().astype(np.int32)):
            length = int(np.flatnonzero(ids != pad_id)[-1]) + 1
            start = starts[row_of[ids[:length].tobytes()]]
            out[i, :length] = torch.from_numpy(states[start : start + length].copy())
        return out

    lower = decoder_layers(model)[:n]
    own = [layer.forward for layer in lower]
    handles = [model.register_forward_pre_hook(remember, with_kwargs=True), lower[-1].register_forward_hook(look_up)]
    for layer in lower:
        layer.forward = lambda hidden, *_, **__: hidden
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer, forward in zip(lower, own, strict=True):
            layer.forward = forward
