"""The table of ``distill.py``: predictors on held-out battles of one split by prompt, or of several together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import cell
from ensemble.distillation.plan import cross_fitted_temperature
from oof.data.battles import read_file
from oof.metrics import row_log_loss

HARD, DEFAULT = "hard labels only", "default: OOF teacher + pseudo-labelled battles, KL, T = 1"
ONLY_LABELLED = "default, labelled battles only"
Logits = dict[str, NDArray[np.float64]]  # (n, 3) of each predictor
Losses = dict[str, NDArray[np.float64]]  # (n,) of each predictor


@dataclass(frozen=True)
class Scored:
    """(n,) losses of each predictor on held-out battles, and what recurs among these."""

    losses: Losses
    arguments: NDArray[np.integer]  # (n,) which text was shown first
    prompts: NDArray[np.integer]  # (n,)


def scored(logits: Logits, out: Path) -> Scored:
    """Return the losses of logits, each predictor at the temperature that the other half of the prompts gives."""
    truth = read_file(out / "heldout.csv", "train").table
    labels = truth["label"].to_numpy().astype(np.int64)
    _, prompts = np.unique([turns[0] for turns in truth["prompt"].to_list()], return_inverse=True)
    _, shown = np.unique([turns[0] for turns in truth["response_a"].to_list()], return_inverse=True)
    losses = {n: row_log_loss(cross_fitted_temperature(z, labels, prompts % 2)[0], labels) for n, z in logits.items()}
    return Scored(losses, shown, prompts)


def pool(parts: Sequence[Scored]) -> Scored:
    """Return several splits as one; no two share a prompt. Predictors that one of them lacks are left out."""
    names = [name for name in parts[0].losses if all(name in part.losses for part in parts)]
    losses = {name: np.concatenate([part.losses[name] for part in parts]) for name in names}
    far = 1_000_000  # more than there are arguments or prompts in a split
    shown, prompts = (
        np.concatenate([getattr(part, what) + far * i for i, part in enumerate(parts)])
        for what in ("arguments", "prompts")
    )
    return Scored(losses, shown, prompts)


def best_member(losses: Losses) -> str:
    names = (name for name in losses if name.startswith("member"))
    return min(names, key=lambda name: losses[name].mean(), default="")


def table(results: Scored, asked: Sequence[str]) -> str:
    """Return the Markdown table of what is done, and of what is asked for and not done."""
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
        same = ONLY_LABELLED if name.startswith(ONLY_LABELLED) else ""
        others = [
            cell(loss - losses[o], units, "+") if o in losses and o != name else ""
            for o in ("calibrated", best, HARD, same)
        ]
        lines.append(f"| {name} | {cell(loss, units)} | {' | '.join(others)} |")
    lines += [f"| {name} | not run yet | | | | |" for name in asked if name not in losses]
    return "\n".join(lines)


def over_prompts(results: Scored) -> str:
    """Return what is to hold with intervals over the prompts: what another debate may bring."""
    losses = results.losses
    lines = ["| intervals over the prompts | |", "|---|---|"]
    for one, other in ((DEFAULT, HARD), (DEFAULT, best_member(losses)), (DEFAULT, "calibrated")):
        if one in losses and other in losses:
            lines.append(f"| {one} minus {other} | {cell(losses[one] - losses[other], results.prompts, '+')} |")
    return "\n".join(lines)
