"""Prompt quality by fixed heuristics, and the kinds of junk prompts.

Each kind has a score, a prompt's quality is the lowest score of its kinds (1 = none), and a prompt with a quality
below ``JUNK`` is junk. The order of the scores is the order in which ``data.min_prompt_quality`` leaves kinds out of
training. The heuristics read the prompt alone (all user turns), so a battle's quality never depends on other battles.

* ``no_words``: no letter and no digit in any script.
* ``gibberish``: letters that form no words: pairs of letters that no language in Latin script uses, words that
  cannot be pronounced, neighbouring keys of the keyboard. Code, links and words with digits are ignored.
* ``one_token``: one short word (scripts without spaces are exempt).
* ``repeats_itself``: nearly all of its first 200 words repeat, one or two characters, or it compresses to under 15 %.
* ``template``: markers of a chat template or an unfilled slot pasted in, or a known prompt injection.

Names, abbreviations and rare languages in Latin script may be taken for gibberish. Look at the examples in the report
before leaving prompts out.
"""

from __future__ import annotations

import zlib

import numpy as np
import polars as pl
from numpy.typing import NDArray

SCORES = {"no_words": 0.0, "gibberish": 0.1, "one_token": 0.2, "repeats_itself": 0.3, "template": 0.4}
JUNK = 0.5  # quality below which a prompt counts as junk
HEAD = 4000  # characters of a prompt that are examined
MEANINGS = {
    "no_words": "no letter and no digit",
    "gibberish": "letters that form no words",
    "one_token": "one short word",
    "repeats_itself": "repeats the same words or characters",
    "template": "pasted template marker or prompt injection",
}

# First letter of a pair -> second letters with which (nearly) no language in Latin script uses it.
_RARE_PAIRS = {
    "b": "qx", "c": "jx", "d": "x", "f": "qvx", "g": "qx", "h": "xz", "j": "bcfghlpqrvwxz", "k": "qx", "l": "x",
    "m": "qxz", "p": "qvx", "q": "bcdfghjklmnprvwxyz", "s": "x", "t": "q", "v": "fhjmqwx", "w": "qvxz",
    "x": "bdgjknrvz", "z": "fgjpqx",
}  # fmt: skip
_RARE = "|".join(f"{first}[{rest}]" for first, rest in _RARE_PAIRS.items())
_KEYBOARD_RUNS = "|".join(
    row[i : i + 4]
    for line in ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    for row in (line, line[::-1])
    for i in range(len(row) - 3)
)
_UNPRONOUNCEABLE = r"\b[a-z]*[bcdfghjklmnpqrstvwxz]{5,}[a-z]*\b"
_IGNORED = r"(?s)```.*?```|https?://\S+|\S*[0-9_@\\/<>{}=]\S*"
_NO_SPACES = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_TEMPLATE = (
    r"(?i)<\|(?:im_start|im_end|begin_of_text|end_of_text|eot_id|start_header_id|endoftext|system|user|assistant)\|>"
    r"|</?start_of_turn>|<end_of_turn>|\[/?inst\]|<</?sys>>|###\s*(?:instruction|response|assistant)\s*:"
    r"|\{\{\s*\w+\s*\}\}|\{(?:prompt|input|question|user_input)\}"
    r"|ignore (?:all |any )?(?:of )?(?:the |your )?(?:previous|prior|above) (?:instructions|prompts)"
)


def prompt_flags(prompts: pl.Series) -> pl.DataFrame:
    """Return a frame of n rows with one Boolean column per kind of ``SCORES``, for (n,) prompt texts."""
    frame = pl.DataFrame({"text": prompts.str.head(HEAD)})
    text, plain = pl.col("text"), pl.col("text").str.replace_all(_IGNORED, " ").str.to_lowercase()
    words = text.str.extract_all(r"[\p{L}\p{N}]+")
    frame = frame.with_columns(
        plain=plain,
        letters=plain.str.count_matches("[a-z]"),
        runs=plain.str.count_matches("[a-z]+"),
        n_words=words.list.len(),
        first=text.str.to_lowercase().str.extract_all(r"\S+").list.head(200),
        bare=text.str.replace_all(r"\s+", ""),
    )
    packed = _packed_share(frame["text"])
    return frame.select(
        no_words=pl.col("n_words") == 0,
        gibberish=_gibberish(),
        one_token=(pl.col("n_words") == 1)
        & (pl.col("text").str.len_chars() <= 20)
        & ~pl.col("text").str.contains(_NO_SPACES),
        repeats_itself=_repeats() | pl.lit(pl.Series(packed < 0.15)),
        template=pl.col("text").str.contains(_TEMPLATE),
    ).with_columns(pl.col("gibberish") & ~pl.col("no_words"), pl.col("repeats_itself") & ~pl.col("no_words"))


def prompt_quality(prompts: pl.Series) -> NDArray[np.float64]:
    """Return (n,) float64 qualities in [0, 1] of (n,) prompt texts: the lowest score of a prompt's kinds, 1 without."""
    flags = prompt_flags(prompts)
    scores = [np.where(flags[kind].to_numpy(), score, 1.0) for kind, score in SCORES.items()]
    return np.asarray(np.min(scores, axis=0), dtype=np.float64)


def _gibberish() -> pl.Expr:
    plain, letters = pl.col("plain"), pl.col("letters")
    pairs = letters - pl.col("runs")
    rare = plain.str.count_matches(_RARE)
    unpronounceable = plain.str.extract_all(_UNPRONOUNCEABLE).list.join("").str.len_chars()
    on_keyboard = 4 * plain.str.count_matches(_KEYBOARD_RUNS)
    # Two weak signs add up: 6 % rare pairs alone suffice, or 60 % of the letters in unpronounceable words.
    signs = rare / (0.06 * pairs.clip(lower_bound=1)) + unpronounceable / (0.6 * letters.clip(lower_bound=1))
    odd = (signs >= 1) & ((rare >= 2) | (unpronounceable > 0)) | (on_keyboard >= 0.5 * letters)
    # Mostly Latin script: a few Latin letters inside another script are no evidence.
    return (letters >= 6) & (2 * letters >= plain.str.count_matches(r"\p{L}")) & odd


def _repeats() -> pl.Expr:
    n, distinct = pl.col("first").list.len(), pl.col("first").list.n_unique()
    few = pl.col("bare").str.to_lowercase().str.split("").list.n_unique()
    return (n >= 8) & (distinct <= 0.2 * n) | (pl.col("bare").str.len_chars() >= 5) & (few <= 2)


def _packed_share(texts: pl.Series) -> NDArray[np.float64]:
    """Return (n,) compressed sizes as shares of the texts' bytes; 1 under 100 bytes, which hardly compress."""
    shares = np.ones(len(texts))
    for i, text in enumerate(texts.to_list()):
        data = text.encode()
        if len(data) >= 100:
            shares[i] = len(zlib.compress(data, 1)) / len(data)
    return shares
