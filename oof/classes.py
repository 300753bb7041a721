"""Class order, winner columns and the swap of A and B: the one place for each.

Everywhere the classes are (a, b, tie) = labels 0, 1, 2. A model reads each battle in two orders: ``ab`` as given,
``ba`` with the two responses swapped; its predictions in order ``ba`` are stored back in class order.
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


def class_counts(labels: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Return (3,) numbers of battles per class of (n,) labels."""
    return np.bincount(labels, minlength=len(CLASSES)).astype(np.int64)


def swap_classes(values: NDArray[Any]) -> NDArray[Any]:
    """Return (..., 3) logits or probabilities of the same battles with A and B swapped."""
    return np.asarray(values[..., SWAPPED])


def swap_labels(labels: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Return (n,) labels of the same battles with A and B swapped."""
    return np.asarray(np.array(SWAPPED, dtype=np.int64)[labels])


def swap_orders(logits: NDArray[Any]) -> NDArray[Any]:
    """Return (n, 2, 3) logits of the same battles with A and B swapped: order ab becomes ba, and class a class b."""
    return swap_classes(logits[:, ::-1])
