"""Slices of the battles for comparisons: length, turns, language, code, prompt quality, verdict, both bad, corpus."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble.features.battle_features import REFUSALS
from oof.data.prompt_quality import JUNK, prompt_quality
from oof.data.text_columns import prompt_texts
from oof.metrics import Integers

LEAST = 20  # battles: a smaller slice is left out
LANGUAGES = 5  # the most frequent ones have a slice each
QUARTERS = ("shortest", "second", "third", "longest")

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Slice:
    """Some of the battles: (n,) flags, under a name within a family."""

    family: str
    name: str
    flags: Bools


def battle_properties(table: pl.DataFrame) -> pl.DataFrame:
    """Return the properties of (n) battles that slices and tie origins use: sizes, kinds of text, prompt quality."""
    prompt = pl.col("prompt").list.join("\n")
    a, b = (pl.col(f"response_{side}").list.join("\n") for side in "ab")
    letters = prompt.str.count_matches(r"\p{L}")
    properties = table.select(
        prompt_chars=prompt.str.len_chars(),
        chars_a=a.str.len_chars(),
        chars_b=b.str.len_chars(),
        words_a=a.str.count_matches(r"\S+"),
        words_b=b.str.count_matches(r"\S+"),
        turns=pl.col("prompt").list.len(),
        language=pl.col("language"),
        latin=prompt.str.count_matches(r"\p{Latin}") * 2 >= letters,
        code=prompt.str.contains("```") | a.str.contains("```") | b.str.contains("```"),
        identical=a.str.strip_chars() == b.str.strip_chars(),
        refusal_a=a.str.contains(REFUSALS),
        refusal_b=b.str.contains(REFUSALS),
    )
    if "both_bad" in table.columns:  # data.both_bad=keep
        properties = properties.with_columns(table["both_bad"].fill_null(False))
    quality = pl.Series("quality", prompt_quality(prompt_texts(table)))
    return properties.with_columns(quality, log_ratio=((pl.col("chars_a") + 1) / (pl.col("chars_b") + 1)).log())


def slices_of(
    properties: pl.DataFrame, labels: Integers, in_corpus: Bools | None = None, has_text: bool = True
) -> list[Slice]:
    """Return the slices in the order of the report, without those of fewer than ``LEAST`` or of all battles.

    Args:
        properties: (n) battles, as :func:`battle_properties` returns them.
        labels: (n,) classes.
        in_corpus: (n,) whether the prompt is in a corpus; None without a contamination check.
        has_text: whether the battles have texts; without them, all slices but those of the verdict are left out.
    """
    verdicts = [Slice("verdict", "decided", labels != 2), Slice("verdict", "tie", labels == 2)]
    if not has_text:
        return [part for part in verdicts if part.flags.sum() >= LEAST and not part.flags.all()]
    quarter = length_quarters(properties)
    ratio, turns = np.exp(np.abs(properties["log_ratio"].to_numpy())), properties["turns"].to_numpy()
    code, junk = properties["code"].to_numpy(), properties["quality"].to_numpy() < JUNK
    slices = [Slice("length", f"{name} quarter", quarter == i) for i, name in enumerate(QUARTERS)]
    slices += [
        Slice("length difference", "under 1.1 times", ratio < 1.1),
        Slice("length difference", "1.1 to 2 times", (ratio >= 1.1) & (ratio < 2)),
        Slice("length difference", "2 times and more", ratio >= 2),
        Slice("turns", "one", turns == 1),
        Slice("turns", "several", turns > 1),
        *_languages(properties),
        Slice("code", "with code", code),
        Slice("code", "without code", ~code),
        Slice("prompt quality", "junk", junk),
        Slice("prompt quality", "not junk", ~junk),
        *verdicts,
    ]
    if "both_bad" in properties.columns:
        both_bad = properties["both_bad"].to_numpy()
        slices += [Slice("both bad", "both bad", both_bad), Slice("both bad", "not both bad", ~both_bad)]
    if in_corpus is not None:
        slices += [Slice("corpus", "in corpus", in_corpus), Slice("corpus", "not in corpus", ~in_corpus)]
    return [part for part in slices if part.flags.sum() >= LEAST and not part.flags.all()]


def length_quarters(properties: pl.DataFrame) -> NDArray[np.int64]:
    """Return (n,) quarters 0..3 of the total number of characters."""
    total = (properties["prompt_chars"] + properties["chars_a"] + properties["chars_b"]).to_numpy()
    return np.searchsorted(np.quantile(total, [0.25, 0.5, 0.75]), total, side="left")


def strata(properties: pl.DataFrame) -> NDArray[np.int64]:
    """Return (n,) numbers of strata of similar battles: quarter of the length, one or several turns, code or not."""
    several, code = properties["turns"].to_numpy() > 1, properties["code"].to_numpy()
    return np.asarray(length_quarters(properties) * 4 + several * 2 + code, dtype=np.int64)


def _languages(properties: pl.DataFrame) -> list[Slice]:
    """Return slices by the language column, or by the prompt's script if the files have no such column."""
    if properties["language"].null_count() < properties.height:
        counts = properties["language"].drop_nulls().value_counts(sort=True)
        languages = properties["language"].fill_null("")
        return [
            Slice("language", name, (languages == name).to_numpy())
            for name in sorted(counts.head(LANGUAGES)["language"].to_list())
        ]
    latin = properties["latin"].to_numpy()
    return [Slice("language", "Latin script", latin), Slice("language", "other scripts", ~latin)]
