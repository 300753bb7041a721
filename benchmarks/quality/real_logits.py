"""Stage two on the logits of two real competition models: best single model, mean, pool, default.

    python -m benchmarks.quality.real_logits --data DIR        # writes docs/evidence/real-logits.md
    python -m benchmarks.quality.real_logits --data DIR --battles 700 --trials 4 --out runs/real-logits.md

13,638 battles of the LMSYS competition with the probabilities of two models that are not ours, one order each, no
texts. Five folds; everything that is fitted, a single model's temperature included, is fitted on the other folds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.common import argument_parser, cell, paragraphs, require, run_script, write_page
from benchmarks.quality.choice import single_members
from benchmarks.quality.choice_settings import KING, real_logits
from ensemble.stacking.cross_fit import cross_fit
from oof.config import Stack
from oof.metrics import row_log_loss

MEMBERS = ("king", "king2")


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help=f"folder of {KING}")
    parser.add_argument("--battles", type=int, default=0, help="a random part; 0 = all")
    parser.add_argument("--trials", type=int, default=Stack().trials)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("docs/evidence/real-logits.md"))
    arguments = parser.parse_args()
    require([arguments.data / KING], "--data")
    battles = real_logits(MEMBERS, arguments.battles, arguments.data / KING, arguments.seed)
    inputs = battles.design, battles.labels, battles.folds, battles.groups
    with tempfile.TemporaryDirectory() as studies:
        result = cross_fit(*inputs, Stack(trials=arguments.trials), arguments.seed, Path(studies))
    probs = single_members(battles)
    shown = {f"{name} alone": probs[f"member:{name}"] for name in MEMBERS}
    shown |= {f"{name} with a temperature": probs[f"scaled:{name}"] for name in MEMBERS}
    shown["mean of both"] = result.predictions["mean"]
    shown["log-linear pool"] = result.predictions["combiner:log_pool"]
    shown["stage two"] = result.predictions["calibrated"]
    losses = {name: row_log_loss(p, battles.labels) for name, p in shown.items()}
    lines = [
        paragraphs(__doc__, 2),
        "",
        f"{len(battles.labels):,} battles, {arguments.trials} trials, seed {arguments.seed}.",
        "",
        "| | log loss | stage two minus it |",
        "|---|---|---|",
    ]
    for name, loss in losses.items():
        difference = "" if name == "stage two" else cell(losses["stage two"] - loss, battles.groups, "+")
        lines.append(f"| {name} | {cell(loss, battles.groups)} | {difference} |")
    print(write_page(arguments.out, "Two real models' logits, stacked", lines))


if __name__ == "__main__":
    run_script(main)
