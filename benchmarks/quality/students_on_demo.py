"""Comparison of teachers and losses for the student, on a finished run's battles.

    make demo && python -m benchmarks.quality.students_on_demo                          # about 8 minutes on 2 cores
    python -m benchmarks.quality.students_on_demo --only default 'hard labels only'     # some of it

Each recipe trains the K fold students of RUN and scores every battle by the student that was not trained on it.
RUN/students keeps finished recipes, so the script can be killed and rerun. Prints a Markdown table: log loss, the
paired difference from the calibrated ensemble and from the same student trained on hard labels only, each with its
95 % interval over groups.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import add_run_arguments, argument_parser, cell, chosen, run_script, write_page
from ensemble.distillation.plan import cross_fitted_temperature, plan_student
from ensemble.stacking.stage import load_inputs, read_predictions
from oof import config as configuration
from oof.common.atomic_files import read_parquet, write_parquet
from oof.common.logging_setup import quiet_libraries
from oof.common.logits_format import LOGIT_COLUMNS, logits_frame
from oof.common.steps import Step, locked
from oof.metrics import row_log_loss

HARD = "hard labels only"
RECIPES: dict[str, list[str]] = {
    "default": [],
    HARD: ["distill.losses={ce: 1, kl: 0}"],
    "KL, T = 1": ["distill.losses={kl: 1}", "distill.temperature=1"],
    "KL, T = 2": ["distill.losses={kl: 1}", "distill.temperature=2"],
    "KL, T = 5": ["distill.losses={kl: 1}", "distill.temperature=5"],
    "CE + KL": ["distill.losses={ce: 1, kl: 1}", "distill.temperature=1"],
    "CE + KL + cos": ["distill.losses={ce: 1, kl: 1, cosine: 1}", "distill.temperature=1"],
    "MSE of logits": ["distill.losses={kl: 0, mse: 1}"],
    "several teachers": ["distill.teachers=members"],
    "self-distillation": ["distill.teachers=gemma2"],
    "fold-matched teacher": ["distill.teacher=fold_matched"],
    "fold-matched teachers, CE + 2 KL + 2 cos": [
        "distill.teacher=fold_matched",
        "distill.teachers=members",
        "distill.losses={ce: 1, kl: 2, cosine: 2}",
        "distill.temperature=1",
    ],
    "nested teacher": ["distill.teacher=nested"],
    "length hints in the student's template": ["distill.prompts.hints=lengths"],
}


def train(name: str, settings: Sequence[str]) -> NDArray[np.float64]:
    """Return (n, 3) calibrated probabilities of a recipe's fold students, training those that are missing."""
    config = configuration.load(settings[0], settings[1:])
    plan = plan_student(config)
    folder = "".join(c if c.isalnum() else "-" for c in name)
    step = Step(Path(config.run) / "students" / folder, plan.key)
    if not step.done:
        from ensemble.distillation.run_teacher_jobs import run_teacher_jobs
        from ensemble.distillation.train import train_fold_students

        run_teacher_jobs(plan)
        step.begin()
        logits = train_fold_students(plan, step.folder)
        frame = logits_frame(plan.inputs.table["id"], logits, plan.inputs.folds)
        write_parquet(step.folder / "logits.parquet", frame)
        step.finish()
    frame = read_parquet(step.folder / "logits.parquet")
    mean = frame.select(LOGIT_COLUMNS).to_numpy().reshape(-1, 2, 3).astype(np.float64).mean(axis=1)
    return cross_fitted_temperature(mean, plan.inputs.labels, plan.inputs.folds, plan.inputs.groups)[0]


def compare(path: str, overrides: Sequence[str], recipes: Mapping[str, Sequence[str]]) -> str:
    """Train every recipe and return the table."""
    config = configuration.load(path, overrides)
    with locked(Path(config.run)):
        inputs = load_inputs(config)
        stage_two = read_predictions(Path(config.run) / "stack" / "predictions.parquet", inputs.table["id"])
        probs = {name: p for name, p in stage_two.items() if name == "calibrated" or name.startswith("member:")}
        for name, changes in recipes.items():
            print(f"{name} …", file=sys.stderr, flush=True)
            probs[name] = train(name, [path, *overrides, *changes])
    losses = {name: row_log_loss(p, inputs.labels) for name, p in probs.items()}

    groups, seed = inputs.groups, config.seed
    lines = [f"{len(inputs.labels)} battles, 95 % intervals over groups of near-duplicate prompts.", ""]
    lines += ["| student | log loss | minus calibrated | minus hard labels only |", "|---|---|---|---|"]
    for name, loss in losses.items():
        hard = cell(loss - losses[HARD], groups, "+", seed) if HARD in losses and name != HARD else ""
        calibrated = cell(loss - losses["calibrated"], groups, "+", seed) if name != "calibrated" else ""
        lines.append(f"| {name} | {cell(loss, groups, seed=seed)} | {calibrated} | {hard} |")
    return "\n".join(lines)


def main() -> None:
    parser = argument_parser(__doc__)
    add_run_arguments(parser)
    parser.add_argument("--only", nargs="*", default=[], metavar="RECIPE", help=f"of: {'; '.join(RECIPES)}")
    parser.add_argument("--write", type=Path, help="the page, for example docs/evidence/students-on-demo.md")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    arguments = parser.parse_args()
    quiet_libraries()
    recipes = {name: RECIPES[name] for name in chosen(arguments.only, RECIPES)}
    table = compare(arguments.config, [f"run={arguments.run}", *arguments.overrides], recipes)
    print(table)
    if arguments.write:
        write_page(arguments.write, "Students on the demo", [table])


if __name__ == "__main__":
    run_script(main)
