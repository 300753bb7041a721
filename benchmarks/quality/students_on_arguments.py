"""Distillation on real battles with small pre-trained models: which recipe makes the best student.

    python -m benchmarks.quality.students_on_arguments --gemma models/gemma3-270m --smollm models/smollm2-135m [--hours 1]

UKPConvArg1: pairs of human-written arguments, one prompt a debate, verdicts A, B or undecided. Split by prompt:
1,000 labelled battles (stage one: SmolLM2-135M beside Gemma3-270M; stage two), 1,000 unlabelled ones, and at least
1,000 of prompts that nothing has seen; ``--split 0``, ``1`` and ``2`` hold out different prompts. For each recipe one
Gemma3-270M student is trained on everything and scored on the held-out battles. Every predictor gets its temperature by
the same two-fold cross-fitting over held-out prompts, so that calibration does not decide. Losses are compared on the
labelled battles alone. Length hints are for the student only: members that read them too would need a second stage one.

What is cut so that a CPU can do it: the battles with the shortest texts, a prompt of title and stance, 104 tokens,
adapters of rank 16 in the upper half of the layers, one order of each battle an epoch; what the frozen lower half makes
of a text is stored. Otherwise it is what ``quality.py`` began with: three folds, one epoch, the text baseline as a
member, the combiner with the smallest inner loss. That recipe was set before ``--split 1`` or
``2`` was run, and after three epochs, two folds and LightGBM on split 0 (results-distill-ukp-3-epochs.md), where the
default student was better than hard labels and worse than the best member.

Unattended and in pieces: each training and scoring is a step of the run folder. Stop it anywhere, run it again, and it
goes on; ``--hours`` stops by itself, ``jobs.workers=2`` trains two at a time, ``--table`` shows what is done so far.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from benchmarks.common import cell, made
from benchmarks.quality.arguments import Sizes, recipe, split
from benchmarks.quality.students_on_demo import with_hints
from benchmarks.quality.students_table import (
    DEFAULT,
    HARD,
    ONLY_LABELLED,
    Logits,
    best_member,
    over_prompts,
    pool,
    scored,
    table,
)
from ensemble.__main__ import main as ensemble_main
from ensemble.distillation.plan import FINAL, StudentPlan, plan_student
from ensemble.features.design_matrix import with_counts
from ensemble.stacking.stage import load_ensemble, load_inputs, read_predictions
from oof import config as configuration
from oof.__main__ import main as oof_main
from oof.common import interrupts
from oof.common.atomic_files import read_parquet, replacing, write_parquet
from oof.common.digests import digest
from oof.common.errors import UserError
from oof.common.logging_setup import quiet_libraries
from oof.common.logits_format import LOGIT_COLUMNS, logits_frame, logits_of
from oof.common.steps import Step
from oof.config import Config
from oof.jobs import fold_job
from oof.jobs.cache_keys import battles_key
from oof.jobs.dataset import load_battles, read_test
from oof.metrics import row_log_loss

LABELLED = ["distill.pseudo_weight=0"]
HARD_LOSSES = "distill.losses={ce: 1, kl: 0}"
HINTS = f"{ONLY_LABELLED}, length hints in the student's template"
# In the order in which they run: what is to hold comes first.
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
    HINTS: LABELLED,
}
FILES = {"train": "labelled", "unlabelled": "unlabelled", "test": "heldout"}


def settings(out: Path, gemma: str, smollm: str, epochs: float) -> Path:
    """Write and return the configuration."""
    tree = {
        "data": {name: [str(out / f"{file}.csv")] for name, file in FILES.items()},
        "folds": {"k": 3},
        "prompts": {"max_tokens": 104},
        "groups": {"threshold": 1.0},
        "members": {"gemma3": recipe(gemma, epochs), "smollm2": recipe(smollm, epochs)},
        "stack": {"trials": 20, "workers": 1, "final": "best", "text_member": True},
        "distill": {"student": recipe(gemma, epochs)},
    }
    with replacing(out / "ukp.yaml") as temporary:
        # By way of JSON: shared objects would become aliases, which configurations refuse.
        temporary.write_text(yaml.safe_dump(json.loads(json.dumps(tree))), encoding="utf-8")
    return out / "ukp.yaml"


def stages(path: str, overrides: Sequence[str], hours: float) -> None:
    """Run stages one and two; the time limit counts from the first one's start, and stays for what comes after."""
    began = time.monotonic()
    for program, verb in ((oof_main, "oof"), (ensemble_main, "stack")):
        left = max(1.0, hours * 3600 - (time.monotonic() - began)) if hours else 0.0
        status = program([verb, path, *overrides, f"jobs.time_limit={left:.0f}"])
        if status == interrupts.EXIT_STATUS:
            raise interrupts.Stopped("a signal or the time limit")
        if status:
            raise UserError(f"{verb} failed; see above")


@dataclass(frozen=True)
class HeldOut:
    """Train a recipe's final student and score the held-out battles with it."""

    plan: StudentPlan

    @property
    def step(self) -> Step:
        folder = Path(self.plan.config.run) / "students" / self.plan.key[:12]
        return Step(folder / "heldout", digest(self.plan.key, FINAL))


def train_and_score(task: HeldOut) -> None:
    """Store (n, 2, 3) logits of the held-out battles, read in both orders."""
    from ensemble.distillation.train import StudentJob, run_job
    from oof.jobs.run_fold_job import Texts
    from oof.model.classifier import load_classifier

    config, step = task.plan.config, task.step
    job = StudentJob(task.plan, step.folder.parent, FINAL)
    if not job.step.done:
        run_job(job)
    test = read_test(config)
    texts = Texts(config.distill.student, test, config)
    model = load_classifier(texts.member, job.folder / "adapter", texts.tokenizer, seed=0)
    logits = texts.logits(model, np.arange(test.height), "held out", job.folder.with_name("partial"))
    step.clear()
    write_parquet(step.folder / "logits.parquet", logits_frame(test["id"], logits, -1))
    step.finish()


def read_logits(step: Step) -> NDArray[np.float64]:
    frame = read_parquet(step.folder / "logits.parquet")
    return mean_of_orders(frame.select(LOGIT_COLUMNS).to_numpy().reshape(-1, 2, 3))


def mean_of_orders(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.asarray(logits.astype(np.float64).mean(axis=1))


def ensemble_logits(config: Config) -> Logits:
    """Return the logits of the calibrated ensemble, of each member's fold average and of each fold job by itself."""
    test = read_test(config)
    jobs = fold_job.fold_jobs(config, load_battles(Path(config.run)))
    frames = fold_job.test_frames(jobs, test)
    if frames is None:
        raise UserError("the members' held-out logits are missing; run the script again")
    members = {name: logits_of(frame) for name, frame in frames.items()}
    _, result = load_ensemble(config)
    read = with_counts(test, frames[next(iter(config.members))])
    calibrated = np.log(np.maximum(result.predict(result.design(read, members)), 1e-12))
    average = {f"member {name}": mean_of_orders(z) for name, z in members.items()}
    alone: Logits = {}
    for name, folds in fold_job.by_member(jobs).items():
        folder = fold_job.test_step(folds, battles_key(test)).folder
        for job in folds:
            frame = read_parquet(folder / f"fold-{job.fold}.parquet")
            alone[f"{name}, fold job {job.fold} alone"] = mean_of_orders(logits_of(frame))
    return {"calibrated": calibrated, **average, **alone}


def out_of_fold(path: str, overrides: Sequence[str]) -> str:
    """Return a sentence about the labelled battles: what stage two says of itself, over other prompts."""
    config = configuration.load(path, overrides)
    inputs = load_inputs(config)
    known = read_predictions(Path(config.run) / "stack" / "predictions.parquet", inputs.table["id"])
    losses = {name: row_log_loss(probs, inputs.labels) for name, probs in known.items()}
    best = best_member(losses)
    apart = cell(losses["calibrated"] - losses[best], inputs.groups, "+")
    n, prompts = len(inputs.labels), len(np.unique(inputs.groups))
    return (
        f"Out of fold on the {n:,} labelled battles, of {prompts} other prompts: "
        f"calibrated {cell(losses['calibrated'], inputs.groups)}, minus {best} {apart} (intervals over the prompts)."
    )


def report(arguments: argparse.Namespace, logits: Logits) -> str:
    """Write the table, below the command that makes it, to ``--report``; return the table."""
    out = Path(arguments.out)
    parts = [scored(logits, out)]
    if len({path.resolve() for path in map(Path, [out, *arguments.pool])}) <= len(arguments.pool):
        raise UserError("--pool: a split counts once; give the --out of other splits")
    for other in map(Path, arguments.pool):
        overrides = [f"run={other / 'run'}", *arguments.overrides[1:]]
        parts.append(scored(finished(str(other / "ukp.yaml"), overrides), other))
    results = pool(parts)
    lines = table(results, arguments.only or list(RECIPES))
    if logits:
        lines += f"\n\n{over_prompts(results)}"
        lines += f"\n\n{out_of_fold(str(out / 'ukp.yaml'), arguments.overrides)}"
    models = f"--gemma {Path(arguments.gemma).name} --smollm {Path(arguments.smollm).name}"
    extra = f" --split {arguments.split}" if arguments.split else ""
    extra += f" --epochs {arguments.epochs:g}" if arguments.epochs != 1 else ""
    extra += f" --only {shlex.join(arguments.only)}" if arguments.only else ""
    extra += " --pool …" if arguments.pool else ""
    extra += "".join(f" {override}" for override in arguments.overrides[1:])  # the first is the run's folder
    body = [
        "# Distillation on UKPConvArg1: which recipe makes the best student",
        "",
        f"{made()} by `python -m benchmarks.quality.students_on_arguments {models}{extra}`.",
        "",
        "\n\n".join((__doc__ or "").split("\n\n")[2:4]),  # what is split, and what is cut
        "",
        lines,
    ]
    with replacing(Path(arguments.report)) as temporary:
        temporary.write_text("\n".join(body) + "\n", encoding="utf-8")
    return lines


def planned(path: str, name: str, overrides: Sequence[str]) -> StudentPlan:
    """Return the plan of a recipe's student; its teacher reads no hints, whatever the student reads."""
    return plan_student(configuration.load(path, [*overrides, *RECIPES[name]]))


def task_of(name: str, plan: StudentPlan) -> HeldOut:
    return HeldOut(with_hints(plan) if name == HINTS else plan)


def finished(path: str, overrides: Sequence[str]) -> Logits:
    """Return the logits of all that is done."""
    done: Logits = {}
    try:
        done = ensemble_logits(configuration.load(path, overrides))
        for name in RECIPES:
            step = task_of(name, planned(path, name, overrides)).step
            done |= {name: read_logits(step)} if step.done else {}
    except UserError as error:
        print(f"not done yet: {error}", file=sys.stderr)
    return done


def run(arguments: argparse.Namespace) -> Logits:
    """Do the recipes in their order, as many at a time as jobs.workers says; return the logits of all that is done."""
    from ensemble.distillation.teacher_jobs import prepare_teacher
    from oof.jobs.process_pool import run_all, run_alone

    unknown = [name for name in arguments.only if name not in RECIPES]
    if unknown:
        raise UserError(f"no recipe {unknown[0]!r}; there are: {'; '.join(RECIPES)}")
    out = Path(arguments.out)
    split(Path(arguments.data), out, Sizes(*arguments.sizes), arguments.split)
    path = str(settings(out, arguments.gemma, arguments.smollm, arguments.epochs))
    arguments.overrides = overrides = [f"run={out / 'run'}", *arguments.overrides]
    if arguments.table:
        return finished(path, overrides)
    try:
        stages(path, overrides, arguments.hours)
        done = finished(path, overrides)
        names = [name for name in arguments.only or RECIPES if name not in done]
        plans = {name: planned(path, name, overrides) for name in names}
        for plan in plans.values():
            prepare_teacher(plan)
        tasks = [task_of(name, plan) for name, plan in plans.items()]
        workers = configuration.load(path, overrides).jobs.workers
        run_all(partial(run_alone, train_and_score), tasks, names, workers)
    except interrupts.Stopped as stop:
        print(f"stopped by {stop}; run the same command again to go on", file=sys.stderr)
    return finished(path, overrides)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", default="../shared/data/ukpconvarg1_dev.csv")
    parser.add_argument("--gemma", required=True, help="folder or hub name of Gemma3-270M")
    parser.add_argument("--smollm", required=True, help="folder or hub name of SmolLM2-135M")
    parser.add_argument("--out", default="runs/ukp")
    parser.add_argument("--report", default="docs/results-distill-ukp.md")
    parser.add_argument("--only", nargs="*", default=[], metavar="RECIPE", help=f"of: {'; '.join(RECIPES)}")
    parser.add_argument("--epochs", type=float, default=1.0, help="of members and students")
    parser.add_argument("--split", type=int, default=0, help="0, 1 ...: which prompts are held out")
    parser.add_argument("--pool", nargs="*", default=[], metavar="OUT", help="other splits' --out: one table of all")
    parser.add_argument("--hours", type=float, default=0.0, help="stop in good order after this time; 0 = never")
    parser.add_argument("--table", action="store_true", help="run nothing, write the table of what is done")
    parser.add_argument("--sizes", type=_numbers, default=[], help="labelled,unlabelled,held_out,characters")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    arguments = parser.parse_args()
    quiet_libraries()
    interrupts.install()
    if not Path(arguments.data).is_file():
        print(f"error: {arguments.data}: no such file; give --data", file=sys.stderr)
        return 2
    try:
        print(report(arguments, run(arguments)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
