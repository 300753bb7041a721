"""Groups of battles with (near-)duplicate prompts, which must never sit on both sides of a split.

A battle's prompt text is all of its user turns. Prompts that are equal after normalisation (NFKC, case fold,
punctuation and white space) are joined by hash; near-duplicates by :mod:`oof.folds.near_duplicates`, with its rule for
shared templates; the closure is transitive. A group's number is the rank of its smallest content key, so it depends on
the battles' content alone, not on the order of rows or files.

Battles without prompt text are joined only if their (non-empty) responses are the same two texts, and each row without
any text (files of ids and labels) is its own group.
"""

from __future__ import annotations

import hashlib
import unicodedata
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from oof.common.errors import UserError
from oof.common.progress import progress
from oof.config import Groups
from oof.data.text_columns import prompt_texts
from oof.folds import minhash, near_duplicates

MIN_RESPONSE = 32  # normalised characters: shorter responses ("Yes.") are shared by unrelated battles
CHUNK_ROWS = 20_000


class Link(NamedTuple):
    """Battles ``rows[i]`` with equal ``values[i]`` belong to one group; a battle may occur never or several times."""

    rows: NDArray[np.int64]
    values: NDArray[np.int64]


def group_battles(table: pl.DataFrame, config: Groups) -> NDArray[np.int64]:
    """Return (n,) group numbers 0..G-1 of the (n,) battles of a canonical table.

    With ``config.column``, battles with a ``group_key`` are grouped by it instead; battles of roles other than
    train may lack a key, and are then joined with every battle of a (near-)duplicate prompt. With
    ``config.responses``, battles that share a response of at least 32 normalised characters are joined, too.

    Raises:
        UserError: ``config.column`` is set and a train battle has no value in it.
    """
    if table.height == 0:
        return np.empty(0, dtype=np.int64)
    with progress(f"near-duplicate prompts of {table.height:,} battles"):
        keys, texts = _prompt_keys(table)
        alike = _alike(keys, texts, config.threshold)
    links = [Link(np.arange(table.height), alike)]
    if config.column is not None:
        links, keys = _column_links(table, alike, config.column), _column_keys(table, keys)
    if config.responses:
        links.append(_response_link(table))
    return numbered(_closure(table.height, links), np.argsort(keys))  # no key occurs in two groups


def normalise(texts: pl.Series) -> pl.Series:
    """Return texts in NFKC, case-folded, with runs of punctuation, white space and control characters as one space.

    Format characters (zero-width joiners, byte order marks) are removed; symbols (``+``, ``=``, ``<``, emoji) are
    kept. A text of punctuation alone keeps it: ``?`` and ``!`` differ.
    """
    folded = pl.Series("t", [_fold(text) for text in texts.to_list()], dtype=pl.String)
    folded = folded.str.replace_all(r"\p{Cf}+", "")
    bare = folded.str.replace_all(r"[\p{P}\p{Cc}\s]+", " ").str.strip_chars()
    spaced = folded.str.replace_all(r"[\p{Cc}\s]+", " ").str.strip_chars()
    return bare.zip_with(bare != "", spaced)


def _fold(text: str) -> str:
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _key(*texts: str) -> bytes:
    """Return a content key of 32 hex digits; each text is preceded by its length, so that texts cannot run together."""
    data = b"".join(b"%d:%b" % (len(text), text) for text in (text.encode() for text in texts))
    return hashlib.blake2b(data, digest_size=16).hexdigest().encode()


def _prompt_keys(table: pl.DataFrame) -> tuple[NDArray[np.bytes_], dict[bytes, str]]:
    """Return (n,) content keys (equal = same normalised prompt) and key -> (capped) text of each non-empty prompt."""
    keys = np.empty(table.height, dtype="S32")
    texts: dict[bytes, str] = {}
    for start in range(0, table.height, CHUNK_ROWS):
        part = table.slice(start, CHUNK_ROWS)
        prompts = normalise(prompt_texts(part))
        for row, (full, capped) in enumerate(zip(prompts.to_list(), minhash.cap(prompts).to_list(), strict=True)):
            if full:
                key = _key("prompt", full)
                texts.setdefault(key, capped)
            else:
                key = _key_without_prompt(part, row)
            keys[start + row] = key
    return keys, texts


def _key_without_prompt(part: pl.DataFrame, row: int) -> bytes:
    pair = pl.Series([part["response_a"][row].to_list(), part["response_b"][row].to_list()], dtype=pl.List(pl.String))
    responses = normalise(pair.list.join("\n"))
    if (responses != "").any():
        return _key("responses", *sorted(responses.to_list()))
    return _key("id", part["id"][row])


def _alike(keys: NDArray[np.bytes_], texts: dict[bytes, str], threshold: float) -> NDArray[np.int64]:
    """Return (n,) numbers: equal = the prompts are equal or near-duplicates. Empties ``texts``."""
    distinct, inverse = np.unique(keys, return_inverse=True)
    labels = np.arange(len(distinct))
    nodes = np.flatnonzero([key in texts for key in distinct.tolist()])
    if len(nodes):
        frame = pl.DataFrame({"text": [texts[key] for key in distinct[nodes].tolist()], "node": nodes})
        texts.clear()
        frame = frame.sort("text", "node")
        labels[frame["node"].to_numpy()] = len(distinct) + near_duplicates.components(frame["text"], threshold)
    return np.asarray(labels[inverse], dtype=np.int64)


def _column_links(table: pl.DataFrame, alike: NDArray[np.int64], column: str) -> list[Link]:
    """Return the links by group key, and by prompt for battles without one."""
    missing = table["group_key"].is_null().to_numpy()
    without_key = np.flatnonzero(missing & (table["role"] == "train").to_numpy())
    if len(without_key):
        first = table.row(int(without_key[0]), named=True)
        raise UserError(
            f"{first['file']}, row {first['row']}, column {column}: no value, so groups.column={column} cannot group "
            f"this battle ({len(without_key):,} such train battles); fill in the column, map it with "
            f"data.columns.group_key={column}, or unset groups.column"
        )
    keyed = np.flatnonzero(~missing)
    near_missing = np.flatnonzero(np.isin(alike, alike[missing]))
    codes = table["group_key"].rank("dense").gather(keyed).to_numpy().astype(np.int64)
    return [Link(keyed, codes), Link(near_missing, alike[near_missing])]


def _column_keys(table: pl.DataFrame, keys: NDArray[np.bytes_]) -> NDArray[np.bytes_]:
    """Return the content keys; for battles with a group_key the key of that instead."""
    pairs = zip(table["group_key"].to_list(), keys.tolist(), strict=True)
    replaced = [_key("column", group_key) if group_key is not None else key for group_key, key in pairs]
    return np.array(replaced, dtype="S32")


def _response_link(table: pl.DataFrame) -> Link:
    """Return the link by response text; A and B share one numbering, so that A of one battle can equal B of another."""
    hashes: list[bytes] = []
    for name in ("response_a", "response_b"):
        for start in range(0, table.height, CHUNK_ROWS):
            texts = normalise(table[name].slice(start, CHUNK_ROWS).list.join("\n")).to_list()
            hashes += [_key("response", text) if len(text) >= MIN_RESPONSE else b"" for text in texts]
    flat = np.array(hashes, dtype="S32")
    rows = np.tile(np.arange(table.height), 2)
    kept = flat != b""
    _, values = np.unique(flat[kept], return_inverse=True)
    return Link(rows[kept], values.astype(np.int64))


def _closure(n: int, links: list[Link]) -> NDArray[np.int64]:
    """Return (n,) component numbers of a graph whose nodes are the battles and each link's values."""
    nodes = n
    edges: list[NDArray[np.int64]] = []
    for link in links:
        distinct, values = np.unique(link.values, return_inverse=True)
        edges.append(np.stack([link.rows, nodes + values], axis=1))
        nodes += len(distinct)
    return near_duplicates.connected(nodes, np.concatenate(edges))[:n]


def numbered(labels: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (n,) numbers 0..G-1 of (n,) labels: labels are numbered as they first occur when rows are in ``order``."""
    _, first, inverse = np.unique(labels[order], return_index=True, return_inverse=True)
    numbers = np.empty(len(labels), dtype=np.int64)
    numbers[order] = np.argsort(np.argsort(first))[inverse]
    return numbers
