"""Marker of a trimmed text, in place of its removed middle: an ellipsis, which may say how many tokens are gone.

The count's groups of three digits are tokenised one by one. So the largest marker that a text can get is known before
it is cut, from its length alone: what a budget keeps of it does not depend on the other texts, and a larger budget
never keeps less.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from oof.encoding.tokenization import TokenPool, encode_all, gather, offsets_of

ELLIPSIS = " …"
BEFORE_COUNT, AFTER_COUNT = " … [+", " tokens] …"
GROUP = 1000  # a count is written in groups of three digits: 1,234
FIRST, FURTHER = 2, 2 + GROUP  # piece numbers of the groups "0" to "999" and ",000" to ",999", after the words

Counts = NDArray[np.int64]


class Markers:
    """Token ids of the markers for one tokenizer.

    Attributes:
        counted: whether a marker says how many tokens it stands for.
        pieces: ids of the parts that markers are put together from.
    """

    def __init__(self, tokenizer: Any, kind: str) -> None:
        """``kind``: as ``prompts.marker``."""
        self.counted = kind == "count"
        texts = [ELLIPSIS]
        if self.counted:
            groups = [str(number) for number in range(GROUP)] + [f",{number:03}" for number in range(GROUP)]
            texts = [BEFORE_COUNT, AFTER_COUNT, *groups]
        self.pieces: TokenPool = encode_all(texts, tokenizer.backend_tokenizer)

    def largest(self, lengths: Counts) -> Counts:
        """Return the most tokens that a marker of each text can have, given the texts' tokens; of any shape."""
        sizes = self.pieces.lengths
        if not self.counted:
            return np.full(lengths.shape, sizes[0])
        largest_first = np.maximum.accumulate(sizes[FIRST:FURTHER])  # of all numbers up to each
        digits = largest_first[np.minimum(lengths, GROUP - 1)]
        for group in range(1, _groups(lengths)):
            first = lengths // GROUP**group
            more = largest_first[np.minimum(first, GROUP - 1)] + group * sizes[FURTHER:].max()
            digits = np.where(first > 0, np.maximum(digits, more), digits)
        return np.asarray(sizes[0] + digits + sizes[1])

    def of(self, lost: Counts) -> tuple[TokenPool, Counts]:
        """Return the ids of all different markers, and the marker of each trimmed text among them.

        Args:
            lost: (m,) tokens that each trimmed text has lost.
        """
        if not self.counted:
            return self.pieces, np.zeros_like(lost)
        counts, index = np.unique(lost, return_inverse=True)
        parts = [np.zeros_like(counts)]
        shown = [np.ones(len(counts), dtype=np.bool_)]
        for group in reversed(range(_groups(counts))):
            rest = counts // GROUP**group
            parts.append(np.where(rest < GROUP, FIRST, FURTHER) + rest % GROUP)
            shown.append((rest > 0) | (group == 0))
        pieces, kept = np.stack([*parts, np.ones_like(counts)], 1), np.stack([*shown, shown[0]], 1)
        lengths = self.pieces.lengths[pieces] * kept
        ids = gather(self.pieces.ids, self.pieces.offsets[pieces].reshape(-1), lengths.reshape(-1))
        return TokenPool(ids, offsets_of(lengths.sum(axis=1))), index.astype(np.int64)


def _groups(counts: Counts) -> int:
    """Return the groups of three digits that the largest of the counts has."""
    return -(-len(str(int(counts.max(initial=0)))) // 3)
