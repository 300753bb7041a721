"""Texts -> sets of character 5-grams: exact Jaccard similarities as sparse products, MinHash signatures from rensa.

Everything runs in chunks of bounded size, in C or Rust; there is no Python loop over characters.
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
PERMUTATIONS = 128
SEED = 1
CHUNK = 2_000_000  # characters whose shingles are in memory at a time (about 50 bytes each)


def cap(texts: pl.Series) -> pl.Series:
    """Replace each text of more than ``CAP`` characters by its first and last ``CAP // 2``."""
    half = CAP // 2
    short = pl.concat_str(pl.col("t").str.head(half), pl.col("t").str.tail(half))
    return (
        pl.DataFrame({"t": texts})
        .select(pl.when(pl.col("t").str.len_chars() > CAP).then(short).otherwise(pl.col("t")).alias("t"))
        .to_series()
    )


def jaccard(left: Sequence[str], right: Sequence[str]) -> NDArray[np.float64]:
    """Return (m,) exact Jaccard similarities of the character 5-gram sets of ``left[i]`` and ``right[i]``."""
    one, two = shingle_matrix(left), shingle_matrix(right)
    shared = row_sums(one.multiply(two))
    return shared / (row_sums(one) + row_sums(two) - shared)


def shingle_matrix(texts: Sequence[str]) -> csr_array:
    """Return the (n, 2**62) 0/1 matrix of shingle sets; a column is a 62-bit hash (collisions: about 1e-12 a pair)."""
    hashes, offsets = _shingle_hashes(texts)
    columns = (hashes >> np.uint64(2)).astype(np.int64)
    matrix = csr_array((np.ones(len(columns), np.int32), columns, offsets.astype(np.int64)), shape=(len(texts), 2**62))
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def row_sums(matrix: csr_array) -> NDArray[np.float64]:
    """Return (n,) sums over the columns."""
    return np.asarray(matrix.sum(axis=1), dtype=np.float64)


def minhash(texts: pl.Series, families: NDArray[np.int64], removed: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Return (n, PERMUTATIONS) MinHash signatures of (n,) texts, without their family's shingles in ``removed``.

    Args:
        texts: String series.
        families: (n,) numbers >= 0.
        removed: sorted keys made by :func:`family_shingles`; may be empty.
    """
    signatures = np.empty((len(texts), PERMUTATIONS), dtype=np.uint32)
    for start, stop in chunks(texts.str.len_chars().to_numpy()):
        hashes, offsets = _shingle_hashes(texts[start:stop].to_list())
        if len(removed):
            keys = _of_family(hashes, offsets, families[start:stop])
            kept = removed[np.minimum(np.searchsorted(removed, keys), len(removed) - 1)] != keys
            counts = np.add.reduceat(kept, offsets[:-1].astype(np.int64), dtype=np.int64)
            hashes, offsets = hashes[kept], np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)
        digests = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, PERMUTATIONS, SEED)
        signatures[start:stop] = digests.to_rows()
    return signatures


def family_shingles(texts: pl.Series, families: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return sorted distinct keys of (family, shingle) for all shingles of the texts."""
    found = [np.empty(0, dtype=np.uint64)]
    for start, stop in chunks(texts.str.len_chars().to_numpy()):
        hashes, offsets = _shingle_hashes(texts[start:stop].to_list())
        found.append(_of_family(hashes, offsets, families[start:stop]))
    keys = np.sort(np.concatenate(found))
    return keys[np.append(True, keys[1:] != keys[:-1])] if len(keys) else keys


def _of_family(
    hashes: NDArray[np.uint64], offsets: NDArray[np.uint64], families: NDArray[np.int64]
) -> NDArray[np.uint64]:
    keys = (families.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    ends = offsets.astype(np.int64)
    return hashes ^ np.repeat(keys, ends[1:] - ends[:-1])


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


def _shingle_hashes(texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return 64-bit hashes of all character 5-grams, repeats included, and (n + 1,) row offsets.

    A text of fewer than five characters is padded to one shingle.
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
    return hashes[inside], np.concatenate([[0], np.cumsum(lengths - SHINGLE + 1)]).astype(np.uint64)
