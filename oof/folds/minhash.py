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
COLUMNS = 2**62  # a shingle's column is its hash; two of a pair's collide with probability about 1e-12
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
    matrix = csr_array((np.ones(len(hashes), np.int32), _columns(hashes), offsets), shape=(len(texts), COLUMNS))
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def row_sums(matrix: csr_array) -> NDArray[np.float64]:
    """Return (n,) sums over the columns."""
    return np.asarray(matrix.sum(axis=1), dtype=np.float64)


def minhash(
    texts: pl.Series, families: NDArray[np.int64] | None = None, known: NDArray[np.int64] | None = None
) -> NDArray[np.uint32]:
    """Return (n, PERMUTATIONS) MinHash signatures of (n,) texts, if asked without the shingles of their families.

    Args:
        texts: String series.
        families: (n,) numbers >= 0.
        known: made by :func:`family_keys`.
    """
    signatures = np.empty((len(texts), PERMUTATIONS), dtype=np.uint32)
    for start, stop in chunks(texts.str.len_chars().to_numpy()):
        hashes, offsets = _shingle_hashes(texts[start:stop].to_list())
        if families is not None and known is not None:
            kept = ~_is_known(_columns(hashes), offsets, families[start:stop], known)
            hashes = hashes[kept]
            offsets = np.concatenate([[0], np.cumsum(np.add.reduceat(kept, offsets[:-1], dtype=np.int64))])
        offsets = offsets.astype(np.uint64)
        digests = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, PERMUTATIONS, SEED)
        signatures[start:stop] = digests.to_rows()
    return signatures


def family_keys(texts: pl.Series, families: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return sorted distinct keys of (family, shingle) for all shingles of the texts."""
    keys = np.empty(0, np.int64)
    for start, stop in chunks(texts.str.len_chars().to_numpy()):
        hashes, offsets = _shingle_hashes(texts[start:stop].to_list())
        keys = distinct(keys, _keys(_columns(hashes), offsets, families[start:stop]))
    return keys


def _is_known(
    columns: NDArray[np.integer], offsets: NDArray[np.integer], families: NDArray[np.int64], known: NDArray[np.int64]
) -> NDArray[np.bool_]:
    keys = _keys(columns, offsets, families)
    return np.equal(known[np.minimum(np.searchsorted(known, keys), len(known) - 1)], keys)


def _keys(columns: NDArray[np.integer], offsets: NDArray[np.integer], families: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return one number for each (family, column) of rows that begin at ``offsets``."""
    return columns ^ np.repeat(families * 0x1E3779B97F4A7C15, offsets[1:] - offsets[:-1])  # wraps around, mixing


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
    return hashes[inside], np.concatenate([[0], np.cumsum(lengths - SHINGLE + 1)])


def _columns(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    return (hashes >> np.uint64(2)).astype(np.int64)
