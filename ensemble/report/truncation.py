"""Truncation: how many tokens of the battles the members and the student read, and of a battle which texts were cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.report.run_data import RunData

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


def truncation_report(run: RunData) -> list[dict[str, Any]]:
    """Return a row per limit and tokenizer: its readers, the shares of battles that are cut and tokens that are read.

    The counts are those of scoring, and without the tokens of the template.
    """
    rows: list[dict[str, Any]] = []
    for name, counts in run.reads.items():
        tokens, kept = counts[:, :3].sum(axis=1), counts[:, 3:].sum(axis=1)
        row = {
            "budget": _limit(run, name),
            "truncated": float((kept < tokens).mean()),
            "kept": float(kept.sum() / max(tokens.sum(), 1)),
            "quantiles": np.quantile(tokens, QUANTILES).tolist(),
        }
        if row["budget"]:
            _add(rows, name, row)
    return rows


def _limit(run: RunData, reader: str) -> int | None:
    """Return the longest sequence that a reader scores; the student may have a limit of its own."""
    prompts = run.config.get("prompts") or {}
    own = run.step("student_prompts").get("max_tokens") if reader == "student" else None
    limit = own or prompts.get("score_max_tokens") or prompts.get("max_tokens")
    return int(limit) if limit else None


def cut_texts(reads: Mapping[str, NDArray[np.int64]], row: int) -> list[dict[str, Any]]:
    """Return the readers that did not read a battle whole: tokens of prompt, A and B, and how many of them are read."""
    found: list[dict[str, Any]] = []
    for name, counts in reads.items():
        tokens, kept = (part.tolist() for part in np.split(counts[row], 2))
        if kept != tokens:
            _add(found, name, {"tokens": tokens, "kept": kept})
    return found


def _add(rows: list[dict[str, Any]], reader: str, row: dict[str, Any]) -> None:
    """Add a reader to the row with the same content, or a new row."""
    for other in rows:
        if {key: value for key, value in other.items() if key != "readers"} == row:
            other["readers"].append(reader)
            return
    rows.append({"readers": [reader], **row})
