"""Label-permutation canary: no stage may beat the prior on permuted labels.

    python -m benchmarks.quality.label_canary       # after "make demo"; --run, --config and --out: of another run

Takes a finished run's battles and folds, permutes the labels within each fold, and runs the whole pipeline on them.
The table has each stage's difference in log loss from the prior, paired, with its 95 % interval over groups. Were an
interval below zero, a label would have leaked into its own prediction, and the exit status is 1.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.common import add_run_arguments, argument_parser, paragraphs, run_script, write_page
from ensemble.__main__ import main as ensemble_main
from ensemble.stacking.stage import load_inputs, read_predictions
from ensemble.statistics.bootstrap import group_interval
from ensemble.statistics.interval_words import below_zero, in_words
from oof import config as configuration
from oof.__main__ import main as oof_main
from oof.classes import WINNER_COLUMNS
from oof.jobs.dataset import load_battles
from oof.metrics import row_log_loss


def permuted(table: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Return battles in the competition's schema, with a fold column and labels permuted within folds."""
    labels, folds = table["label"].to_numpy().astype(int), table["fold"].to_numpy()
    rng = np.random.default_rng(seed)
    for fold in np.unique(folds):
        rows = np.flatnonzero(folds == fold)
        labels[rows] = labels[rng.permutation(rows)]
    texts = {c: [json.dumps(turns) for turns in table[c].to_list()] for c in ("prompt", "response_a", "response_b")}
    winners = {name: (labels == i).astype(int) for i, name in enumerate(WINNER_COLUMNS)}
    return pl.DataFrame({"id": table["id"], **texts, **winners, "fold": folds})


def main() -> int:
    parser = argument_parser(__doc__)
    add_run_arguments(parser)
    parser.add_argument("--out", default="runs/canary")
    parser.add_argument("--write", type=Path, help="the page, e.g. docs/evidence/canary.md; default: in --out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    table = load_battles(Path(arguments.run)).filter(pl.col("role") == "train")
    permuted(table, arguments.seed).write_csv(out / "permuted.csv")
    settings = [arguments.config, f"run={out}", f"data.train=[{out / 'permuted.csv'}]", *arguments.overrides]
    for program, subcommand in ((oof_main, "oof"), (ensemble_main, "stack"), (ensemble_main, "distill")):
        if program([subcommand, *settings]):
            return 2
    config = configuration.load(settings[0], settings[1:])
    inputs = load_inputs(config)
    probs = read_predictions(out / "stack" / "predictions.parquet", inputs.table["id"])
    probs |= read_predictions(out / "distill" / "predictions.parquet", inputs.table["id"])
    losses = {name: row_log_loss(p, inputs.labels) for name, p in probs.items()}
    leaks = False
    n, prior = len(inputs.labels), losses["prior"].mean()
    lines = [paragraphs(__doc__, 2), "", f"{n:,} battles; log loss of the prior {prior:.4f}.", ""]
    lines += ["| stage | log loss minus the prior's |", "|---|---|"]
    for name in (stage for stage in losses if stage != "prior"):
        row = group_interval(losses[name] - losses["prior"], inputs.groups, seed=arguments.seed)
        leaks |= below_zero(row)
        lines.append(f"| {name} | {in_words(row)} |")
    lines += ["", "**A stage beats the prior: a label has leaked.**" if leaks else "No stage beats the prior."]
    print(write_page(arguments.write or out / "canary.md", "Labels permuted within folds", lines))
    return int(leaks)


if __name__ == "__main__":
    run_script(main)
