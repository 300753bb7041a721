"""What a file of battles holds, in lines for a person: balance, turns, lengths, repetitions, prompts.

Lengths are tokens where a tokenizer's folder is given, otherwise characters, and named as such.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from oof.classes import CLASSES
from oof.common.errors import UserError
from oof.config import Groups
from oof.data.build_table import BattleSet
from oof.data.schemas import TEXTS

CHARACTERS_PER_TOKEN = 4  # of English text; only used, and said, where no tokenizer is given
BUDGETS = (1024, 2048)  # tokens
CHUNK = 10_000  # texts tokenised at once
FACTS = {
    "rows_without_text": "rows of ids without text",
    "null_turns": "null turns",
    "empty_responses": "battles with an empty response",
    "identical_responses": "battles with identical responses",
    "lone_surrogates": "turns with lone surrogates",
    "nul_characters": "turns with NUL characters",
    "ids_made": "ids made from the content",
    "ids_renamed": "ids renamed",
}


@dataclass(frozen=True)
class Ruler:
    """How texts are measured: ``count`` gives the (n,) lengths of n texts in ``unit``."""

    unit: str
    count: Callable[[list[str]], NDArray[np.int64]]
    per_token: float


def ruler(tokenizer: str | None) -> Ruler:
    """Return a ruler of tokens with the tokenizer in a folder, or of characters without one.

    Raises:
        UserError: there is no usable ``tokenizer.json`` in the folder.
    """
    if tokenizer is None:
        return Ruler("characters", lambda texts: np.array([len(text) for text in texts], dtype=np.int64), 4.0)
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

    return Ruler("tokens", count, 1.0)


def describe(battles: BattleSet, groups: Groups, measure: Ruler) -> Iterator[str]:
    """Yield the lines of the profile; the last ones compare all prompts and take longest."""
    counts, table = battles.counts, battles.table
    schemas = Counter(battles.schemas.values())
    yield _line("schema", ", ".join(name if n == 1 else f"{name} ({n} files)" for name, n in schemas.items()))
    bad = f", {counts['rows_dropped']:,} cannot be used" if counts["rows_dropped"] else ""
    yield _line("rows", f"{counts['rows_read']:,} read{bad}")
    if not table.height:
        return
    yield from _verdicts(table)
    for name, column in (("models", pl.concat([table["model_a"], table["model_b"]])), ("languages", table["language"])):
        if column.drop_nulls().len():
            yield _line(name, f"{column.n_unique():,}; most often {_most(column)}")
    yield _line("facts", "; ".join(f"{counts[name]:,} {words}" for name, words in FACTS.items() if counts[name]) or "-")
    if counts["rows_without_text"] == table.height:
        return
    yield _line("turns", _turns(table))
    yield from _lengths(table, measure)
    yield from _repetitions(table)
    yield from _groups(table, groups)


def _line(name: str, text: str) -> str:
    return f"  {name:<12}{text}"


def _share(n: int, total: int) -> str:
    return f"{100 * n / total:.1f} %"


def _verdicts(table: pl.DataFrame) -> Iterator[str]:
    labels = table["label"].drop_nulls().to_numpy()
    if not len(labels):
        yield _line("verdicts", "none")
        return
    found = np.bincount(labels, minlength=3)
    shown = ", ".join(f"{name} {n:,} ({_share(n, len(labels))})" for name, n in zip(CLASSES, found, strict=True))
    rates = found[found > 0] / len(labels)
    yield _line("verdicts", f"{shown}; the log loss of these rates is {-(rates * np.log(rates)).sum():.3f}")


def _most(column: pl.Series) -> str:
    top = column.drop_nulls().alias("name").value_counts(sort=True).sort("count", "name", descending=[True, False])
    return ", ".join(f"{name[:40]} ({n:,})" for name, n in top.head(3).iter_rows())


def _turns(table: pl.DataFrame) -> str:
    turns = table["prompt"].list.len().to_numpy()
    shown = ", ".join(f"{n}: {_share(int((turns == n).sum()), len(turns))}" for n in range(1, 4) if (turns == n).any())
    return f"{shown}; most {turns.max()}"


def _lengths(table: pl.DataFrame, measure: Ruler) -> Iterator[str]:
    turns = {name: table[name].explode(empty_as_null=True, keep_nulls=True) for name in TEXTS}
    row = np.repeat(np.arange(table.height), table["prompt"].list.len().to_numpy())
    distinct = pl.concat([series.alias("text") for series in turns.values()]).unique()
    lengths = pl.DataFrame({"text": distinct, "length": measure.count(distinct.to_list())})
    parts: dict[str, NDArray[np.int64]] = {}
    for name, series in turns.items():
        joined = pl.DataFrame({"text": series}).join(lengths, on="text", how="left", maintain_order="left")
        parts[name] = np.bincount(row, weights=joined["length"].to_numpy(), minlength=table.height).astype(np.int64)
    parts["together"] = sum(parts.values(), np.zeros(table.height, dtype=np.int64))
    yield _line(measure.unit, "".join(f"{head:>10}" for head in ("mean", "median", "p90", "p99", "most")))
    for name, values in parts.items():
        numbers = [values.mean(), *np.quantile(values, [0.5, 0.9, 0.99]), values.max()]
        yield f"    {name:<10}" + "".join(f"{number:>10,.0f}" for number in numbers)
    exact = measure.per_token == 1
    over = [
        f"{_share(int((parts['together'] / measure.per_token > n).sum()), table.height)} over {n:,}" for n in BUDGETS
    ]
    how = (
        "tokens"
        if exact
        else f"tokens if a token has {measure.per_token:g} characters (name a tokenizer to count them)"
    )
    yield _line("", f"{', '.join(over)} {how}, without the template")


def _repetitions(table: pl.DataFrame) -> Iterator[str]:
    """Exact repetitions, and the same two responses to a prompt judged more than once, on either side."""
    exact = table.height - table.select(pl.struct(TEXTS).n_unique()).item()
    judged: dict[object, list[int | None]] = defaultdict(list)
    columns = (*TEXTS, "model_a", "model_b", "label")
    for prompt, a, b, model_a, model_b, label in table.select(columns).iter_rows():
        first, second = (model_a or "", *a), (model_b or "", *b)
        if first > second:
            first, second, label = second, first, {0: 1, 1: 0}.get(label, label)
        judged[tuple(prompt), first, second].append(label)
    again = [labels for labels in judged.values() if len(labels) > 1]
    text = f"{exact:,} rows repeat an earlier row's prompt, A and B"
    if again:
        agree = sum(len(set(labels)) == 1 for labels in again)
        text += f"; {len(again):,} pairs of responses are judged more than once, in either order"
        if any(label is not None for labels in again for label in labels):
            text += f", {len(again) - agree:,} with conflicting verdicts ({_share(agree, len(again))} agree)"
    yield _line("repeated", text)


def _groups(table: pl.DataFrame, groups: Groups) -> Iterator[str]:
    from oof.folds.groups import group_battles

    sizes = table.select(pl.col("prompt").n_unique()).item(), table.group_by("prompt").len()["len"]
    yield _line("prompts", f"{sizes[0]:,} distinct, each in {_between(sizes[1].to_numpy())} battles")
    numbers = np.bincount(group_battles(table, groups))
    largest = int(numbers.max())
    how = f"by column {groups.column}" if groups.column else f"near-duplicate prompts, threshold {groups.threshold:g}"
    yield _line("groups", f"{len(numbers):,} groups of {_between(numbers)} battles ({how})")
    if 2 * largest > table.height > 1:
        yield _line("", f"note: one group holds {_share(largest, table.height)} of the battles; folds cannot be even")


def _between(sizes: Sequence[int] | NDArray[np.generic]) -> str:
    low, high = int(np.min(sizes)), int(np.max(sizes))
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
