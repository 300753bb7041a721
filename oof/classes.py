"""Class order, winner columns and the swap of A and B: the one place for each.

Everywhere the classes are (a, b, tie) = labels 0, 1, 2. A model reads each battle in two orders: ``ab`` as given,
``ba`` with the two responses swapped; its predictions in order ``ba`` are stored back in class order.

Of data without ties (``data.ties=false``) models have two outputs, a and b. Wherever their logits are kept or combined
they have the third column, too: :func:`with_tie` pins it so low that a tie has the probability 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

CLASSES = ("a", "b", "tie")
A, B, TIE = range(3)
ORDERS = ("ab", "ba")
WINNER_COLUMNS = ("winner_model_a", "winner_model_b", "winner_tie")  # of the competition's files, in class order
SWAPPED = (B, A, TIE)  # the class that each class becomes when A and B are swapped
TIE_GAP = 2000.0  # of a pinned tie below a and b: at the largest temperature, 50, its probability is below 1e-12


def class_counts(labels: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Return (3,) numbers of battles per class of (n,) labels."""
    return np.bincount(labels, minlength=len(CLASSES)).astype(np.int64)


def swap_classes(values: NDArray[Any]) -> NDArray[Any]:
    """Return (..., 3) logits or probabilities, or (..., 2) without ties, of the same battles with A and B swapped."""
    return np.asarray(values[..., SWAPPED[: values.shape[-1]]])


def classes_of_data(ties: bool) -> tuple[str, ...]:
    """Return the classes of models of such data: all three, or a and b without ties (``data.ties=false``)."""
    return CLASSES if ties else CLASSES[:TIE]


def with_tie(logits: NDArray[Any]) -> NDArray[Any]:
    """Return (..., 2) logits of a and b with a tie pinned ``TIE_GAP`` below their mean; (..., 3) logits as they are.

    The mean, so that the tie's centred logit is the same in every battle, and no model can learn from it.
    """
    if logits.shape[-1] == len(CLASSES):
        return logits
    tie = logits.mean(axis=-1, keepdims=True) - TIE_GAP
    return np.concatenate([logits, tie.astype(logits.dtype)], axis=-1)


def without_ties(logits: NDArray[np.floating[Any]]) -> bool:
    """Return whether the tie is pinned in every one of (..., 3) logits: they are of models of two classes."""

    def pinned(rows: NDArray[np.floating[Any]]) -> bool:
        gaps = (rows[..., A] + rows[..., B]) / 2 - rows[..., TIE]
        return bool(gaps.min() > TIE_GAP / 4)  # some combiners have moved it a little

    # Fits of three classes ask at each evaluation: the first row tells.
    return logits.size > 0 and pinned(logits[(0,) * (logits.ndim - 1)]) and pinned(logits)


def pinned_as(source: NDArray[np.floating[Any]], logits: NDArray[Any]) -> NDArray[Any]:
    """Return (..., 3) logits that were computed from ``source``, with the tie pinned again if it is pinned there."""
    return with_tie(logits[..., :TIE]) if without_ties(source) else logits


def swap_labels(labels: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Return (n,) labels of the same battles with A and B swapped."""
    return np.asarray(np.array(SWAPPED, dtype=np.int64)[labels])


def swap_orders(logits: NDArray[Any]) -> NDArray[Any]:
    """Return (n, 2, 3) logits of the same battles with A and B swapped: order ab becomes ba, and class a class b."""
    return swap_classes(logits[:, ::-1])
