"""Profile of battle files in lines for the user: verdicts, turns, lengths, repetitions.

Lengths are in tokens if a tokenizer's folder is given, otherwise in characters, and labelled accordingly.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from oof.classes import CLASSES, SWAPPED, class_counts
from oof.common.errors import UserError
from oof.data.build_table import BattleSet
from oof.data.schemas import SOFT_COLUMNS, TEXTS

CHARACTERS_PER_TOKEN = 4.0  # of English text; used, and stated, where no tokenizer is given
BUDGETS = (1024, 2048)  # tokens
CHUNK = 10_000  # texts tokenised at once
COUNT_LABELS = {
    "rows_without_text": "rows of ids without text",
    "null_turns": "null turns",
    "empty_responses": "battles with an empty response",
    "identical_responses": "battles with identical responses",
    "lone_surrogates": "turns with lone surrogates",
    "nul_characters": "turns with NUL characters",
    "both_bad": 'battles judged "both bad"',
    "ids_made": "ids made from the content",
    "ids_renamed": "ids renamed",
}


@dataclass(frozen=True)
class LengthMeasure:
    """Measure of text lengths: ``count`` returns the (n,) lengths of n texts in ``unit``s."""

    unit: str
    count: Callable[[list[str]], NDArray[np.int64]]
    per_token: float  # units in a token


def length_measure(tokenizer: str | None) -> LengthMeasure:
    """Return the measure in tokens of the tokenizer in a folder, or in characters without one.

    Raises:
        UserError: there is no usable ``tokenizer.json`` in the folder.
    """
    if tokenizer is None:
        return LengthMeasure(
            "characters", lambda texts: np.array([len(text) for text in texts], dtype=np.int64), CHARACTERS_PER_TOKEN
        )
    from tokenizers import Tokenizer

    path = Path(tokenizer) / "tokenizer.json"
    try:
        fast = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path}: no tokenizer can be read from it ({error}); name a model's folder") from error
    fast.no_truncation()
    fast.no_padding()

    def count(texts: list[str]) -> NDArray[np.int64]:
        lengths: list[int] = []
        for start in range(0, len(texts), CHUNK):
            encoded = fast.encode_batch_fast(texts[start : start + CHUNK], add_special_tokens=False)
            lengths += [len(one) for one in encoded]
        return np.array(lengths, dtype=np.int64)

    return LengthMeasure("tokens", count, 1.0)


def profile_lines(battles: BattleSet, measure: LengthMeasure) -> Iterator[str]:
    """Yield the lines of the profile."""
    counts, table = battles.counts, battles.table
    schemas = Counter(battles.schemas.values())
    yield line("schema", ", ".join(name if n == 1 else f"{name} ({n} files)" for name, n in schemas.items()))
    bad = f", {counts['rows_dropped']:,} cannot be used" if counts["rows_dropped"] else ""
    yield line("rows", f"{counts['rows_read']:,} read{bad}")
    for shown in battles.shown.values() if len(battles.shown) == 1 else ():
        for name, text in zip(("coding", *[""] * len(shown)), shown, strict=False):
            yield line(name, text)
    if not table.height:
        return
    yield _verdicts(table)
    if "soft_a" in table.columns:
        yield line("soft labels", _soft_labels(table))
    for name, column in (("models", pl.concat([table["model_a"], table["model_b"]])), ("languages", table["language"])):
        if column.drop_nulls().len():
            yield line(name, f"{column.n_unique():,}; most frequent {_most_frequent(column)}")
    counted = [f"{counts[name]:,} {label}" for name, label in COUNT_LABELS.items() if counts[name]]
    yield line("counts", "; ".join(counted) or "-")
    if has_texts(battles):
        yield line("turns", _turns(table))
        yield from _lengths(table, measure)
        yield _repetitions(table)


def has_texts(battles: BattleSet) -> bool:
    """Return whether any battle has texts, unlike rows of files with ids only."""
    return battles.table.height > battles.counts["rows_without_text"]


def line(name: str, text: str) -> str:
    return f"  {name:<12}{text}"


def percent(n: float, total: int) -> str:
    return f"{100 * n / total:.1f} %"


def _verdicts(table: pl.DataFrame) -> str:
    labels = table["label"].drop_nulls().to_numpy()
    if not len(labels):
        return line("verdicts", "none")
    counts = class_counts(labels)
    shown = ", ".join(f"{name} {n:,} ({percent(n, len(labels))})" for name, n in zip(CLASSES, counts, strict=True))
    shares = counts[counts > 0] / len(labels)
    return line("verdicts", f"{shown}; the log loss of these shares is {abs((shares * np.log(shares)).sum()):.3f}")


def _soft_labels(table: pl.DataFrame) -> str:
    shares = table.select(SOFT_COLUMNS).drop_nulls().to_numpy()
    means = ", ".join(f"{name} {percent(value, 1)}" for name, value in zip(CLASSES, shares.mean(axis=0), strict=True))
    split = int((shares.max(axis=1) < 1).sum())
    return f"{len(shares):,} battles, {split:,} of them not unanimous; mean shares {means}"


def _most_frequent(column: pl.Series) -> str:
    top = column.drop_nulls().alias("name").value_counts(sort=True).sort("count", "name", descending=[True, False])
    return ", ".join(f"{name[:40]} ({n:,})" for name, n in top.head(3).iter_rows())


def _turns(table: pl.DataFrame) -> str:
    turns = table["prompt"].list.len().to_numpy()
    shown = ", ".join(f"{n}: {percent(int((turns == n).sum()), len(turns))}" for n in range(1, 4) if (turns == n).any())
    return f"{shown}; at most {turns.max()}"


def _lengths(table: pl.DataFrame, measure: LengthMeasure) -> Iterator[str]:
    turns = {name: table[name].explode(empty_as_null=True, keep_nulls=True) for name in TEXTS}
    row = np.repeat(np.arange(table.height), table["prompt"].list.len().to_numpy())
    distinct = pl.concat([series.alias("text") for series in turns.values()]).unique()
    lengths = pl.DataFrame({"text": distinct, "length": measure.count(distinct.to_list())})
    by_text: dict[str, NDArray[np.int64]] = {}
    for name, series in turns.items():
        joined = pl.DataFrame({"text": series}).join(lengths, on="text", how="left", maintain_order="left")
        by_text[name] = np.bincount(row, weights=joined["length"].to_numpy(), minlength=table.height).astype(np.int64)
    by_text["together"] = sum(by_text.values(), np.zeros(table.height, dtype=np.int64))
    yield line(measure.unit, "".join(f"{head:>10}" for head in ("mean", "median", "p90", "p99", "max")))
    for name, values in by_text.items():
        numbers = [values.mean(), *np.quantile(values, [0.5, 0.9, 0.99]), values.max()]
        yield f"    {name:<10}" + "".join(f"{number:>10,.0f}" for number in numbers)
    tokens = by_text["together"] / measure.per_token
    over = ", ".join(f"{percent(int((tokens > n).sum()), table.height)} over {n:,}" for n in BUDGETS)
    estimate = f" if a token has {measure.per_token:g} characters (name a tokenizer to count them)"
    yield line("", f"{over} tokens{'' if measure.per_token == 1 else estimate}, without the template")


def _repetitions(table: pl.DataFrame) -> str:
    """Return the numbers of repeated rows, and of the same two responses to a prompt judged more than once."""
    repeated = table.height - table.select(pl.struct(TEXTS).n_unique()).item()
    judged: dict[object, list[int | None]] = defaultdict(list)
    columns = (*TEXTS, "model_a", "model_b", "label")
    for prompt, a, b, model_a, model_b, label in table.select(columns).iter_rows():
        first, second = (model_a or "", *a), (model_b or "", *b)
        if first > second:
            first, second, label = second, first, None if label is None else SWAPPED[label]
        judged[tuple(prompt), first, second].append(label)
    repeated_pairs = [labels for labels in judged.values() if len(labels) > 1]
    text = f"{repeated:,} rows repeat an earlier row's prompt, A and B"
    if repeated_pairs:
        agree = sum(len(set(labels)) == 1 for labels in repeated_pairs)
        text += f"; {len(repeated_pairs):,} pairs of responses are judged more than once, in either order"
        if any(label is not None for labels in repeated_pairs for label in labels):
            conflicting = len(repeated_pairs) - agree
            text += f", {conflicting:,} with conflicting verdicts ({percent(agree, len(repeated_pairs))} agree)"
    return line("repeated", text)
