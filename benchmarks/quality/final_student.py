"""Comparison of two final students: one trained on all battles, and the average of the fold students' weights.

    python -m benchmarks.quality.students --only 'start from the member, half the epochs' --seeds 0 1 2 3 4
    python -m benchmarks.quality.final_student       # of the same --seeds and --out

Neither can be scored on battles that it was trained on. So both score the unlabelled battles of the synthetic arenas of
``benchmarks/quality/students.py``, on which these students were not trained and whose true class probabilities are
known: the expected log loss under the truth is free of the noise of drawn verdicts. The students are the demo's, which
start from a member and train for half an epoch. The average is shown at its own temperature, as it is exported, and at
the fold students', which all others use. A further row is the average of the K fold students' *logits*, which the
average of weights approximates with one model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.common import argument_parser, paragraphs, require, run_script, write_page
from benchmarks.quality.choice_page import ENOUGH_SEEDS, Outcome
from benchmarks.quality.students import ARENA_BATTLES
from benchmarks.quality.students_page import GROUPS_OF_A_PART
from benchmarks.quality.students_runs import students_step, train
from benchmarks.quality.students_settings import FROM_MEMBER_HALF, Part, arena
from ensemble.distillation.plan import FINAL, plan_student
from ensemble.stacking.calibration import shrunk_temperature
from ensemble.statistics.interval_words import in_words
from oof import config as configuration
from oof.classes import WINNER_COLUMNS
from oof.common.logging_setup import quiet_libraries
from oof.common.steps import locked
from oof.jobs.dataset import load_battles
from oof.metrics import log_softmax

ALL, AVERAGE = "all", "fold_average"


def students_logits(settings: list[str], battles: pl.DataFrame) -> dict[str, NDArray[np.float64]]:
    """Return each final student's (n, 3) logits of battles, averaged over orders and calibrated."""
    from ensemble.distillation.average_temperature import average_temperature
    from ensemble.distillation.merge import fold_average
    from ensemble.distillation.train import StudentJob, run_student_job, train_students
    from oof.jobs.encoded_battles import EncodedBattles
    from oof.model.classifier import load_classifier
    from oof.model.precision import device
    from oof.training.inference import predict_logits

    train(settings)
    config = configuration.load(settings[0], settings[1:])
    plan = plan_student(config)
    folder = students_step(plan).folder
    held_out = train_students(plan, folder, final=False)
    final = StudentJob(plan, folder, FINAL)
    if not final.step.done:
        run_student_job(final)
    texts = EncodedBattles(config.distill.student, battles, config.for_student())
    folds = [folder / f"fold-{fold}" / "adapter" for fold in range(config.folds.k)]
    models = {ALL: load_classifier(texts.member, final.folder / "adapter", texts.tokenizer, seed=0)}
    models[AVERAGE] = fold_average(texts.member, folds, texts.tokenizer).to(device()).eval()
    for fold, adapter in enumerate(folds):
        models[f"fold {fold}"] = load_classifier(texts.member, adapter, texts.tokenizer, seed=0)
    pad_id = texts.tokenizer.pad_token_id
    temperature = shrunk_temperature(held_out.mean(axis=1), plan.inputs.labels, plan.inputs.groups)
    logits = {
        name: predict_logits(model, texts.member, texts.scoring, pad_id, name).mean(axis=1).astype(float) / temperature
        for name, model in models.items()
    }
    own = average_temperature(plan, models[AVERAGE], held_out, temperature, folder / "partial")
    uncorrected = f"{AVERAGE} at the fold students' temperature"
    logits |= {uncorrected: logits[AVERAGE], AVERAGE: logits[AVERAGE] * temperature / own}
    average = np.mean([logits.pop(f"fold {fold}") for fold in range(config.folds.k)], axis=0)
    return {**logits, "average of the fold students' logits": average}


def losses_of(part: Part) -> dict[str, NDArray[np.float64]]:
    """Return each final student's (n,) expected losses on an arena's unlabelled battles, and their groups."""
    config = part.config
    run, truth_path = Path(config.run), Path(config.data.unlabelled[0]).with_name("truth.csv")
    require([run / "stack" / "manifest.json"], "--out and --seeds of a finished benchmarks.quality.students")
    with locked(run):
        battles = load_battles(run).filter(pl.col("role") == "unlabelled")
        logits = students_logits([str(part.path), *part.overrides, *part.settings[FROM_MEMBER_HALF]], battles)
    truth = pl.read_csv(truth_path, schema_overrides={"id": pl.String}).with_columns(id="unlabelled:" + pl.col("id"))
    rows = battles.select("id").join(truth, on="id", how="left", maintain_order="left", validate="1:1")
    probs = rows.select(WINNER_COLUMNS).to_numpy()
    losses = {name: -(probs * log_softmax(z)).sum(axis=1) for name, z in logits.items()}
    losses["best possible"] = -(probs * np.log(np.maximum(probs, 1e-15))).sum(axis=1)
    return losses | {"groups": battles["group"].to_numpy() + part.seed * GROUPS_OF_A_PART}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="of the arenas")
    parser.add_argument("--battles", type=int, default=ARENA_BATTLES, help="of each arena")
    parser.add_argument("--out", type=Path, default=Path("runs/students"), help="of benchmarks.quality.students")
    parser.add_argument("--write", type=Path, default=Path("docs/evidence/final-student.md"), help="the page")
    arguments = parser.parse_args()
    quiet_libraries()
    parts = [arena(arguments.out, seed, arguments.battles) for seed in arguments.seeds]
    outcome = Outcome("arena", [losses_of(part) for part in parts])
    n = sum(len(losses["groups"]) for losses in outcome.per_seed)
    over = "seeds" if len(parts) >= ENOUGH_SEEDS else "groups of near-duplicate prompts"
    lines = [f"{n:,} battles of {len(parts)} arenas, 95 % intervals over {over}.", ""]
    lines += [f"| final student | log loss | minus `{ALL}` |", "|---|---|---|"]
    for name in outcome.names():
        difference = in_words(outcome.difference(name, ALL)) if name != ALL else ""
        lines.append(f"| {name} | {outcome.mean(name):.4f} | {difference} |")
    print(write_page(arguments.write, "The final student", [paragraphs(__doc__, 2), "", *lines]))


if __name__ == "__main__":
    run_script(main)
