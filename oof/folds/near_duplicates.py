"""Distinct normalised texts -> near-duplicate components, by MinHash LSH with exact verification.

Two texts are near-duplicates when the Jaccard similarity of their sets of character 5-grams reaches the
threshold, except under the *template rule*: a long shared beginning is not enough by itself.

* A beginning of at least ``TEMPLATE`` characters (whole words) that at least ``BUCKET`` texts share is a **known
  template**. If one of two texts begins with one, its 5-grams are left out, and what else the texts say must reach
  the threshold too. So neither a template nor edited copies of it make one giant group.
* Two texts without a known template that share such a beginning must also be alike after it: the rests must reach
  half the threshold, or one text must be nothing but the beginning of the other.
* In both cases a small edit is no difference: the texts are joined if what lies between their shared beginning and
  their shared end has at most ``TINY`` characters in each.

MinHash only proposes pairs; each is then measured exactly. Texts come sorted and distinct, so results cannot depend
on the order of a table's rows.

Bounds, all documented so that they can be argued with:

* a text longer than ``CAP`` characters is represented by its first and last halves of that;
* the LSH bands find a pair at the threshold with probability >= 0.999, more similar ones practically always;
* in an LSH bucket of more than ``BUCKET`` texts, each is compared only with its ``CROWDED`` successors in
  alphabetical order and in that of the reversed texts, and with one at random: work grows with n, not with the
  square of the bucket;
* texts with a known template, which are all alike as wholes, meet in LSH by what they say beyond it.

Source: Broder, On the resemblance and containment of documents, 1997; Leskovec et al., Mining of Massive
Datasets, chapter 3.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from oof.folds.minhash import (
    PERMUTATIONS,
    SEED,
    chunks,
    distinct,
    family_keys,
    jaccard,
    minhash,
    row_sums,
    shared_prefix,
    shingle_matrix,
)

TEMPLATE = 48  # characters: a shared beginning of at least this length may be a template
TINY = 10  # characters: what two texts of one template may differ by and still be the same prompt (a word)
BUCKET = 32  # texts: the largest LSH bucket of which all pairs are compared, the smallest family of a known template
CROWDED = 4  # neighbours that a text is compared with inside a larger bucket
# A pair whose MinHash estimate lies this far under the threshold (five standard errors) is not measured exactly.
MARGIN = 0.22

Pairs = NDArray[np.int64]  # (m, 2), first < second


def components(texts: pl.Series, threshold: float) -> NDArray[np.int64]:
    """Return (n,) component numbers of (n,) distinct, sorted, non-empty texts: equal = near-duplicates, transitively.

    Args:
        texts: String series, normalised (see ``oof.folds.groups.normalise``) and capped (``oof.folds.minhash.cap``).
        threshold: Jaccard similarity in (0, 1].
    """
    n = len(texts)
    if n < 2:
        return np.zeros(n, dtype=np.int64)
    lengths = _templates(texts)
    members = np.flatnonzero(lengths)
    inside = texts.gather(members)
    frame = pl.DataFrame({"template": inside.str.head(pl.Series(lengths[members])), "start": inside.str.head(TEMPLATE)})
    frame = frame.with_columns(pl.all().rank("dense").cast(pl.Int64).name.suffix("_number"))
    same = np.full(n, -1, dtype=np.int64)
    same[members] = frame["template_number"]
    codes = _candidates(texts, minhash(texts), threshold, same)
    if len(members):  # texts of one template are alike as wholes: propose those alike beyond all that begin like it
        templates = frame.unique("template", maintain_order=True)
        known = family_keys(templates["template"], templates["start_number"].to_numpy())
        rests = minhash(inside, frame["start_number"].to_numpy(), known)
        local = _candidates(inside, rests, threshold, np.full(len(members), -1))
        neighbours = np.flatnonzero((same[1:] == same[:-1]) & (same[1:] >= 0))  # small edits at the end
        codes = distinct(
            codes, neighbours * (n + 1) + 1, members[local // len(members)] * n + members[local % len(members)]
        )
    return _verify(texts, lengths, np.stack([codes // n, codes % n], axis=1), threshold)


def connected(n: int, pairs: Pairs) -> NDArray[np.int64]:
    """Return (n,) component numbers of the undirected graph with ``n`` nodes and (m, 2) edges."""
    graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return np.asarray(connected_components(graph.tocsr(), directed=False)[1], dtype=np.int64)


def _templates(texts: pl.Series) -> NDArray[np.int64]:
    """Return (n,) lengths of the longest beginning, whole words, that ``BUCKET`` texts share; 0 below ``TEMPLATE``."""
    n = len(texts)
    if n < BUCKET:
        return np.zeros(n, dtype=np.int64)
    overlap = np.zeros(n + BUCKET - 2, dtype=np.int64)  # [i + BUCKET - 1]: characters that texts i and i + 1 share
    last = ""
    for start in range(0, n, 8192):
        for i, text in enumerate(texts[start : start + 8192].to_list(), start):
            overlap[max(i + BUCKET - 2, 0)] = shared_prefix(last, text) if i else 0
            last = text
    windows = np.lib.stride_tricks.sliding_window_view
    shared = windows(np.append(overlap, np.zeros(BUCKET - 1, np.int64)), BUCKET - 1).min(axis=1)  # by BUCKET neighbours
    longest = windows(shared, BUCKET)[:n].max(axis=1)
    found = np.flatnonzero(longest >= TEMPLATE)
    lengths = np.zeros(n, dtype=np.int64)
    for i, text in zip(found.tolist(), texts.gather(found).to_list(), strict=True):
        end = int(longest[i])
        lengths[i] = end if text[end : end + 1] in ("", " ") else max(text.rfind(" ", 0, end), 0)
    lengths[lengths < TEMPLATE] = 0
    return lengths


def _candidates(
    texts: pl.Series, signatures: NDArray[np.uint32], threshold: float, family: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return candidate pairs as sorted distinct codes ``first * n + second``.

    Args:
        texts: n distinct texts, in an order that depends on content only.
        signatures: (n, PERMUTATIONS) MinHash signatures.
        threshold: Jaccard similarity from which a pair should be found.
        family: (n,) numbers; pairs within one family are not returned; -1 = in no family.
    """
    n, rows = len(texts), band_rows(threshold)
    rng = np.random.default_rng(SEED)
    ranks: list[NDArray[np.int64]] = []  # made only when a bucket is large
    examined = kept = np.empty(0, dtype=np.int64)
    for column in range(0, PERMUTATIONS, rows):
        keys = np.zeros(n, dtype=np.uint64)
        for k in range(column, column + rows):
            keys = (keys ^ signatures[:, k]) * np.uint64(0x9E3779B97F4A7C15)
            keys ^= keys >> np.uint64(29)
        _, bucket, sizes = np.unique(keys, return_inverse=True, return_counts=True)
        size = sizes[bucket]
        some, many = np.flatnonzero((size > 1) & (size <= BUCKET)), np.flatnonzero(size > BUCKET)
        found = [_window_pairs(some, bucket[some], some, BUCKET)]
        if len(many):
            ranks = ranks or [_rank(texts), _rank(texts.str.reverse())]
            found += [_window_pairs(many, bucket[many], rank[many], CROWDED) for rank in ranks]
            found.append(_window_pairs(many, bucket[many], rng.permutation(len(many)), 1))
        pairs = np.concatenate(found)
        left, right = pairs.min(axis=1), pairs.max(axis=1)
        apart = (family[left] < 0) | (family[left] != family[right])
        new = distinct(left[apart] * n + right[apart])
        if len(examined):
            new = new[examined[np.minimum(np.searchsorted(examined, new), len(examined) - 1)] != new]
        examined = distinct(examined, new)
        likely = _estimates(signatures, np.stack([new // n, new % n], axis=1)) >= threshold - MARGIN
        kept = distinct(kept, new[likely])
    return kept


def _window_pairs(rows: NDArray[np.int64], bucket: NDArray[np.int64], rank: NDArray[np.int64], window: int) -> Pairs:
    """Return the pairs of ``rows`` in one bucket that are at most ``window`` places apart in rank."""
    order = np.lexsort((rank, bucket))
    rows, bucket = rows[order], bucket[order]
    found = [np.empty((0, 2), np.int64)]
    for distance in range(1, window + 1):
        starts = np.flatnonzero(bucket[distance:] == bucket[:-distance])
        if len(starts) == 0:
            break
        found.append(np.stack([rows[starts], rows[starts + distance]], axis=1))
    return np.concatenate(found)


def _rank(texts: pl.Series) -> NDArray[np.int64]:
    ranks = np.empty(len(texts), dtype=np.int64)
    ranks[texts.arg_sort().to_numpy()] = np.arange(len(texts))
    return ranks


def band_rows(threshold: float) -> int:
    """Return the most rows a band (a power of two) with which a pair at the threshold is found with P >= 0.999."""
    rows = 1
    while rows < 16 and (1 - threshold ** (2 * rows)) ** (PERMUTATIONS // (2 * rows)) <= 1e-3:
        rows *= 2
    return rows


def _estimates(signatures: NDArray[np.uint32], pairs: Pairs) -> NDArray[np.float64]:
    """Return (m,) MinHash estimates of the pairs' Jaccard similarities."""
    estimates = np.empty(len(pairs))
    for start in range(0, len(pairs), 65536):
        left, right = pairs[start : start + 65536].T
        estimates[start : start + 65536] = (signatures[left] == signatures[right]).mean(axis=1)
    return estimates


def _verify(texts: pl.Series, lengths: NDArray[np.int64], pairs: Pairs, threshold: float) -> NDArray[np.int64]:
    """Measure candidate pairs exactly and return (n,) component numbers; pairs already connected are skipped."""
    n, sizes = len(texts), texts.str.len_chars().to_numpy()
    joined = np.empty((0, 2), np.int64)
    labels = np.arange(n)
    for start, stop in chunks(sizes[pairs].sum(axis=1)):
        some = pairs[start:stop]
        some = some[labels[some[:, 0]] != labels[some[:, 1]]]
        if len(some) == 0:
            continue
        used, local = np.unique(some, return_inverse=True)
        alike = _alike(texts.gather(used).to_list(), lengths[used], local.reshape(-1, 2), threshold)
        if alike.any():
            joined = np.concatenate([joined, some[alike]])
            labels = connected(n, joined)
    return labels


def _alike(texts: list[str], lengths: NDArray[np.int64], pairs: Pairs, threshold: float) -> NDArray[np.bool_]:
    """Return (m,) flags: are the texts of a pair near-duplicates? The rule is at the head of this file."""
    matrix = shingle_matrix(texts)
    left, right = pairs.T
    alike = _reach(matrix[left], matrix[right], threshold)
    known = lengths[pairs].any(axis=1)
    rows = np.flatnonzero(alike & known)
    if len(rows):
        templates = shingle_matrix([text[:length] for text, length in zip(texts, lengths.tolist(), strict=True)])
        both = templates[left[rows]].maximum(templates[right[rows]])
        one, two = (side - side.multiply(both) for side in (matrix[left[rows]], matrix[right[rows]]))
        alike[rows] = _reach(one, two, threshold)
        for row in rows[~alike[rows]].tolist():
            alike[row] = _core(texts[left[row]], texts[right[row]]) <= TINY
    for row in np.flatnonzero(alike & ~known).tolist():
        alike[row] = _more_than_a_beginning(texts[left[row]], texts[right[row]], threshold)
    return alike


def _reach(one: csr_array, two: csr_array, threshold: float) -> NDArray[np.bool_]:
    shared = row_sums(one.multiply(two))
    return np.asarray(shared >= threshold * (row_sums(one) + row_sums(two) - shared))


def _more_than_a_beginning(one: str, two: str, threshold: float) -> bool:
    same = _shared_words(one, two)
    if same < TEMPLATE or same in (len(one), len(two)) or _core(one, two) <= TINY:
        return True
    return bool(jaccard([one[same:].lstrip()], [two[same:].lstrip()])[0] >= threshold / 2)


def _core(one: str, two: str) -> int:
    """Return how many characters of the longer text lie between the shared beginning (whole words) and shared end."""
    same = _shared_words(one, two)
    one, two = one[same:].lstrip(), two[same:].lstrip()
    return max(len(one), len(two)) - shared_prefix(one[::-1], two[::-1])


def _shared_words(one: str, two: str) -> int:
    """Return the length of the longest common beginning that ends between words in both texts."""
    same = shared_prefix(one, two)
    if all(same == len(text) or text[same] == " " for text in (one, two)):
        return same
    return max(one.rfind(" ", 0, same), 0)
