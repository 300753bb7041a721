"""Battle features for the stacker: one function per family, whose docstring is its meaning in a report.

Each takes the canonical table and returns columns named ``<what>_a``, ``<what>_b`` or ``<what>_diff`` (A minus B),
computed by polars without a Python loop over battles. Nothing here is fitted.
"""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

SIDES = ("a", "b")
FORMATTING = {
    "code": r"```",
    "list": r"(?m)^\s*(?:[-*+]|\d+[.)])\s",
    "heading": r"(?m)^#{1,6}\s",
    "bold": r"\*\*",
    "digit": r"\d",
    "question": r"\?",
}
REFUSALS = r"(?i)\b(?:i'm sorry|i am sorry|i cannot|i can't|i am unable|i'm unable|as an ai)\b"


def _joined(side: str) -> pl.Expr:
    return pl.col(f"response_{side}").list.join("\n")


def _words(text: pl.Expr) -> pl.Expr:
    return text.str.count_matches(r"\S+").cast(pl.Float32)


def _log(count: pl.Expr) -> pl.Expr:
    return (count.cast(pl.Float32) + 1).log()


def lengths(table: pl.DataFrame) -> pl.DataFrame:
    """Log characters and log words of each response and of the prompt, and the log ratios of A to B."""
    prompt = pl.col("prompt").list.join("\n")
    frame = table.select(
        _log(prompt.str.len_chars()).alias("log_chars_prompt"),
        *(_log(_joined(s).str.len_chars()).alias(f"log_chars_{s}") for s in SIDES),
        *(_log(_words(_joined(s))).alias(f"log_words_{s}") for s in SIDES),
    )
    return frame.with_columns(
        (pl.col("log_chars_a") - pl.col("log_chars_b")).alias("log_chars_diff"),
        (pl.col("log_words_a") - pl.col("log_words_b")).alias("log_words_diff"),
    )


def turns(table: pl.DataFrame) -> pl.DataFrame:
    """Number of turns of the conversation."""
    return table.select(pl.col("prompt").list.len().cast(pl.Float32).alias("turns"))


def emptiness(table: pl.DataFrame) -> pl.DataFrame:
    """Share of empty turns of each response, and whether both responses are the same text."""
    empty = [
        (pl.col(f"response_{s}").list.eval(pl.element().str.strip_chars() == "").list.mean()).alias(f"empty_{s}")
        for s in SIDES
    ]
    return table.select(*empty, (_joined("a") == _joined("b")).cast(pl.Float32).alias("identical"))


def formatting(table: pl.DataFrame) -> pl.DataFrame:
    """Log counts of code fences, list items, headings, bold marks, digits and question marks, A minus B."""
    return table.select(
        (_log(_joined("a").str.count_matches(p)) - _log(_joined("b").str.count_matches(p))).alias(f"{name}_diff")
        for name, p in FORMATTING.items()
    )


def refusals(table: pl.DataFrame) -> pl.DataFrame:
    """Whether each response has a phrase of refusal or apology."""
    return table.select(_joined(s).str.contains(REFUSALS).cast(pl.Float32).alias(f"refusal_{s}") for s in SIDES)


def overlap(table: pl.DataFrame) -> pl.DataFrame:
    """Share of the prompt's distinct lower-case words that each response repeats, and the responses' common share."""

    def words(text: pl.Expr) -> pl.Expr:
        return text.str.to_lowercase().str.extract_all(r"\w{3,}").list.unique()

    frame = table.select(
        words(pl.col("prompt").list.join("\n")).alias("p"), *(words(_joined(s)).alias(s) for s in SIDES)
    )

    def share(x: str, y: str) -> pl.Expr:
        return pl.col(x).list.set_intersection(pl.col(y)).list.len() / pl.col(x).list.len().clip(lower_bound=1)

    union = pl.col("a").list.set_union(pl.col("b")).list.len().clip(lower_bound=1)
    return frame.select(
        share("p", "a").cast(pl.Float32).alias("repeats_prompt_a"),
        share("p", "b").cast(pl.Float32).alias("repeats_prompt_b"),
        (pl.col("a").list.set_intersection(pl.col("b")).list.len() / union).cast(pl.Float32).alias("common_words"),
    )


FAMILIES: dict[str, Callable[[pl.DataFrame], pl.DataFrame]] = {
    "lengths": lengths,
    "turns": turns,
    "emptiness": emptiness,
    "formatting": formatting,
    "refusals": refusals,
    "overlap": overlap,
}
