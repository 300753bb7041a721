"""Table of predictors on held-out battles, of one split by prompt or of several splits pooled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import best_member, cell
from ensemble.distillation.plan import cross_fitted_temperature
from oof.data.battles import read_file
from oof.metrics import row_log_loss

HARD, DEFAULT = "hard labels only", "default: OOF teacher + pseudo-labelled battles, KL, T = 1"
ONLY_LABELLED = "default, labelled battles only"
Logits = dict[str, NDArray[np.float64]]  # (n, 3) of each predictor
Losses = dict[str, NDArray[np.float64]]  # (n,) of each predictor


@dataclass(frozen=True)
class Scored:
    """(n,) losses of each predictor on held-out battles, with the units over which intervals resample."""

    losses: Losses
    arguments: NDArray[np.integer]  # (n,) number of the text shown first
    prompts: NDArray[np.integer]  # (n,) number of the prompt


def scored(logits: Logits, out: Path) -> Scored:
    """Return the losses of logits, each predictor calibrated by the temperature of the other half of the prompts."""
    truth = read_file(out / "heldout.csv", "train").table
    labels = truth["label"].to_numpy().astype(np.int64)
    _, prompts = np.unique([turns[0] for turns in truth["prompt"].to_list()], return_inverse=True)
    _, arguments = np.unique([turns[0] for turns in truth["response_a"].to_list()], return_inverse=True)
    losses = {
        name: row_log_loss(cross_fitted_temperature(z, labels, prompts % 2, prompts)[0], labels)
        for name, z in logits.items()
    }
    return Scored(losses, arguments, prompts)


def pool(splits: Sequence[Scored]) -> Scored:
    """Return splits that share no prompt as one; predictors that one of them lacks are left out."""
    names = [name for name in splits[0].losses if all(name in split.losses for split in splits)]
    losses = {name: np.concatenate([split.losses[name] for split in splits]) for name in names}
    step = 1_000_000  # more than the arguments or prompts of a split
    arguments = np.concatenate([split.arguments + step * i for i, split in enumerate(splits)])
    prompts = np.concatenate([split.prompts + step * i for i, split in enumerate(splits)])
    return Scored(losses, arguments, prompts)


def table(results: Scored, recipes: Sequence[str]) -> str:
    """Return the Markdown table of finished predictors, and of the given recipes that have not run yet."""
    losses, units = results.losses, results.arguments
    best = best_member(losses)
    lines = [
        f"{len(units):,} held-out battles of {len(np.unique(results.prompts))} prompts; 95 % intervals over the "
        "arguments shown first, which recur.",
        "",
        f"| | log loss | minus calibrated | minus {best or 'the best member'} | minus {HARD} | minus {ONLY_LABELLED} |",
        "|---|---|---|---|---|---|",
    ]
    for name, loss in losses.items():
        same_battles = ONLY_LABELLED if name.startswith(ONLY_LABELLED) else ""
        differences = [
            cell(loss - losses[other], units, "+") if other in losses and other != name else ""
            for other in ("calibrated", best, HARD, same_battles)
        ]
        lines.append(f"| {name} | {cell(loss, units)} | {' | '.join(differences)} |")
    lines += [f"| {name} | not run yet | | | | |" for name in recipes if name not in losses]
    return "\n".join(lines)


def over_prompts(results: Scored) -> str:
    """Return the main differences with intervals over the prompts, for what to expect of another debate."""
    losses = results.losses
    lines = ["| intervals over the prompts | |", "|---|---|"]
    for one, other in ((DEFAULT, HARD), (DEFAULT, best_member(losses)), (DEFAULT, "calibrated")):
        if one in losses and other in losses:
            lines.append(f"| {one} minus {other} | {cell(losses[one] - losses[other], results.prompts, '+')} |")
    return "\n".join(lines)
