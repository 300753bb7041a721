"""Character 5-grams of texts: exact Jaccard similarity, MinHash signatures and the keys of LSH bands.

Exact similarities are products of sparse matrices, signatures come from rensa. Everything runs in chunks of bounded
size, in C or Rust; there is no Python loop over characters.

Source: Leskovec et al., Mining of Massive Datasets, chapter 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl
import rensa
from numpy.typing import NDArray
from scipy.sparse import csr_array

SHINGLE = 5  # characters
CAP = 20_000  # characters of one text that are compared
N_COLUMNS = 2**62  # a shingle's column is its hash: in one pair of texts two hashes collide with P of about 1e-12
PERMUTATIONS = 128
SEED = 1
CHUNK = 2_000_000  # characters whose shingles are in memory at a time (about 50 bytes each)
# A pair whose estimated similarity lies this far under the threshold (five standard errors) needs no exact measure.
ESTIMATE_MARGIN = 0.22


def cap(texts: pl.Series) -> pl.Series:
    """Return the texts, those of more than ``CAP`` characters as their first and last ``CAP // 2`` characters."""
    half = CAP // 2
    return texts.zip_with(texts.str.len_chars() <= CAP, texts.str.head(half) + texts.str.tail(half))


def jaccard(left: Sequence[str], right: Sequence[str]) -> NDArray[np.float64]:
    """Return (m,) exact Jaccard similarities of the character 5-gram sets of ``left[i]`` and ``right[i]``."""
    one, two = shingle_matrix(left), shingle_matrix(right)
    shared = row_sums(one.multiply(two))
    return shared / (row_sums(one) + row_sums(two) - shared)


def shingle_matrix(texts: Sequence[str]) -> csr_array:
    """Return the (n, 2**62) 0/1 matrix, int32, of shingle sets; the column of a shingle is its 62-bit hash."""
    hashes, offsets = _shingle_hashes(texts)
    matrix = csr_array((np.ones(len(hashes), np.int32), _columns(hashes), offsets), shape=(len(texts), N_COLUMNS))
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def row_sums(matrix: csr_array) -> NDArray[np.float64]:
    """Return (n,) sums over the columns."""
    return np.asarray(matrix.sum(axis=1), dtype=np.float64)


# --- MinHash signatures --------------------------------------------------------------------------------------


def minhash(
    texts: pl.Series, families: NDArray[np.int64] | None = None, excluded: NDArray[np.int64] | None = None
) -> NDArray[np.uint32]:
    """Return (n, PERMUTATIONS) MinHash signatures of (n,) texts.

    Args:
        texts: String series.
        families: (n,) family numbers >= 0; with ``excluded``, the shingles of a text's family are left out.
        excluded: the families' shingles, as :func:`family_shingles` returns them.
    """
    signatures = np.empty((len(texts), PERMUTATIONS), dtype=np.uint32)
    for start, stop in chunks(texts.str.len_chars().to_numpy()):
        hashes, offsets = _shingle_hashes(texts[start:stop].to_list())
        if families is not None and excluded is not None:
            codes = _family_codes(_columns(hashes), offsets, families[start:stop])
            kept = excluded[np.minimum(np.searchsorted(excluded, codes), len(excluded) - 1)] != codes
            hashes = hashes[kept]
            offsets = np.concatenate([[0], np.cumsum(np.add.reduceat(kept, offsets[:-1], dtype=np.int64))])
        offsets = offsets.astype(np.uint64)
        digests = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, PERMUTATIONS, SEED)
        signatures[start:stop] = digests.to_rows()
    return signatures


def family_shingles(texts: pl.Series, families: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sorted distinct codes of (family, shingle) for all shingles of the (n,) texts in (n,) families."""
    codes = np.empty(0, np.int64)
    for start, stop in chunks(texts.str.len_chars().to_numpy()):
        hashes, offsets = _shingle_hashes(texts[start:stop].to_list())
        codes = distinct(codes, _family_codes(_columns(hashes), offsets, families[start:stop]))
    return codes


def _family_codes(
    columns: NDArray[np.integer], offsets: NDArray[np.integer], families: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return one number for each (family, column) of rows that begin at ``offsets``."""
    return columns ^ np.repeat(families * 0x1E3779B97F4A7C15, offsets[1:] - offsets[:-1])  # wraps around, mixing


def estimated_jaccard(
    left: NDArray[np.uint32], right: NDArray[np.uint32], pairs: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return (m,) MinHash estimates of the similarity of (m, 2) pairs (row of ``left``, row of ``right``)."""
    estimates = np.empty(len(pairs))
    for start in range(0, len(pairs), 65536):
        some = pairs[start : start + 65536]
        estimates[start : start + 65536] = (left[some[:, 0]] == right[some[:, 1]]).mean(axis=1)
    return estimates


# --- LSH bands -----------------------------------------------------------------------------------------------


def band_rows(threshold: float) -> int:
    """Return the most rows of a band (a power of two) with which a pair at the threshold is found with P >= 0.999."""
    rows = 1
    while rows < 16 and (1 - threshold ** (2 * rows)) ** (PERMUTATIONS // (2 * rows)) <= 1e-3:
        rows *= 2
    return rows


def band_keys(signatures: NDArray[np.uint32], threshold: float) -> Iterator[NDArray[np.uint64]]:
    """Yield for each band the (n,) keys of (n, PERMUTATIONS) signatures; texts with equal keys share a bucket.

    Args:
        signatures: as :func:`minhash` returns them.
        threshold: Jaccard similarity from which a pair should share a bucket; it decides the number of bands.
    """
    rows = band_rows(threshold)
    for first in range(0, PERMUTATIONS, rows):
        keys = np.zeros(len(signatures), dtype=np.uint64)
        for column in range(first, first + rows):
            keys = (keys ^ signatures[:, column]) * np.uint64(0x9E3779B97F4A7C15)
            keys ^= keys >> np.uint64(29)
        yield keys


# --- helpers -------------------------------------------------------------------------------------------------


def distinct(*codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sorted distinct values (numpy 2.4's hashing ``unique`` is 100 times slower on such codes)."""
    values = np.sort(np.concatenate(codes), kind="stable")  # quick on sorted runs
    return values[np.append(True, values[1:] != values[:-1])] if len(values) else values


def chunks(sizes: NDArray[np.integer]) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) row ranges of about ``CHUNK`` characters and at most 8,192 rows."""
    ends = np.cumsum(sizes, dtype=np.int64)
    start = 0
    while start < len(sizes):
        before = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, before + CHUNK, side="right"))
        stop = min(max(stop, start + 1), start + 8192)
        yield start, stop
        start = stop


def shared_prefix(one: str, two: str) -> int:
    """Return the length of the longest common prefix (bisection over slices: no Python loop over characters)."""
    low, high = 0, min(len(one), len(two))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == two[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _shingle_hashes(texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return 64-bit hashes of all character 5-grams, repeats included, and (n + 1,) row offsets.

    A text of fewer than five characters is padded with NUL characters to one shingle.
    """
    padded = [text.ljust(SHINGLE, "\0") for text in texts]
    codes = np.frombuffer("".join(padded).encode("utf-32-le"), dtype=np.uint32)
    lengths = np.fromiter(map(len, padded), dtype=np.int64, count=len(padded))
    hashes = np.zeros(max(len(codes) - SHINGLE + 1, 0), dtype=np.uint64)
    for k in range(SHINGLE):  # polynomial hash modulo 2**64, then MurmurHash3's finaliser
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[k : len(codes) - SHINGLE + 1 + k]
    hashes ^= hashes >> np.uint64(33)
    hashes *= np.uint64(0xFF51AFD7ED558CCD)
    hashes ^= hashes >> np.uint64(33)
    inside = np.ones(len(hashes), dtype=bool)  # no shingle may cross from one text into the next
    ends = np.cumsum(lengths)[:-1]
    for k in range(1, SHINGLE):
        inside[ends - k] = False
    return hashes[inside], np.concatenate([[0], np.cumsum(lengths - SHINGLE + 1)])


def _columns(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    return (hashes >> np.uint64(2)).astype(np.int64)
