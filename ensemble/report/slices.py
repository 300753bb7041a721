"""Two predictors compared, overall and by slice: who is better, where, and where each is right alone.

The *advantage* of the first over the second is the second's log loss minus the first's on the same battles, in nats:
above 0, the first is better. Every slice of a comparison is one hypothesis ("no difference here"); their p-values are
adjusted together by Holm's method, so that all findings of one comparison are wrong with probability at most 5 %.
Intervals are per slice (95 % each, group bootstrap), not simultaneous.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble.features.battle_features import REFUSALS
from ensemble.statistics.bootstrap import contrast, group_interval
from ensemble.statistics.standard_errors import holm, p_value
from oof.classes import CLASSES
from oof.data.prompt_quality import JUNK, prompt_quality, prompt_texts
from oof.metrics import Floats, Integers, row_log_loss

ALPHA = 0.05
LEAST = 20  # battles: a smaller slice is left out
GRID = 20  # cells a side of the picture of two predictors' probabilities
POINTS = 2000  # battles shown one by one in a page's scatters: of more a seeded sample, so that the page stays small
DRAWN = 8  # pairs of members with figures: of more, the others have their tables alone
EXAMPLES = 3
EXCERPT = 300  # characters of a text shown as an example

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Slice:
    """Some of the battles: (n,) flags, under a name within a family."""

    family: str
    name: str
    flags: Bools


def battle_facts(table: pl.DataFrame) -> pl.DataFrame:
    """Return what slices and tie origins need of each of (n) battles: sizes, texts' kinds, prompt quality."""
    prompt = pl.col("prompt").list.join("\n")
    a, b = (pl.col(f"response_{side}").list.join("\n") for side in "ab")
    letters = prompt.str.count_matches(r"\p{L}")
    facts = table.select(
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
    quality = pl.Series("quality", prompt_quality(prompt_texts(table)))
    return facts.with_columns(quality, log_ratio=((pl.col("chars_a") + 1) / (pl.col("chars_b") + 1)).log())


def slices_of(facts: pl.DataFrame, labels: Integers, seen: Bools | None = None) -> list[Slice]:
    """Return the slices with at least ``LEAST`` battles, and not all of them, in the order of the report."""
    total = (facts["prompt_chars"] + facts["chars_a"] + facts["chars_b"]).to_numpy()
    edges = np.quantile(total, [0.25, 0.5, 0.75])
    quarter = np.searchsorted(edges, total, side="left")
    ratio, turns = np.exp(np.abs(facts["log_ratio"].to_numpy())), facts["turns"].to_numpy()
    found = [Slice("length", f"{name} quarter", quarter == i) for i, name in enumerate(QUARTERS)]
    found += [
        Slice("length difference", "under 1.1 times", ratio < 1.1),
        Slice("length difference", "1.1 to 2 times", (ratio >= 1.1) & (ratio < 2)),
        Slice("length difference", "2 times and more", ratio >= 2),
        Slice("turns", "one", turns == 1),
        Slice("turns", "several", turns > 1),
    ]
    found += _languages(facts)
    code, junk = facts["code"].to_numpy(), facts["quality"].to_numpy() < JUNK
    found += [Slice("code", "with code", code), Slice("code", "without code", ~code)]
    found += [Slice("prompt quality", "junk", junk), Slice("prompt quality", "not junk", ~junk)]
    found += [Slice("verdict", "decided", labels != 2), Slice("verdict", "tie", labels == 2)]
    if seen is not None:
        found += [Slice("seen prompts", "seen", seen), Slice("seen prompts", "unseen", ~seen)]
    return [part for part in found if part.flags.sum() >= LEAST and not part.flags.all()]


QUARTERS = ("shortest", "second", "third", "longest")


def _languages(facts: pl.DataFrame) -> list[Slice]:
    """Slices by the file's language column, the five most frequent; without one, by the prompt's script."""
    if facts["language"].null_count() < facts.height:
        top = facts["language"].drop_nulls().value_counts(sort=True).head(5)["language"].to_list()
        languages = facts["language"].fill_null("")
        return [Slice("language", name, (languages == name).to_numpy()) for name in sorted(top)]
    latin = facts["latin"].to_numpy()
    return [Slice("language", "Latin script", latin), Slice("language", "other scripts", ~latin)]


def compare(
    names: tuple[str, str],
    probs: tuple[Floats, Floats],
    labels: Integers,
    groups: Integers,
    slices: list[Slice],
    seed: int,
) -> dict[str, Any]:
    """Return the comparison of two predictors: overall and per slice, with Holm-adjusted p-values and findings."""
    first, second = (row_log_loss(p, labels) for p in probs)
    advantage = second - first
    rows: list[dict[str, Any]] = []
    for part in [Slice("all", "all battles", np.ones(len(labels), dtype=bool)), *slices]:
        at = part.flags
        rows.append(
            {
                "family": part.family,
                "slice": part.name,
                "n": int(at.sum()),
                "n_groups": len(np.unique(groups[at])),
                "loss_first": float(first[at].mean()),
                "loss_second": float(second[at].mean()),
                "advantage": group_interval(advantage[at], groups[at], seed),
                "p": p_value(advantage[at], groups[at]),
            }
        )
    adjusted = holm([row["p"] for row in rows[1:]])  # the overall difference is the one question asked beforehand
    for row, p in zip(rows, [rows[0]["p"], *adjusted], strict=True):
        row["p_adjusted"] = p
        row["finding"] = _finding(row["advantage"]["value"], p, names)
    return {"first": names[0], "second": names[1], "overall": rows[0], "slices": rows[1:]}


def _finding(value: float, p: float | None, names: tuple[str, str]) -> str:
    if p is None:
        return "too few groups to say"
    if p >= ALPHA:
        return "no difference shown"
    return f"{names[0] if value > 0 else names[1]} better"


def alike(facts: pl.DataFrame) -> NDArray[np.int64]:
    """Return (n,) numbers of strata: quarter of the total length, one or several turns, with or without code."""
    total = (facts["prompt_chars"] + facts["chars_a"] + facts["chars_b"]).to_numpy()
    quarter = np.searchsorted(np.quantile(total, [0.25, 0.5, 0.75]), total, side="left")
    return np.asarray(quarter * 4 + (facts["turns"].to_numpy() > 1) * 2 + facts["code"].to_numpy(), dtype=np.int64)


def seen_effect(advantage: Floats, seen: Bools, groups: Integers, strata: Integers, seed: int) -> dict[str, Any]:
    """Return the advantage on seen and on unseen prompts, and the difference of the two, with intervals.

    ``matched`` is the difference between seen and unseen battles of the same stratum (see :func:`alike`).
    """
    parts: dict[str, Any] = {"n_seen": int(seen.sum()), "n_unseen": int((~seen).sum())}
    for name, at in (("seen", seen), ("unseen", ~seen)):
        parts[name] = group_interval(advantage[at], groups[at], seed) if at.any() else None
    parts["difference"] = contrast(advantage, seen, groups, seed)
    parts["matched"] = contrast(advantage, seen, groups, seed, strata)
    low, high = parts["difference"]["low"], parts["difference"]["high"]
    parts["finding"] = (
        "cannot be said" if low is None or high is None
        else "larger on seen prompts" if low > 0
        else "smaller on seen prompts" if high < 0
        else "no difference shown"
    )  # fmt: skip
    return parts


def right_alone(names: tuple[str, str], probs: tuple[Floats, Floats], labels: Integers) -> dict[str, Any]:
    """Return how often each predictor's most probable class is right, per class: both, one alone, neither."""
    hits = [p.argmax(axis=1) == labels for p in probs]
    cases = {
        "both": hits[0] & hits[1],
        names[0]: hits[0] & ~hits[1],
        names[1]: ~hits[0] & hits[1],
        "neither": ~hits[0] & ~hits[1],
    }
    order = ["both", "first", "second", "neither"]
    rows = {}
    for key, flags in zip(order, cases.values(), strict=True):
        counts = np.bincount(labels[flags], minlength=3).tolist()
        rows[key] = {"n": int(flags.sum()), "a": counts[0], "b": counts[1], "tie": counts[2]}
    return rows


def probability_grid(probs: tuple[Floats, Floats], labels: Integers) -> dict[str, Any]:
    """Return (GRID, GRID) counts of battles by the two predictors' probability of the verdict, and their correlation.

    Row i, column j: the first predictor's probability in [j, j + 1) / GRID, the second's in [i, i + 1) / GRID.
    """
    of_label = [p[np.arange(len(labels)), labels] for p in probs]
    cells = [np.minimum((p * GRID).astype(np.int64), GRID - 1) for p in of_label]
    counts = np.zeros((GRID, GRID), dtype=np.int64)
    np.add.at(counts, (cells[1], cells[0]), 1)
    constant = any(p.std() == 0 for p in of_label)
    correlation = None if constant else float(np.corrcoef(of_label[0], of_label[1])[0, 1])
    return {"cells": GRID, "counts": counts.tolist(), "correlation": correlation}


def probability_points(probs: tuple[Floats, Floats], labels: Integers, seed: int, most: int = POINTS) -> dict[str, Any]:
    """Return the two predictors' probabilities of the verdict, battle by battle; of more than ``most`` a sample.

    ``first``, ``second`` (to three decimals, finer than a screen) and ``verdict`` (0, 1, 2) have ``n_shown`` values.
    """
    n = len(labels)
    rows = np.arange(n)
    if n > most:
        rows = np.sort(np.random.default_rng(seed).choice(n, most, replace=False))
    first, second = (np.round(np.asarray(p[rows, labels[rows]], dtype=np.float64), 3).tolist() for p in probs)
    return {"n": n, "n_shown": len(rows), "first": first, "second": second, "verdict": labels[rows].tolist()}


def strongest_cases(table: pl.DataFrame, advantage: Floats, labels: Integers) -> dict[str, list[dict[str, Any]]]:
    """Return the battles on which the advantage is largest for each side, with excerpts of their texts."""
    order = np.argsort(advantage, kind="stable")
    picked = {"first": order[::-1][:EXAMPLES], "second": order[:EXAMPLES]}
    return {side: [example(table, int(i), float(advantage[i]), labels) for i in rows] for side, rows in picked.items()}


def example(table: pl.DataFrame, row: int, value: float, labels: Integers) -> dict[str, Any]:
    """Return one battle's id, verdict, a number about it, and excerpts of its texts."""
    texts = {part: excerpt("\n".join(table[part][row])) for part in ("prompt", "response_a", "response_b")}
    return {"id": table["id"][row], "verdict": CLASSES[int(labels[row])], "value": value, **texts}


def excerpt(text: str) -> str:
    return text if len(text) <= EXCERPT else text[:EXCERPT] + " …"


def member_pairs(
    table: pl.DataFrame,
    facts: pl.DataFrame,
    probs: Mapping[str, Floats],
    labels: Integers,
    groups: Integers,
    slices: list[Slice],
    seen: Bools | None,
    seed: int,
) -> list[dict[str, Any]]:
    """Return everything about each pair of members in ``probs``."""
    pairs = []
    every = list(combinations(probs, 2))
    for names in every:
        both = probs[names[0]], probs[names[1]]
        advantage = row_log_loss(both[1], labels) - row_log_loss(both[0], labels)
        pair = compare(names, both, labels, groups, slices, seed)
        pair["right_alone"] = right_alone(names, both, labels)
        pair["grid"] = probability_grid(both, labels)
        pair["points"] = probability_points(both, labels, seed, POINTS * 3 // min(max(len(every), 3), DRAWN))
        pair["strongest"] = strongest_cases(table, advantage, labels)
        pair["seen"] = seen_effect(advantage, seen, groups, alike(facts), seed) if seen is not None else None
        pairs.append(pair)
    return pairs
