"""Distillation on real battles with small pre-trained models: which recipe makes the best student.

    python benchmarks/distill.py --data ../shared/data/ukpconvarg1_dev.csv --gemma /models/gemma3-270m \\
        --smollm /models/smollm2-135m --out runs/ukp [--only default "hard labels only"] [--hours 1]

UKPConvArg1: pairs of human-written arguments in 16 debates, verdicts A or B. One split by prompt: 1,000 labelled
battles (stage one: SmolLM2-135M beside Gemma3-270M, 3 folds; stage two), 1,000 unlabelled ones, and at least 1,000 of
prompts that nothing has seen. For each recipe one Gemma3-270M student is trained on all labelled battles and scored
on the held-out ones. Every predictor gets its temperature by the same two-fold cross-fitting over held-out prompts, so
that calibration does not decide. Each piece of work is a step of the run: stop it, run it again, and it goes on;
``--hours`` stops before the next piece. Prints a Markdown table of what is done. About 15 minutes a recipe on two
cores, and 2 hours for stage one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from ensemble import stack
from ensemble.__main__ import main as ensemble_main
from ensemble.distill import FINAL, cross_fitted_temperature, plan_student
from oof import config as configuration
from oof import fold_jobs, store
from oof.__main__ import main as oof_main
from oof.battles import read_file
from oof.config import Config
from oof.dataset import load_battles, read_test
from oof.errors import UserError
from oof.log import quiet_libraries
from oof.metrics import group_interval, row_log_loss

HARD, DEFAULT = "hard labels only", "default"
NO_PSEUDO = "distill.pseudo_weight=0"
RECIPES: dict[str, list[str]] = {
    DEFAULT: [],
    HARD: ["distill.losses={ce: 1, kl: 0}"],
    "fold-matched in-sample teacher": ["distill.teacher=fold_matched", NO_PSEUDO],
    "OOF teacher": [NO_PSEUDO],
    "OOF + pseudo-labelled battles": [],
    "several teachers": ["distill.teachers=members"],
    "self-distillation": ["distill.teachers=gemma3"],
    "CE + KL": ["distill.losses={ce: 1, kl: 1}"],
    "CE + KL + cos": ["distill.losses={ce: 1, kl: 1, cosine: 1}"],
    **{
        f"T = {t}, soft weight {w}": [f"distill.losses={{ce: {1 - w:.1f}, kl: {w}}}", f"distill.temperature={t}"]
        for t in (1, 2, 5)
        for w in (0.5, 0.9)
    },
    "length hints": ["prompts.hints=lengths"],
}


def split(data: Path, out: Path, seed: int = 0) -> None:
    """Write labelled.csv, unlabelled.csv and heldout.csv: no prompt of the last is in the others."""
    frame = pl.read_csv(data)
    rng = np.random.default_rng(seed)
    prompts = rng.permutation(frame["prompt"].unique().sort().to_numpy())
    sizes = dict(frame.group_by("prompt").len().iter_rows())
    held: list[str] = []
    while sum(sizes[p] for p in held) < 1500:
        held.append(str(prompts[len(held)]))
    unseen = frame.filter(pl.col("prompt").is_in(held))
    seen = frame.filter(~pl.col("prompt").is_in(held)).sample(fraction=1, shuffle=True, seed=seed)
    if seen.height < 2000 or unseen.height < 1000:
        raise UserError(f"{data}: too few battles for 1,000 labelled, 1,000 unlabelled and 1,000 held out")
    for name, part in (("labelled", seen[:1000]), ("unlabelled", seen[1000:2000]), ("heldout", unseen)):
        with store.replacing(out / f"{name}.csv") as temporary:
            part.write_csv(temporary)


def settings(out: Path, gemma: str, smollm: str) -> Path:
    """Write and return the configuration."""
    train = {"epochs": 1, "lr": 2e-4, "head_lr": 1e-3, "batch_battles": 16, "tokens_per_batch": 4096}
    recipe = {"dtype": "bfloat16", "lora": {"rank": 16, "alpha": 32, "layers": "upper_half"}, "train": train}
    tree = {
        "data": {name: [str(out / f"{file}.csv")] for name, file in FILES.items()},
        "folds": {"k": 3},
        "prompts": {"max_tokens": 512},
        "groups": {"threshold": 1.0},
        "members": {"gemma3": {"checkpoint": gemma, **recipe}, "smollm2": {"checkpoint": smollm, **recipe}},
        "stack": {"trials": 20},
        "distill": {"student": {"checkpoint": gemma, **recipe}},
    }
    with store.replacing(out / "ukp.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return out / "ukp.yaml"


FILES = {"train": "labelled", "unlabelled": "unlabelled", "test": "heldout"}


def stages(path: str, overrides: Sequence[str]) -> None:
    for program, verb in ((oof_main, "oof"), (ensemble_main, "stack")):
        if program([verb, path, *overrides]):
            raise UserError(f"{verb} failed; see above")


def student(config: Config, name: str) -> NDArray[np.float64]:
    """Return (n, 3) mean-of-orders logits of the held-out battles by a recipe's student, training it if need be."""
    plan = plan_student(config)
    folder = Path(config.run) / "students" / "".join(c if c.isalnum() else "-" for c in name)
    step = store.Step(folder / "heldout", store.digest(plan.key, FINAL))
    if not step.done:
        from ensemble.student import StudentJob, run_job
        from ensemble.teach import prepare_teacher
        from oof.jobs import Texts
        from oof.models import load_classifier
        from oof.predict import predict_logits

        prepare_teacher(plan)
        job = StudentJob(plan, folder, FINAL)
        if not job.step.done:
            run_job(job)
        test = read_test(config)
        texts = Texts(config.distill.student, test, config)
        model = load_classifier(texts.member, job.folder / "adapter", texts.tokenizer, seed=0)
        logits = predict_logits(model, texts.member, texts.scoring, texts.tokenizer.pad_token_id, name)
        step.clear()
        store.write_parquet(step.folder / "logits.parquet", store.logits_frame(test["id"], logits, -1))
        step.finish()
    frame = store.read_parquet(step.folder / "logits.parquet")
    return mean_of_orders(frame.select(store.LOGIT_COLUMNS).to_numpy().reshape(-1, 2, 3))


def mean_of_orders(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.asarray(logits.astype(np.float64).mean(axis=1))


def ensemble_logits(config: Config) -> dict[str, NDArray[np.float64]]:
    """Return the logits of the calibrated ensemble and of each member's fold average."""
    test = read_test(config)
    members = fold_jobs.test_logits(fold_jobs.fold_jobs(config, load_battles(Path(config.run))), test)
    if members is None:
        raise UserError("the members' held-out logits are missing; run the script again")
    _, result = stack.load_ensemble(config)
    calibrated = np.log(np.maximum(result.predict(stack.design_of(test, dict(members))), 1e-12))
    return {"calibrated": calibrated, **{f"member {name}": mean_of_orders(z) for name, z in members.items()}}


def table(logits: dict[str, NDArray[np.float64]], out: Path) -> str:
    """Return the Markdown table."""
    truth = read_file(out / "heldout.csv", "train").table
    labels = truth["label"].to_numpy().astype(np.int64)
    _, groups = np.unique([turns[0] for turns in truth["prompt"].to_list()], return_inverse=True)
    _, units = np.unique([turns[0] for turns in truth["response_a"].to_list()], return_inverse=True)
    losses = {n: row_log_loss(cross_fitted_temperature(z, labels, groups % 2)[0], labels) for n, z in logits.items()}
    best = min((name for name in losses if name.startswith("member")), key=lambda name: losses[name].mean())

    def cell(values: NDArray[np.float64], sign: str = "+") -> str:
        row = group_interval(values, units, seed=0)
        return f"{row['value']:{sign}.4f} [{row['low']:{sign}.4f}, {row['high']:{sign}.4f}]"

    lines = [
        f"{len(labels)} held-out battles of {groups.max() + 1} prompts; 95 % intervals over the arguments shown first, "
        "which recur (prompts are too few to resample).",
        "",
        f"| | log loss | minus calibrated | minus {best} | minus {HARD} |",
        "|---|---|---|---|---|",
    ]
    for name, loss in losses.items():
        others = [cell(loss - losses[o]) if o in losses and o != name else "" for o in ("calibrated", best, HARD)]
        lines.append(f"| {name} | {cell(loss, '')} | {' | '.join(others)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", default="../shared/data/ukpconvarg1_dev.csv")
    parser.add_argument("--gemma", required=True, help="folder or hub name of Gemma3-270M")
    parser.add_argument("--smollm", required=True, help="folder or hub name of SmolLM2-135M")
    parser.add_argument("--out", default="runs/ukp")
    parser.add_argument("--only", nargs="*", metavar="RECIPE", help=f"of: {'; '.join(RECIPES)}")
    parser.add_argument("--hours", type=float, default=1e9, help="begin no further recipe after this time")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    arguments = parser.parse_args()
    quiet_libraries()
    out, started = Path(arguments.out), time.monotonic()
    if not Path(arguments.data).is_file():
        print(f"error: {arguments.data}: no such file; give --data", file=sys.stderr)
        return 2
    try:
        split(Path(arguments.data), out)
        path = str(settings(out, arguments.gemma, arguments.smollm))
        logits: dict[str, NDArray[np.float64]] = {}
        for name in arguments.only or list(RECIPES):
            if name not in RECIPES:
                raise UserError(f"no recipe {name!r}; there are: {'; '.join(RECIPES)}")
            if time.monotonic() - started > 3600 * arguments.hours:
                break
            run = f"run={out / ('hints' if name == 'length hints' else 'run')}"  # its members read other texts
            overrides = [run, *arguments.overrides, *RECIPES[name]]
            stages(path, [o for o in overrides if not o.startswith("distill.")])
            config = configuration.load(path, overrides)
            logits = {**(logits or ensemble_logits(config)), name: student(config, name)}
        print(table(logits, out))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
