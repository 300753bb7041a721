"""What the page of ``make quality`` says of one set of battles: tables of losses, of what is to hold, of costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.common import cell
from ensemble.statistics.bootstrap import group_interval
from oof.common.atomic_files import read_json
from oof.config import Config
from oof.metrics import row_log_loss

STAGES = {"oof": "oof", "stack": "ensemble", "distill": "ensemble"}  # verb: its package

Losses = Mapping[str, NDArray[np.float64]]  # predictor -> (n,) log losses


def tokens_of(config: Config) -> int:
    """Return the tokens that the fold jobs of stage one read, in training and in scoring of both orders."""
    total = 0
    for name, member in config.members.items():
        tables = [pl.read_parquet(path) for path in sorted(Path(config.run).glob(f"oof/{name}/fold-*/logits.parquet"))]
        held = [int(table.select(pl.sum_horizontal("^kept_.*$").sum()).item()) for table in tables]
        orders = 2 if member.train.swap == "paired" else 1
        total += int(sum((sum(held) - own) * member.train.epochs * orders + 2 * own for own in held))
    return total


def section(name: str, config: Config, probs: Mapping[str, NDArray[np.float64]], inputs: Any, folder: Path) -> str:
    """Return one set's part of the page."""
    reported = inputs.table["id"].is_in(read_json(folder / "reported.json")).to_numpy()
    of_all = {row: row_log_loss(p, inputs.labels) for row, p in probs.items()}
    losses = {row: loss[reported] for row, loss in of_all.items() if not row.startswith("combiner:")}
    best = min((row for row in losses if row.startswith("member:")), key=lambda row: float(losses[row].mean()))
    groups = inputs.groups[reported]
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
        apart = [cell(loss - losses[o], groups, "+") if o != row else "" for o in ("calibrated", best, "text")]
        lines.append(f"| {row} | {cell(loss, groups)} | {' | '.join(apart)} |")
    lines += ["", *to_hold(of_all, best, inputs.groups, reported)]
    if np.any(~reported):
        lines += ["", *combiners(of_all, best, inputs.groups, ~reported)]
    spent = read_json(folder / "spent.json")
    lines += ["", "| stage | seconds | tokens/s | largest process, GB |", "|---|---|---|---|"]
    for stage in [stage for stage in STAGES if stage in spent and (stage != "distill" or "student" in losses)]:
        facts = spent[stage]
        rate = f"{tokens_of(config) / facts['seconds']:,.0f}" if stage == "oof" else ""
        lines.append(f"| {stage} | {facts['seconds']:,.0f} | {rate} | {facts['peak_gb']:.1f} |")
    return "\n".join(lines)


def to_hold(losses: Losses, best: str, groups: Any, reported: NDArray[np.bool_]) -> list[str]:
    """Return the table of what was asked: on the reported battles and, where there are others, on all of them.

    The best member is that of the reported ones. All include those by which ``stack.final`` was chosen.
    """
    sets = {"reported": reported} | ({"all": np.ones_like(reported)} if np.any(~reported) else {})
    lines = [f"| to hold | {' | '.join(f'{name}, {rows.sum():,} battles' for name, rows in sets.items())} |"]
    lines.append("|---|" + "---|" * len(sets))

    def cells(one: str, other: str, limit: float | None) -> str:
        """An interval below 0 is asked for, or with a limit a mean at most so high."""
        if one not in losses:
            return "not run yet" + " | not run yet" * (len(sets) - 1)
        said = []
        for rows in sets.values():
            apart = (losses[one] - losses[other])[rows]
            high = group_interval(apart, groups[rows], 0)["high"]
            holds = high < 0 if limit is None else float(apart.mean()) <= limit
            said.append(f"{'yes' if holds else '**no**'}: {cell(apart, groups[rows], '+')}")
        return " | ".join(said)

    for what, one, other, limit in (
        (f"calibrated better than {best}, interval below 0", "calibrated", best, None),
        ("calibrated better than the text baseline, interval below 0", "calibrated", "text", None),
        (f"student better than {best}, interval below 0", "student", best, None),
        ("student at most 0.03 nats behind calibrated", "student", "calibrated", 0.03),
    ):
        lines.append(f"| {what} | {cells(one, other, limit)} |")
    return lines


def combiners(losses: Losses, best: str, groups: Any, rows: NDArray[np.bool_]) -> list[str]:
    """Return the table by which ``final`` was chosen: every combiner on battles that are not reported."""
    lines = [f"The combiners on the {rows.sum():,} battles of the other half, by which `stack.final` was chosen:", ""]
    lines += [f"| | log loss | minus {best} |", "|---|---|---|"]
    for row in [best, *(row for row in losses if row.startswith("combiner:"))]:
        apart = cell((losses[row] - losses[best])[rows], groups[rows], "+") if row != best else ""
        lines.append(f"| {row} | {cell(losses[row][rows], groups[rows])} | {apart} |")
    return lines
