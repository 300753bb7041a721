"""Candidate pairs of near-duplicate texts by MinHash LSH.

Texts with the same key in any band share a bucket. Up to ``MAX_BUCKET`` texts of a bucket are all paired. In a larger
bucket each text is paired only with its ``CROWDED`` successors in alphabetical order and in that of the reversed
texts, and with one at random: the work grows with n, not with the square of the bucket.

Source: Leskovec et al., Mining of Massive Datasets, chapter 3.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from oof.folds.minhash import ESTIMATE_MARGIN, SEED, band_keys, distinct, estimated_jaccard

MAX_BUCKET = 32  # texts: the largest bucket of which all pairs are compared
CROWDED = 4  # neighbours that a text is paired with inside a larger bucket

Pairs = NDArray[np.int64]  # (m, 2), first < second


def candidate_pairs(
    texts: pl.Series, signatures: NDArray[np.uint32], threshold: float, family: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return candidate pairs as sorted distinct codes ``first * n + second``.

    A pair at the threshold is found with probability >= 0.999, more similar ones practically always.

    Args:
        texts: n distinct texts, in an order that depends on content only.
        signatures: (n, PERMUTATIONS) MinHash signatures.
        threshold: Jaccard similarity from which a pair should be found.
        family: (n,) numbers; pairs within one family are not returned; -1 = in no family.
    """
    n = len(texts)
    rng = np.random.default_rng(SEED)
    ranks: list[NDArray[np.int64]] = []  # made only when a bucket is large
    examined = kept = np.empty(0, dtype=np.int64)
    for keys in band_keys(signatures, threshold):
        _, bucket, sizes = np.unique(keys, return_inverse=True, return_counts=True)
        size = sizes[bucket]
        small, large = np.flatnonzero((size > 1) & (size <= MAX_BUCKET)), np.flatnonzero(size > MAX_BUCKET)
        proposed = [_neighbours(small, bucket[small], small, MAX_BUCKET)]
        if len(large):
            ranks = ranks or [_rank(texts), _rank(texts.str.reverse())]
            proposed += [_neighbours(large, bucket[large], rank[large], CROWDED) for rank in ranks]
            proposed.append(_neighbours(large, bucket[large], rng.permutation(len(large)), 1))
        pairs = np.concatenate(proposed)
        left, right = pairs.min(axis=1), pairs.max(axis=1)
        apart = (family[left] < 0) | (family[left] != family[right])
        new = distinct(left[apart] * n + right[apart])
        if len(examined):
            new = new[examined[np.minimum(np.searchsorted(examined, new), len(examined) - 1)] != new]
        examined = distinct(examined, new)
        estimates = estimated_jaccard(signatures, signatures, np.stack([new // n, new % n], axis=1))
        kept = distinct(kept, new[estimates >= threshold - ESTIMATE_MARGIN])
    return kept


def _neighbours(rows: NDArray[np.int64], bucket: NDArray[np.int64], rank: NDArray[np.int64], reach: int) -> Pairs:
    """Return the pairs of ``rows`` in one bucket that are at most ``reach`` places apart in rank."""
    order = np.lexsort((rank, bucket))
    rows, bucket = rows[order], bucket[order]
    pairs = [np.empty((0, 2), np.int64)]
    for distance in range(1, reach + 1):
        starts = np.flatnonzero(bucket[distance:] == bucket[:-distance])
        if len(starts) == 0:
            break
        pairs.append(np.stack([rows[starts], rows[starts + distance]], axis=1))
    return np.concatenate(pairs)


def _rank(texts: pl.Series) -> NDArray[np.int64]:
    ranks = np.empty(len(texts), dtype=np.int64)
    ranks[texts.arg_sort().to_numpy()] = np.arange(len(texts))
    return ranks
