"""Comparison of distillation recipes on held-out debates, with small pre-trained models.

    python -m benchmarks.quality.students_on_arguments --gemma models/gemma3-270m --smollm models/smollm2-135m

UKPConvArg1: pairs of human-written arguments, one prompt a debate, verdicts A, B or undecided. Split by prompt: 1,000
labelled battles (stage one: SmolLM2-135M beside Gemma3-270M; stage two), 1,000 unlabelled ones, and at least 1,000
held-out ones, whose prompts occur nowhere else; ``--split 0``, ``1`` and ``2`` hold out different prompts. For each
recipe one Gemma3-270M student is trained on everything and scored on the held-out battles. Every predictor is
calibrated by the same two-fold cross-fitting over held-out prompts, so that calibration does not decide. Losses are
compared on the labelled battles alone. Length hints are for the student only: members that read them too would need a
second stage one.

Cut so that a CPU can run it: the battles with the shortest texts, a prompt of title and stance, 104 tokens, adapters of
rank 16 in the upper half of the layers, one order of each battle an epoch; the hidden states below the adapters are
computed once and stored. Otherwise it is the first recipe of ``real_judgements.py``: three folds, one epoch, the text
baseline as a member, the combiner with the smallest inner loss. That recipe was fixed before ``--split 1`` or ``2`` was
run, and after three epochs, two folds and LightGBM on split 0, where the default student was better than hard labels
and worse than the best member.

Each training and scoring is a step of the run folder, so the script can be stopped and rerun. ``--hours`` stops it by
itself, ``jobs.workers=2`` trains two students at a time, ``--table`` writes the table of the finished ones.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import yaml

from benchmarks.common import (
    argument_parser,
    best_member,
    cell,
    chosen,
    cpu_recipe,
    paragraphs,
    require,
    run_script,
    write_page,
)
from benchmarks.quality.real_battles import UKP, SplitSizes, write_split
from benchmarks.quality.students_held_out import HeldOutJob, ensemble_logits, read_logits, train_and_score
from benchmarks.quality.students_table import (
    DEFAULT,
    HARD,
    ONLY_LABELLED,
    Logits,
    over_prompts,
    pool,
    scored,
    table,
)
from ensemble.__main__ import main as ensemble_main
from ensemble.distillation.plan import plan_student
from ensemble.stacking.stage import load_inputs, read_predictions
from oof import config as configuration
from oof.__main__ import main as oof_main
from oof.common import interrupts
from oof.common.atomic_files import replacing
from oof.common.errors import UserError
from oof.common.logging_setup import quiet_libraries
from oof.metrics import row_log_loss

LABELLED = ["distill.pseudo_weight=0"]
HARD_LOSSES = "distill.losses={ce: 1, kl: 0}"
# In the order in which they run; the main comparison comes first.
RECIPES: dict[str, list[str]] = {
    DEFAULT: [],
    HARD: [HARD_LOSSES],
    ONLY_LABELLED: LABELLED,
    f"{ONLY_LABELLED}, fold-matched in-sample teacher": ["distill.teacher=fold_matched", *LABELLED],
    f"{ONLY_LABELLED}, several teachers": ["distill.teachers=members", *LABELLED],
    f"{ONLY_LABELLED}, self-distillation": ["distill.teachers=gemma3", *LABELLED],
    f"{ONLY_LABELLED}, CE + KL + cos": ["distill.losses={ce: 1, kl: 1, cosine: 1}", *LABELLED],
    **{  # T = 1 at 0.5 is CE + KL
        f"{ONLY_LABELLED}, CE + KL, T = {t}, soft weight {w}": [
            f"distill.losses={{ce: {1 - w:.1f}, kl: {w}}}",
            f"distill.temperature={t}",
            *LABELLED,
        ]
        for t in (1, 2, 5)
        for w in (0.5, 0.9)
    },
    f"{ONLY_LABELLED}, length hints in the student's template": ["distill.prompts.hints=lengths", *LABELLED],
}
FILES = {"train": "labelled", "unlabelled": "unlabelled", "test": "heldout"}


def settings(out: Path, gemma: str, smollm: str, epochs: float) -> Path:
    """Write and return the configuration."""
    tree = {
        "data": {name: [str(out / f"{file}.csv")] for name, file in FILES.items()},
        "folds": {"k": 3},
        "prompts": {"max_tokens": 104},
        "groups": {"threshold": 1.0},
        "members": {"gemma3": cpu_recipe(gemma, epochs), "smollm2": cpu_recipe(smollm, epochs)},
        "stack": {"trials": 20, "workers": 1, "final": "best", "text_member": True},
        "distill": {"student": cpu_recipe(gemma, epochs)},
    }
    with replacing(out / "ukp.yaml") as temporary:
        # Through JSON, because shared objects would become YAML aliases, which configurations refuse.
        temporary.write_text(yaml.safe_dump(json.loads(json.dumps(tree))), encoding="utf-8")
    return out / "ukp.yaml"


def stages(path: str, overrides: Sequence[str], hours: float) -> None:
    """Run stages one and two; the time limit counts from the start of stage one and applies to the students, too."""
    began = time.monotonic()
    for program, subcommand in ((oof_main, "oof"), (ensemble_main, "stack")):
        left = max(1.0, hours * 3600 - (time.monotonic() - began)) if hours else 0.0
        status = program([subcommand, path, *overrides, f"jobs.time_limit={left:.0f}"])
        if status == interrupts.EXIT_STATUS:
            raise interrupts.Stopped("a signal or the time limit")
        if status:
            raise UserError(f"{subcommand} failed; see above")


def out_of_fold(path: str, overrides: Sequence[str]) -> str:
    """Return a sentence with stage two's own out-of-fold losses on the labelled battles."""
    config = configuration.load(path, overrides)
    inputs = load_inputs(config)
    predictions = read_predictions(Path(config.run) / "stack" / "predictions.parquet", inputs.table["id"])
    losses = {name: row_log_loss(probs, inputs.labels) for name, probs in predictions.items()}
    best = best_member(losses)
    difference = cell(losses["calibrated"] - losses[best], inputs.groups, "+")
    n, prompts = len(inputs.labels), len(np.unique(inputs.groups))
    return (
        f"Out of fold on the {n:,} labelled battles of {prompts} other prompts: calibrated "
        f"{cell(losses['calibrated'], inputs.groups)}, minus {best} {difference} (intervals over the prompts)."
    )


def report(arguments: argparse.Namespace, logits: Logits) -> str:
    """Write the page to ``--report``; return its tables."""
    out = Path(arguments.out)
    splits = [scored(logits, out)]
    if len({path.resolve() for path in map(Path, [out, *arguments.pool])}) <= len(arguments.pool):
        raise UserError("--pool: a split counts once; give the --out of other splits")
    for other in map(Path, arguments.pool):
        overrides = [f"run={other / 'run'}", *arguments.overrides[1:]]
        splits.append(scored(finished(str(other / "ukp.yaml"), overrides), other))
    results = pool(splits)
    lines = table(results, chosen(arguments.only, RECIPES))
    if logits:
        lines += f"\n\n{over_prompts(results)}"
        lines += f"\n\n{out_of_fold(str(out / 'ukp.yaml'), arguments.overrides)}"
    models = f"--gemma {Path(arguments.gemma).name} --smollm {Path(arguments.smollm).name}"
    extra = f" --split {arguments.split}" if arguments.split else ""
    extra += f" --epochs {arguments.epochs:g}" if arguments.epochs != 1 else ""
    extra += f" --only {shlex.join(arguments.only)}" if arguments.only else ""
    extra += " --pool …" if arguments.pool else ""
    extra += "".join(f" {override}" for override in arguments.overrides[1:])  # the first is the run's folder
    command = f"python -m benchmarks.quality.students_on_arguments {models}{extra}"
    write_page(Path(arguments.report), "Students on real arguments", [paragraphs(__doc__, 2, 4), "", lines], command)
    return lines


def held_out_job(path: str, name: str, overrides: Sequence[str]) -> HeldOutJob:
    """Return the job of a recipe's student."""
    return HeldOutJob(plan_student(configuration.load(path, [*overrides, *RECIPES[name]])))


def finished(path: str, overrides: Sequence[str]) -> Logits:
    """Return the logits of all finished predictors."""
    done: Logits = {}
    try:
        done = ensemble_logits(configuration.load(path, overrides))
        for name in RECIPES:
            step = held_out_job(path, name, overrides).step
            done |= {name: read_logits(step)} if step.done else {}
    except UserError as error:
        print(f"not finished yet: {error}", file=sys.stderr)
    return done


def run(arguments: argparse.Namespace) -> Logits:
    """Run the recipes in their order, ``jobs.workers`` at a time; return the logits of all finished predictors."""
    from ensemble.distillation.run_teacher_jobs import run_teacher_jobs
    from oof.jobs.process_pool import run_all, run_alone

    recipes = chosen(arguments.only, RECIPES)
    out = Path(arguments.out)
    write_split(Path(arguments.data), out, SplitSizes(*arguments.sizes), arguments.split)
    path = str(settings(out, arguments.gemma, arguments.smollm, arguments.epochs))
    arguments.overrides = overrides = [f"run={out / 'run'}", *arguments.overrides]
    if arguments.table:
        return finished(path, overrides)
    try:
        stages(path, overrides, arguments.hours)
        done = finished(path, overrides)
        names = [name for name in recipes if name not in done]
        tasks = [held_out_job(path, name, overrides) for name in names]
        for task in tasks:
            run_teacher_jobs(task.plan)
        workers = configuration.load(path, overrides).jobs.workers
        run_all(partial(run_alone, train_and_score), tasks, names, workers)
    except interrupts.Stopped as stop:
        print(f"stopped by {stop}; rerun the same command to go on", file=sys.stderr)
    return finished(path, overrides)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, default=Path("data") / UKP)
    parser.add_argument("--gemma", required=True, help="folder or hub name of Gemma3-270M")
    parser.add_argument("--smollm", required=True, help="folder or hub name of SmolLM2-135M")
    parser.add_argument("--out", default="runs/ukp")
    parser.add_argument("--report", default="docs/evidence/students-on-arguments.md")
    parser.add_argument("--only", nargs="*", default=[], metavar="RECIPE", help=f"of: {'; '.join(RECIPES)}")
    parser.add_argument("--epochs", type=float, default=1.0, help="of members and students")
    parser.add_argument("--split", type=int, default=0, help="number of the split by prompt: 0, 1 …")
    parser.add_argument("--pool", nargs="*", default=[], metavar="OUT", help="the --out of other splits to pool")
    parser.add_argument("--hours", type=float, default=0.0, help="stop in good order after this time; 0 = never")
    parser.add_argument("--table", action="store_true", help="run nothing, write the table of finished recipes")
    parser.add_argument("--sizes", type=_numbers, default=[], help="labelled,unlabelled,held_out,characters")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    arguments = parser.parse_args()
    quiet_libraries()
    interrupts.install()
    require([arguments.data], "--data")
    print(report(arguments, run(arguments)))


if __name__ == "__main__":
    run_script(main)
