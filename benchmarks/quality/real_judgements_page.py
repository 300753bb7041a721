"""Page section of ``make quality`` for one set of battles: tables of losses, of claims with verdicts, of costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.common import best_member, cell, verdict_cell
from oof.common.atomic_files import read_json
from oof.config import Config
from oof.metrics import row_log_loss

STAGES = {"oof": "oof", "stack": "ensemble", "distill": "ensemble"}  # subcommand: its package

Losses = Mapping[str, NDArray[np.float64]]  # predictor -> (n,) log losses


def tokens_of(config: Config) -> int:
    """Return the tokens that stage one's fold jobs processed, in training and in scoring of both orders."""
    total = 0
    for name, member in config.members.items():
        tables = [pl.read_parquet(path) for path in sorted(Path(config.run).glob(f"oof/{name}/fold-*/logits.parquet"))]
        by_fold = [int(table.select(pl.sum_horizontal("^kept_.*$").sum()).item()) for table in tables]
        orders = 2 if member.train.swap == "paired" else 1
        total += int(sum((sum(by_fold) - n) * member.train.epochs * orders + 2 * n for n in by_fold))
    return total


def section(name: str, config: Config, probs: Mapping[str, NDArray[np.float64]], inputs: Any, folder: Path) -> str:
    """Return one set's section of the page."""
    reported = inputs.table["id"].is_in(read_json(folder / "reported.json")).to_numpy()
    all_losses = {row: row_log_loss(p, inputs.labels) for row, p in probs.items()}
    losses = {row: loss[reported] for row, loss in all_losses.items() if not row.startswith("combiner:")}
    best, groups = best_member(losses), inputs.groups[reported]
    lines = [f"## {name.capitalize()}", ""]
    others = f", trained and fitted with {np.sum(~reported):,} of the other half" if np.any(~reported) else ""
    epochs = {name: f"{member.train.epochs:g}" for name, member in config.members.items()}
    lines.append(
        f"{len(groups):,} battles in {len(np.unique(groups))} groups of near-duplicate prompts{others}; texts of at "
        f"most {config.prompts.max_tokens} tokens; epochs: "
        f"{', '.join(f'{name} {n}' for name, n in epochs.items())}, student {config.distill.student.train.epochs:g}."
    )
    lines += ["", f"| | log loss | minus calibrated | minus {best} | minus text |", "|---|---|---|---|---|"]
    for row, loss in losses.items():
        differences = [cell(loss - losses[o], groups, "+") if o != row else "" for o in ("calibrated", best, "text")]
        lines.append(f"| {row} | {cell(loss, groups)} | {' | '.join(differences)} |")
    lines += ["", *claims(all_losses, best, inputs.groups, reported)]
    if np.any(~reported):
        lines += ["", *combiners(all_losses, best, inputs.groups, ~reported)]
    spent = read_json(folder / "spent.json")
    lines += ["", "| stage | seconds | tokens/s | largest process, GB |", "|---|---|---|---|"]
    for stage in [stage for stage in STAGES if stage in spent and (stage != "distill" or "student" in losses)]:
        cost = spent[stage]
        rate = f"{tokens_of(config) / cost['seconds']:,.0f}" if stage == "oof" else ""
        lines.append(f"| {stage} | {cost['seconds']:,.0f} | {rate} | {cost['peak_gb']:.1f} |")
    return "\n".join(lines)


def claims(losses: Losses, best: str, groups: Any, reported: NDArray[np.bool_]) -> list[str]:
    """Return the table of claims with verdicts, on the reported battles and, where there are others, on all of them.

    The best member is that of the reported battles. All battles include those by which ``stack.final`` was chosen.
    """
    sets = {"reported": reported} | ({"all": np.ones_like(reported)} if np.any(~reported) else {})
    lines = [f"| claim | {' | '.join(f'{name}, {rows.sum():,} battles' for name, rows in sets.items())} |"]
    lines.append("|---|" + "---|" * len(sets))

    def cells(one: str, other: str, limit: float | None) -> str:
        if one not in losses:
            return "not run yet" + " | not run yet" * (len(sets) - 1)
        difference = losses[one] - losses[other]
        return " | ".join(verdict_cell(difference[rows], groups[rows], limit) for rows in sets.values())

    for claim, one, other, limit in (
        (f"calibrated better than {best}, interval below 0", "calibrated", best, None),
        ("calibrated better than the text baseline, interval below 0", "calibrated", "text", None),
        (f"student better than {best}, interval below 0", "student", best, None),
        ("student at most 0.03 nats behind calibrated", "student", "calibrated", 0.03),
    ):
        lines.append(f"| {claim} | {cells(one, other, limit)} |")
    return lines


def combiners(losses: Losses, best: str, groups: Any, rows: NDArray[np.bool_]) -> list[str]:
    """Return the table by which ``final`` was chosen: every combiner on battles that are not reported."""
    lines = [f"The combiners on the {rows.sum():,} battles of the other half, by which `stack.final` was chosen:", ""]
    lines += [f"| | log loss | minus {best} |", "|---|---|---|"]
    for row in [best, *(row for row in losses if row.startswith("combiner:"))]:
        difference = cell((losses[row] - losses[best])[rows], groups[rows], "+") if row != best else ""
        lines.append(f"| {row} | {cell(losses[row][rows], groups[rows])} | {difference} |")
    return lines
