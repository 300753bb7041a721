"""MinHash LSH index of a run's prompts, against which the texts of a corpus are matched.

Candidate pairs share an LSH band and are then measured exactly. Only the first match of each prompt is kept; a prompt
with a match is not looked up again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from oof.folds import minhash

MAX_BUCKET = 64  # prompts: in a larger LSH bucket only so many are compared with one text of the corpus


@dataclass
class PromptIndex:
    """Distinct normalised prompts, sorted, with the first match of each.

    Attributes:
        texts: (t,) String.
        signatures: (t, PERMUTATIONS) uint32 MinHash signatures.
        keys, order: one array per LSH band: the sorted keys, and the positions of their texts.
        similarity: (t,) Jaccard similarity of the first match, NaN while there is none.
        file, row: (t,) number of the corpus file and 1-based row of the first match.
        threshold: Jaccard similarity from which two texts match.
    """

    texts: pl.Series
    signatures: NDArray[np.uint32]
    keys: list[NDArray[np.uint64]]
    order: list[NDArray[np.int64]]
    similarity: NDArray[np.float64]
    file: NDArray[np.int32]
    row: NDArray[np.int64]
    threshold: float

    @classmethod
    def build(cls, texts: pl.Series, threshold: float) -> PromptIndex:
        signatures = minhash.minhash(texts)
        keys = list(minhash.band_keys(signatures, threshold))
        order = [np.argsort(band, kind="stable") for band in keys]
        sorted_keys = [band[at] for band, at in zip(keys, order, strict=True)]
        n = len(texts)
        no_match = np.full(n, np.nan), np.full(n, -1, np.int32), np.zeros(n, np.int64)
        return cls(texts, signatures, sorted_keys, order, *no_match, threshold)

    def match(self, texts: pl.Series, file: int, rows: NDArray[np.int64]) -> None:
        """Match (m,) normalised, distinct corpus texts from the (m,) ``rows`` of a file."""
        signatures = minhash.minhash(texts)
        pairs = self._candidates(signatures)
        estimates = minhash.estimated_jaccard(self.signatures, signatures, pairs)
        pairs = pairs[estimates >= self.threshold - minhash.ESTIMATE_MARGIN]
        if not len(pairs):
            return
        sizes = self.texts.str.len_chars().to_numpy()[pairs[:, 0]] + texts.str.len_chars().to_numpy()[pairs[:, 1]]
        for start, stop in minhash.chunks(sizes):
            some = pairs[start:stop]
            similarity = minhash.jaccard(self.texts.gather(some[:, 0]).to_list(), texts.gather(some[:, 1]).to_list())
            reached = similarity >= self.threshold
            for (prompt, text), value in zip(some[reached].tolist(), similarity[reached].tolist(), strict=True):
                if np.isnan(self.similarity[prompt]):
                    self.similarity[prompt], self.file[prompt], self.row[prompt] = value, file, rows[text]

    def drop_matched(self) -> None:
        """Take prompts with a match out of the bands: they need no other, and would crowd large buckets."""
        for band, order in enumerate(self.order):
            unmatched = np.isnan(self.similarity[order])
            self.keys[band], self.order[band] = self.keys[band][unmatched], order[unmatched]

    def _candidates(self, signatures: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Return (p, 2) distinct pairs (prompt without a match, corpus text) that share a band."""
        n = len(signatures)
        codes = [np.empty(0, np.int64)]
        text_keys = minhash.band_keys(signatures, self.threshold)
        for keys, order, wanted in zip(self.keys, self.order, text_keys, strict=True):
            low, high = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
            counts = np.minimum(high - low, MAX_BUCKET)
            text = np.repeat(np.arange(n), counts)
            within = np.arange(len(text)) - np.repeat(np.cumsum(counts) - counts, counts)
            prompt = order[low[text] + within]
            unmatched = np.isnan(self.similarity[prompt])
            codes.append(prompt[unmatched] * n + text[unmatched])
        distinct = minhash.distinct(*codes)
        return np.stack([distinct // n, distinct % n], axis=1)
