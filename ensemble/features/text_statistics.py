"""Character statistics of many texts at once: scripts and distinct character 5-grams, without a Python loop.

The texts of a block are stored in one uint32 array of code points, each text followed by four zeros. So every
character begins exactly one 5-gram, no 5-gram reaches into the next text, and short texts have 5-grams too. Distinct
5-grams are counted in a bitmap of 2^13 hashed cells by linear counting, which is exact within a few percent for texts
of the arena's lengths and needs no sorting.

Source: Whang, Vander-Zanden & Taylor, A Linear-Time Probabilistic Counting Algorithm, TODS 1990.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import polars as pl
from numpy.typing import NDArray

GRAM = 5  # characters, as in the groups of near-duplicate prompts
CELLS = 1 << 13
# First code point of each run of one script; characters between the runs (digits, marks, emoji) are "none".
SCRIPT_RUNS = (
    (0x41, "latin"), (0x5B, "none"), (0x61, "latin"), (0x7B, "none"), (0xC0, "latin"), (0x250, "none"),
    (0x370, "greek"), (0x400, "cyrillic"), (0x530, "other"), (0x590, "hebrew"), (0x600, "arabic"), (0x700, "other"),
    (0x900, "indic"), (0xE00, "thai"), (0xE80, "other"), (0x1100, "hangul"), (0x1200, "other"), (0x1E00, "latin"),
    (0x1F00, "greek"), (0x2000, "none"), (0x2C00, "other"), (0x2E00, "none"), (0x3040, "kana"), (0x3100, "other"),
    (0x3130, "hangul"), (0x3190, "none"), (0x3400, "han"), (0xA000, "other"), (0xAC00, "hangul"), (0xD7B0, "none"),
    (0xF900, "han"), (0xFB00, "other"), (0xFE00, "none"), (0xFE70, "arabic"), (0xFF00, "none"), (0xFF66, "kana"),
    (0xFFA0, "none"), (0x20000, "han"), (0x32000, "none"),
)  # fmt: skip
SCRIPTS = tuple(dict.fromkeys(script for _, script in SCRIPT_RUNS if script != "none"))


def code_points(texts: pl.Series) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Return the code points of (n,) lower-cased texts, four zeros after each, and each position's text (0..n-1)."""
    lower = texts.str.to_lowercase()  # the number of characters may change
    sizes = lower.str.len_chars().to_numpy().astype(np.int64) + GRAM - 1
    joined = "".join(f"{text}\0\0\0\0" for text in lower.to_list())
    codes = np.frombuffer(joined.encode("utf-32-le", "replace"), dtype=np.uint32)
    return codes, np.repeat(np.arange(len(texts)), sizes)


@cache
def _script_table() -> NDArray[np.uint8]:
    """Return the number of every code point's script: 0 for none, 1 + its position in ``SCRIPTS`` otherwise."""
    table = np.zeros(0x110000, dtype=np.uint8)
    ends = [start for start, _ in SCRIPT_RUNS[1:]] + [0x110000]
    for (start, script), end in zip(SCRIPT_RUNS, ends, strict=True):
        table[start:end] = 0 if script == "none" else 1 + SCRIPTS.index(script)
    return table


def script_shares(codes: NDArray[np.uint32], text: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    """Return (n, scripts) shares of each text's letters in :data:`SCRIPTS`; zeros for a text without letters.

    Args:
        codes: as returned by :func:`code_points`.
        text: likewise.
        n: number of texts.
    """
    width = 1 + len(SCRIPTS)
    counts = np.bincount(text * width + _script_table()[codes], minlength=n * width).reshape(n, width)[:, 1:]
    return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def gram_bitmaps(codes: NDArray[np.uint32], text: NDArray[np.int64], n: int) -> NDArray[np.bool_]:
    """Return (n, CELLS): the cells that the 5-grams of each text hash to; arguments as of :func:`script_shares`."""
    bits = np.zeros(n * CELLS, dtype=bool)
    hashed = codes[: 1 - GRAM]
    for i in range(1, GRAM):
        hashed = hashed * np.uint32(0x01000193) ^ codes[i : len(codes) - GRAM + 1 + i]
    hashed = (hashed ^ hashed >> np.uint32(15)) * np.uint32(0x2C1B3C6D)  # wraps round, as a hash may
    cell = hashed >> np.uint32(32 - 13)
    begins = codes[: 1 - GRAM] != 0
    bits[(text[: 1 - GRAM] * CELLS + cell)[begins]] = True
    return bits.reshape(n, CELLS)


def distinct(bits: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return (n,) estimates of how many distinct 5-grams filled the cells of (n, CELLS) bitmaps."""
    used = np.minimum(np.count_nonzero(bits, axis=1), CELLS - 1)
    return np.asarray(-CELLS * np.log1p(-used / CELLS))
