"""Near-duplicate texts: MinHash LSH proposes pairs, each is measured exactly, joined pairs form components.

Two texts are near-duplicates when the Jaccard similarity of their sets of character 5-grams reaches the
threshold, except under the *template rule*: a long shared beginning is not enough by itself.

* A beginning of at least ``TEMPLATE`` characters (whole words) that at least ``TEMPLATE_TEXTS`` texts share is a
  **known template**. If one of two texts begins with one, the template's 5-grams are left out, and the remaining
  ones must reach the threshold too. So neither a template nor edited copies of it make one giant group.
* Two texts without a known template that share such a beginning must also be alike after it: the texts after the
  beginning must reach half the threshold, or one text must be nothing but the beginning of the other.
* In both cases a small edit is no difference: the texts are joined if the part between their shared beginning and
  their shared end has at most ``TINY`` characters in each.

Texts come sorted and distinct, so results do not depend on the order of a table's rows.

Documented bounds:

* a text longer than ``oof.folds.minhash.CAP`` characters is represented by its first and last halves of that;
* pairs come from LSH (:mod:`oof.folds.candidates`), so a few at the threshold may be missed;
* texts with a known template, which are all alike as wholes, meet in LSH by their remaining 5-grams;
* a small edit under a known template is found between neighbours in alphabetical order only.

Source: Broder, On the resemblance and containment of documents, 1997.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from oof.folds.candidates import Pairs, candidate_pairs
from oof.folds.minhash import (
    chunks,
    distinct,
    family_shingles,
    jaccard,
    minhash,
    row_sums,
    shared_prefix,
    shingle_matrix,
)

TEMPLATE = 48  # characters: a shared beginning of at least this length may be a template
TEMPLATE_TEXTS = 32  # texts: the fewest that share a beginning to make it a known template
TINY = 10  # characters (a word) by which two texts of one template may differ and still be the same prompt


def components(texts: pl.Series, threshold: float) -> NDArray[np.int64]:
    """Return (n,) component numbers of (n,) distinct, sorted, non-empty texts: equal = near-duplicates, transitively.

    Args:
        texts: String series, normalised (see ``oof.folds.groups.normalise``) and capped (``oof.folds.minhash.cap``).
        threshold: Jaccard similarity in (0, 1].
    """
    n = len(texts)
    if n < 2:
        return np.zeros(n, dtype=np.int64)
    lengths = _template_lengths(texts)
    members = np.flatnonzero(lengths)
    inside = texts.gather(members)
    frame = pl.DataFrame({"template": inside.str.head(pl.Series(lengths[members])), "start": inside.str.head(TEMPLATE)})
    frame = frame.with_columns(pl.all().rank("dense").cast(pl.Int64).name.suffix("_number"))
    template = np.full(n, -1, dtype=np.int64)
    template[members] = frame["template_number"]
    codes = candidate_pairs(texts, minhash(texts), threshold, template)
    if len(members):  # leave out the 5-grams of all templates that begin alike: they make these texts alike as wholes
        templates = frame.unique("template", maintain_order=True)
        excluded = family_shingles(templates["template"], templates["start_number"].to_numpy())
        signatures = minhash(inside, frame["start_number"].to_numpy(), excluded)
        local = candidate_pairs(inside, signatures, threshold, np.full(len(members), -1))
        neighbours = np.flatnonzero((template[1:] == template[:-1]) & (template[1:] >= 0))  # small edits at the end
        codes = distinct(
            codes, neighbours * (n + 1) + 1, members[local // len(members)] * n + members[local % len(members)]
        )
    return _verify(texts, lengths, np.stack([codes // n, codes % n], axis=1), threshold)


def alike_beyond_template(texts: pl.Series, pairs: Pairs, threshold: float) -> NDArray[np.bool_]:
    """Return (m,) flags: do the texts of a pair reach the threshold by more than a shared template?

    This is the template rule without its clause on small edits under a known template, of which the grouping looks at
    alphabetical neighbours only.

    Args:
        texts: as in :func:`components`; the known templates are those of these texts.
        pairs: (m, 2) positions in ``texts``.
        threshold: Jaccard similarity in (0, 1].
    """
    lengths = _template_lengths(texts)
    flags = np.zeros(len(pairs), dtype=np.bool_)
    for start, stop in chunks(texts.str.len_chars().to_numpy()[pairs].sum(axis=1)):
        used, local = np.unique(pairs[start:stop], return_inverse=True)
        local = local.reshape(-1, 2)
        _, flags[start:stop] = _similar(texts.gather(used).to_list(), lengths[used], local, threshold)
    return flags


def connected(n: int, pairs: Pairs) -> NDArray[np.int64]:
    """Return (n,) component numbers of the undirected graph with ``n`` nodes and (m, 2) edges."""
    graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return np.asarray(connected_components(graph.tocsr(), directed=False)[1], dtype=np.int64)


# --- known templates -----------------------------------------------------------------------------------------


def _template_lengths(texts: pl.Series) -> NDArray[np.int64]:
    """Return (n,) lengths in characters of the known templates that sorted texts begin with; 0 = none.

    It is the longest beginning, in whole words, that ``TEMPLATE_TEXTS`` texts share.
    """
    n = len(texts)
    if n < TEMPLATE_TEXTS:
        return np.zeros(n, dtype=np.int64)
    # overlap[i + TEMPLATE_TEXTS - 1]: characters that texts i and i + 1 share
    overlap = np.zeros(n + TEMPLATE_TEXTS - 2, dtype=np.int64)
    last = ""
    for start in range(0, n, 8192):
        for i, text in enumerate(texts[start : start + 8192].to_list(), start):
            overlap[max(i + TEMPLATE_TEXTS - 2, 0)] = shared_prefix(last, text) if i else 0
            last = text
    sliding = np.lib.stride_tricks.sliding_window_view
    padded = np.append(overlap, np.zeros(TEMPLATE_TEXTS - 1, np.int64))
    shared = sliding(padded, TEMPLATE_TEXTS - 1).min(axis=1)  # by TEMPLATE_TEXTS neighbours
    longest = sliding(shared, TEMPLATE_TEXTS)[:n].max(axis=1)
    lengths = np.zeros(n, dtype=np.int64)
    rows = np.flatnonzero(longest >= TEMPLATE)
    for i, text in zip(rows.tolist(), texts.gather(rows).to_list(), strict=True):
        end = int(longest[i])
        lengths[i] = end if text[end : end + 1] in ("", " ") else max(text.rfind(" ", 0, end), 0)
    lengths[lengths < TEMPLATE] = 0
    return lengths


# --- the rule for a pair -------------------------------------------------------------------------------------


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
        alike = _near_duplicates(texts.gather(used).to_list(), lengths[used], local.reshape(-1, 2), threshold)
        if alike.any():
            joined = np.concatenate([joined, some[alike]])
            labels = connected(n, joined)
    return labels


def _near_duplicates(texts: list[str], lengths: NDArray[np.int64], pairs: Pairs, threshold: float) -> NDArray[np.bool_]:
    """Return (m,) flags: are the texts of a pair near-duplicates by the rule in this module's docstring?"""
    whole, alike = _similar(texts, lengths, pairs, threshold)
    for row in np.flatnonzero(whole & ~alike).tolist():
        alike[row] = _edit_length(*(texts[i] for i in pairs[row])) <= TINY
    return alike


def _similar(
    texts: list[str], lengths: NDArray[np.int64], pairs: Pairs, threshold: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return two times (m,) flags: do whole texts reach the threshold, and do they so beyond a shared template?

    A small edit under a known template does not count in the second flags.
    """
    matrix = shingle_matrix(texts)
    left, right = pairs.T
    whole = _reach(matrix[left], matrix[right], threshold)
    beyond = whole.copy()
    known = lengths[pairs].any(axis=1)
    rows = np.flatnonzero(whole & known)
    if len(rows):
        templates = shingle_matrix([text[:length] for text, length in zip(texts, lengths.tolist(), strict=True)])
        both = templates[left[rows]].maximum(templates[right[rows]])
        one, two = (side - side.multiply(both) for side in (matrix[left[rows]], matrix[right[rows]]))
        beyond[rows] = _reach(one, two, threshold)
    for row in np.flatnonzero(whole & ~known).tolist():
        beyond[row] = _more_than_a_beginning(texts[left[row]], texts[right[row]], threshold)
    return whole, beyond


def _reach(one: csr_array, two: csr_array, threshold: float) -> NDArray[np.bool_]:
    shared = row_sums(one.multiply(two))
    return np.asarray(shared >= threshold * (row_sums(one) + row_sums(two) - shared))


def _more_than_a_beginning(one: str, two: str, threshold: float) -> bool:
    """Return whether two texts without a known template are alike after their shared beginning, too."""
    same = _shared_words(one, two)
    if same < TEMPLATE or same in (len(one), len(two)) or _edit_length(one, two) <= TINY:
        return True
    return bool(jaccard([one[same:].lstrip()], [two[same:].lstrip()])[0] >= threshold / 2)


def _edit_length(one: str, two: str) -> int:
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
