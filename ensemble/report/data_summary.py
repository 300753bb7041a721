"""Summary of the data: lengths, truncation, groups, folds, rows that were read and dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ensemble.report.run_data import RunData
from oof.data.schemas import TEXTS
from oof.metrics import row_log_loss

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
REASONS = 10  # most frequent reasons of dropped rows that are shown


def data_report(run: RunData, properties: pl.DataFrame) -> dict[str, Any]:
    """Return lengths, token truncation, groups, class balance and log loss per fold, and dropped rows.

    Args:
        run: n battles.
        properties: (n) battles, as :func:`ensemble.report.slices.battle_properties` returns them.
    """
    columns = {"prompt": "prompt_chars", "response A": "chars_a", "response B": "chars_b"}
    lengths = {name: np.quantile(properties[column].to_numpy(), QUANTILES).tolist() for name, column in columns.items()}
    total = (properties["prompt_chars"] + properties["chars_a"] + properties["chars_b"]).to_numpy()
    counts, edges = np.histogram(np.log10(total + 1), bins=24)
    folds = []
    for fold in np.unique(run.folds):
        at = run.folds == fold
        shares = np.bincount(run.labels[at], minlength=3) / at.sum()
        losses = {name: float(row_log_loss(run.probs[name][at], run.labels[at]).mean()) for name in run.predictors}
        folds.append({"fold": int(fold), "n": int(at.sum()), "n_groups": len(np.unique(run.groups[at])),
                      "shares": shares.tolist(), "log_loss": losses})  # fmt: skip
    sizes = np.bincount(np.unique(run.groups, return_inverse=True)[1])
    battles = run.step("battles")
    return {
        "n": len(run.labels),
        "n_groups": len(sizes),
        "n_groups_of_several": int((sizes > 1).sum()),
        "largest_group": int(sizes.max()),
        "shares": (np.bincount(run.labels, minlength=3) / len(run.labels)).tolist(),
        "quantiles": list(QUANTILES),
        "lengths": lengths if run.has_text else {},
        "histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
        "folds": folds,
        "counts": {name: value for name, value in battles.get("counts", {}).items() if isinstance(value, int)},
        "schemas": {Path(name).name: schema for name, schema in battles.get("schemas", {}).items()},
        "dropped": dropped_rows(run.folder / "dropped.csv"),
        "tokens": token_report(run),
    }


def dropped_rows(path: Path) -> list[dict[str, Any]]:
    """Return the most frequent reasons for dropped rows and their numbers of rows; values in a reason become "…"."""
    if not path.is_file():
        return []
    reasons = pl.read_csv(path, infer_schema=False)["reason"].str.replace_all(r"'[^']*'|\d+", "…")
    counts = reasons.value_counts().sort("count", "reason", descending=[True, False])
    return [{"reason": row["reason"], "n": row["count"]} for row in counts.head(REASONS).to_dicts()]


def token_report(run: RunData) -> list[dict[str, Any]]:
    """Return quantiles of the tokens per battle, and the share above ``prompts.max_tokens``, per cached tokenizer.

    The template's own tokens (about 30) are not counted, so the share is slightly too low.
    """
    budget = run.config.get("prompts", {}).get("max_tokens")
    if not budget:
        return []
    from oof.encoding.tokenization import text_hashes

    texts = pl.concat([run.table.select("id", text=pl.col(name)) for name in TEXTS])
    turns = texts.explode("text").with_columns(pl.col("text").fill_null(""))
    stripped = [text.strip() for text in turns["text"].to_list()]  # as before tokenisation
    turns = turns.with_columns(key=pl.Series(text_hashes(stripped).tolist(), dtype=pl.Binary))
    rows = []
    for folder in sorted((run.folder / "tokens").glob("*/")):
        lengths = _token_lengths(folder)
        if lengths is None:
            continue
        sums = turns.join(lengths, on="key", how="left").group_by("id").agg(
            pl.col("tokens").sum(), pl.col("tokens").null_count().alias("missing")
        )  # fmt: skip
        if sums["missing"].sum():
            continue
        tokens = sums["tokens"].to_numpy()
        rows.append({"tokenizer": folder.name[:8], "budget": int(budget), "truncated": float((tokens > budget).mean()),
                      "quantiles": np.quantile(tokens, QUANTILES).tolist()})  # fmt: skip
    return rows


def _token_lengths(folder: Path) -> pl.DataFrame | None:
    """Return the token counts in a tokenizer's cache by the texts' hashes; unreadable files are skipped."""
    shards = []
    for path in sorted(folder.glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as shard:
                shards.append((shard["hashes"], np.diff(shard["offsets"])))
        except (OSError, ValueError, KeyError):
            continue
    if not shards:
        return None
    keys = pl.Series("key", np.concatenate([keys for keys, _ in shards]).tolist(), dtype=pl.Binary)
    frame = pl.DataFrame({"key": keys, "tokens": np.concatenate([tokens for _, tokens in shards])})
    return frame.unique("key")
