"""Battle features of the stacker: one function per family, whose docstring is its meaning in reports and documents.

Each family takes the texts of a block of battles and returns columns. Their names say how they change when A and B are
swapped (:func:`swap_features`): ``x_a`` and ``x_b`` swap, ``x_diff`` (A minus B) changes its sign, any other column
stays. Nothing here is fitted, and no Python loop runs over battles.

A new family is one function, listed in ``FAMILIES``; the suite in ``tests/ensemble/features`` then runs on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble.features import text_statistics
from oof.common.logits_format import COUNT_COLUMNS
from oof.data.schemas import TEXTS

BLOCK = 256  # battles at a time: bitmaps of 6 MB, and texts that stay in the cache
BLOCK_BYTES = 4 << 20  # of texts at a time, or one battle
SIDES = ("a", "b")
FORMATTING = {
    "code": r"```",
    "list": r"(?m)^[ \t]*(?:[-*+]|[0-9]+[.)])[ \t]",
    "heading": r"(?m)^#{1,6}[ \t]",
    "bold": r"\*\*",
    "table": r"(?m)^[ \t]*\|",
    "link": r"https?://|\]\(",
    "digit": r"[0-9]",
    "question": r"\?",
}
# ASCII word boundaries: Unicode ones would cost the regex engine its fast automaton on every text with an accent.
REFUSALS = (
    r"(?i)(?-u:\b)(?:i['’]m sorry|i am sorry|i apologi[sz]e|i cannot|i can['’]t|i am unable|i['’]m unable|"
    r"i am not able|i['’]m not able|as an ai|as a language model|i won['’]t)(?-u:\b)"
)
HEDGES = (
    r"(?i)(?-u:\b)(?:might|perhaps|possibly|probably|maybe|it depends|it seems|not sure|i think|i believe|generally|"
    r"typically|in some cases|however|important to note)(?-u:\b)"
)
FINISHED = ".!?。！？…؟।\"'”’»)]}`*_|>~"  # a last character that may end a text

Columns = dict[str, NDArray[np.floating]]


@dataclass(frozen=True)
class TextBlock:
    """The texts of (n) battles, turns joined by line ends; values that several families need are computed once."""

    table: pl.DataFrame

    @cached_property
    def joined(self) -> pl.DataFrame:
        """Columns p (prompt), a and b (responses), String."""
        names = {"p": "prompt", "a": "response_a", "b": "response_b"}
        return self.table.select(pl.col(name).list.join("\n").fill_null("").alias(s) for s, name in names.items())

    @cached_property
    def codes(self) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Code points of prompts, responses A and responses B (:func:`text_statistics.code_points`)."""
        return text_statistics.code_points(pl.concat([self.joined[s] for s in "pab"]))

    @cached_property
    def grams(self) -> NDArray[np.bool_]:
        """(3, n, cells): the 5-grams of prompts, responses A and responses B."""
        n = self.table.height
        return text_statistics.gram_bitmaps(*self.codes, 3 * n).reshape(3, n, -1)

    def columns(self, **expressions: pl.Expr) -> Columns:
        """Return the values of expressions over the joined texts, (n,) float64 each."""
        frame = self.joined.select(value.cast(pl.Float64).alias(name) for name, value in expressions.items())
        return {name: frame[name].to_numpy() for name in expressions}


def _log(count: pl.Expr) -> pl.Expr:
    return (count.cast(pl.Float64) + 1).log()


def _with_difference(columns: Columns, *names: str) -> Columns:
    return columns | {f"{name}_diff": columns[f"{name}_a"] - columns[f"{name}_b"] for name in names}


def lengths(texts: TextBlock) -> Columns:
    """Log characters, log words and log lines of each response, their differences (the log ratio of A to B), and the
    log characters of the prompt.
    """
    columns = texts.columns(
        log_chars_prompt=_log(pl.col("p").str.len_chars()),
        **{f"log_chars_{s}": _log(pl.col(s).str.len_chars()) for s in SIDES},
        **{f"log_words_{s}": _log(pl.col(s).str.count_matches(r"[^ \t\n\r]+")) for s in SIDES},
        **{f"log_lines_{s}": _log(pl.col(s).str.count_matches("\n", literal=True)) for s in SIDES},
    )
    return _with_difference(columns, "log_chars", "log_words", "log_lines")


def tokens(texts: TextBlock) -> Columns:
    """Log tokens of the prompt and of each response as the first member counts them, their difference (the log ratio
    of A to B), and the share of each text that truncation took from that member; of a run's own battles.
    """
    if not set(COUNT_COLUMNS) <= set(texts.table.columns):  # logits made elsewhere come without counts
        return {}
    frame = texts.table.select(pl.col(COUNT_COLUMNS).cast(pl.Float64))
    columns: Columns = {}
    for text in ("prompt", *SIDES):
        n_tokens, kept = (frame[f"{count}_{text}"].to_numpy() for count in ("tokens", "kept"))
        columns[f"log_tokens_{text}"] = np.log1p(n_tokens)
        columns[f"cut_{text}"] = np.clip(1 - kept / np.maximum(n_tokens, 1), 0, 1) * (n_tokens > 0)
    return _with_difference(columns, "log_tokens", "cut")


def turns(texts: TextBlock) -> Columns:
    """Number of turns of the conversation."""
    return {"turns": texts.table["prompt"].list.len().cast(pl.Float64).to_numpy()}


def emptiness(texts: TextBlock) -> Columns:
    """Share of empty turns of each response."""
    blank = pl.element().str.strip_chars() == ""
    frame = texts.table.select(
        pl.col(f"response_{s}").list.eval(blank).list.mean().fill_null(1.0).cast(pl.Float64).alias(f"empty_{s}")
        for s in SIDES
    )
    return {name: frame[name].to_numpy() for name in frame.columns}


def formatting(texts: TextBlock) -> Columns:
    """Log counts of code fences, list items, headings, bold marks, table rows, links, digits and question marks, A
    minus B.
    """
    return texts.columns(
        **{
            f"{name}_diff": _log(pl.col("a").str.count_matches(p)) - _log(pl.col("b").str.count_matches(p))
            for name, p in FORMATTING.items()
        }
    )


def scripts(texts: TextBlock) -> Columns:
    """Share of the prompt's letters that are Latin, and how far the scripts of each response's letters match those
    of the prompt (1 = the same shares, also where a text has no letters).
    """
    n = texts.table.height
    p, a, b = text_statistics.script_shares(*texts.codes, 3 * n).reshape(3, n, -1)
    columns: Columns = {"latin_prompt": p[:, text_statistics.SCRIPTS.index("latin")]}
    for side, shares in zip(SIDES, (a, b), strict=True):
        no_letters = (p.sum(axis=1) == 0) | (shares.sum(axis=1) == 0)
        columns[f"script_match_{side}"] = np.where(no_letters, 1.0, np.minimum(p, shares).sum(axis=1))
    return _with_difference(columns, "script_match")


def overlap(texts: TextBlock) -> Columns:
    """Share of the prompt's distinct character 5-grams that each response repeats, the share of all 5-grams that the
    responses have in common (Jaccard), and whether they are the same text.
    """
    p, a, b = texts.grams
    n_p, n_a, n_b = (text_statistics.distinct(bits) for bits in (p, a, b))
    n_all = text_statistics.distinct(a | b)
    # From estimates of unions, not from common cells: two long texts share many cells by chance.
    columns: Columns = {
        "repeats_prompt_a": np.clip((n_p + n_a - text_statistics.distinct(p | a)) / np.maximum(n_p, 1), 0, 1),
        "repeats_prompt_b": np.clip((n_p + n_b - text_statistics.distinct(p | b)) / np.maximum(n_p, 1), 0, 1),
        "common": np.clip((n_a + n_b - n_all) / np.maximum(n_all, 1), 0, 1),
    }
    return _with_difference(columns, "repeats_prompt") | texts.columns(identical=pl.col("a") == pl.col("b"))


def refusals(texts: TextBlock) -> Columns:
    """Whether each response has a phrase of refusal or apology, and the log count of hedges (might, perhaps, it
    depends …) of each and A minus B; English phrases.
    """
    columns = texts.columns(
        **{f"refusal_{s}": pl.col(s).str.contains(REFUSALS) for s in SIDES},
        **{f"hedges_{s}": _log(pl.col(s).str.count_matches(HEDGES)) for s in SIDES},
    )
    return _with_difference(columns, "hedges")


def endings(texts: TextBlock) -> Columns:
    """Whether the text of each response breaks off: its last character ends no sentence or mark-up; and whether a
    code fence stays open.
    """
    last = {s: pl.col(s).str.strip_chars_end().str.slice(-1) for s in SIDES}
    return texts.columns(
        **{f"unfinished_{s}": ((text != "") & ~text.is_in(list(FINISHED))) for s, text in last.items()},
        **{f"open_fence_{s}": pl.col(s).str.count_matches("```", literal=True) % 2 for s in SIDES},
    )


def repetition(texts: TextBlock) -> Columns:
    """Share of each response's character 5-grams, and of its lines, that are repetitions within it."""
    sizes = texts.columns(**{s: pl.col(s).str.len_chars().clip(lower_bound=1) for s in SIDES})
    lines = texts.joined.select(
        (1 - pl.col(s).str.split("\n").list.n_unique() / pl.col(s).str.split("\n").list.len()).alias(s) for s in SIDES
    )
    columns: Columns = {}
    for i, side in enumerate(SIDES, 1):
        n_distinct = text_statistics.distinct(texts.grams[i])
        columns[f"repeated_grams_{side}"] = np.clip(1 - n_distinct / sizes[side], 0, 1)
        columns[f"repeated_lines_{side}"] = lines[side].to_numpy()
    return columns


FAMILIES: dict[str, Callable[[TextBlock], Columns]] = {
    "lengths": lengths,
    "tokens": tokens,
    "turns": turns,
    "emptiness": emptiness,
    "formatting": formatting,
    "scripts": scripts,
    "overlap": overlap,
    "refusals": refusals,
    "endings": endings,
    "repetition": repetition,
}


def text_features(table: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, str]]:
    """Return the (n) battles' Float32 columns, and each column's family, in a fixed order.

    Without any text (files of labels alone) there are no columns.
    """
    if not has_text(table):
        return pl.DataFrame(), {}
    blocks, families = [], {}
    for block in blocks_of(table):
        texts, columns = TextBlock(block), {}
        for family, function in FAMILIES.items():
            family_columns = function(texts)
            families.update(dict.fromkeys(family_columns, family))
            columns.update(family_columns)
        blocks.append(pl.DataFrame(columns).cast(pl.Float32))
    return pl.concat(blocks), families


def blocks_of(table: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Yield the battles' texts in blocks of at most ``BLOCK`` battles and ``BLOCK_BYTES`` of text, or of one battle."""
    texts = table.select(*TEXTS, *(name for name in COUNT_COLUMNS if name in table.columns))
    size = texts.select(pl.sum_horizontal(pl.col(n).list.join("").str.len_bytes() for n in TEXTS)).to_series()
    ends = np.append(0, size.to_numpy().astype(np.int64).cumsum())
    start = 0
    while start < texts.height:
        fitting = int(np.searchsorted(ends, ends[start] + BLOCK_BYTES, side="right")) - 1
        stop = min(start + BLOCK, max(fitting, start + 1), texts.height)
        yield texts[start:stop]
        start = stop


def has_text(table: pl.DataFrame) -> bool:
    """Return whether any battle has any text."""
    longest = (pl.col(name).list.join("").str.len_bytes().max() for name in TEXTS)
    return bool(table.select(pl.any_horizontal(size > 0 for size in longest)).item())


def swap_features(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the columns of the same battles with A and B swapped, from the names of the columns."""
    other = {"_a": "_b", "_b": "_a"}
    return frame.select(
        -pl.col(name) + 0.0  # the sum turns -0 into 0, which a booster and a digest must not tell apart
        if name.endswith("_diff")
        else pl.col(name[:-2] + other[name[-2:]] if name[-2:] in other else name).alias(name)
        for name in frame.columns
    )
