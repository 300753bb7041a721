"""Comparison of two final students: one trained on all battles, and the average of the fold students' weights.

    python -m benchmarks.quality.final_student        # after "make demo"; writes docs/evidence/final-student.md

Neither can be scored on battles that it was trained on. So both score the synthetic arena's test battles, whose true
class probabilities are known: the expected log loss under the truth is free of the noise of drawn verdicts. The average
is shown at its own temperature, as it is exported, and at the fold students', which all others use. A further row is
the average of the K fold students' *logits*, which the average of weights approximates with one model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.common import add_run_arguments, argument_parser, cell, paragraphs, require, run_script, write_page
from benchmarks.quality.students_runs import students_step
from ensemble.distillation.plan import FINAL, plan_student
from ensemble.stacking.calibration import shrunk_temperature
from oof import config as configuration
from oof.classes import WINNER_COLUMNS
from oof.common.logging_setup import quiet_libraries
from oof.common.steps import locked
from oof.jobs.dataset import read_test
from oof.metrics import log_softmax


def test_logits(path: str, overrides: list[str]) -> tuple[dict[str, NDArray[np.float64]], pl.DataFrame]:
    """Return each candidate's (n, 3) logits of the test battles, averaged over orders and calibrated; the battles."""
    from ensemble.distillation.average_temperature import average_temperature
    from ensemble.distillation.merge import fold_average
    from ensemble.distillation.train import StudentJob, run_student_job, train_fold_students
    from oof.jobs.encoded_battles import EncodedBattles
    from oof.model.classifier import load_classifier
    from oof.model.precision import device
    from oof.training.inference import predict_logits

    config = configuration.load(path, overrides)
    plan, test = plan_student(config), read_test(config)
    folder = students_step(plan).folder
    held_out = train_fold_students(plan, folder)
    final = StudentJob(plan, folder, FINAL)
    if not final.step.done:
        run_student_job(final)
    texts = EncodedBattles(config.distill.student, test, config.for_student())
    folds = [folder / f"fold-{fold}" / "adapter" for fold in range(config.folds.k)]
    models = {"all": load_classifier(texts.member, final.folder / "adapter", texts.tokenizer, seed=0)}
    models["fold_average"] = fold_average(texts.member, folds, texts.tokenizer).to(device()).eval()
    for fold, adapter in enumerate(folds):
        models[f"fold {fold}"] = load_classifier(texts.member, adapter, texts.tokenizer, seed=0)
    pad_id = texts.tokenizer.pad_token_id
    temperature = shrunk_temperature(held_out.mean(axis=1), plan.inputs.labels, plan.inputs.groups)
    logits = {
        name: predict_logits(model, texts.member, texts.scoring, pad_id, name).mean(axis=1).astype(float) / temperature
        for name, model in models.items()
    }
    own = average_temperature(plan, models["fold_average"], held_out, temperature, folder / "partial")
    uncorrected = "fold_average at the fold students' temperature"
    logits |= {uncorrected: logits["fold_average"], "fold_average": logits["fold_average"] * temperature / own}
    average = np.mean([logits.pop(f"fold {fold}") for fold in range(config.folds.k)], axis=0)
    return {**logits, "average of the fold students' logits": average}, test


def main() -> None:
    parser = argument_parser(__doc__)
    add_run_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("docs/evidence/final-student.md"))
    arguments = parser.parse_args()
    quiet_libraries()
    truth_path = Path(arguments.run) / "synth" / "truth.csv"
    require([truth_path], "--run of a run on the synthetic arena")
    with locked(Path(arguments.run)):
        logits, test = test_logits(arguments.config, [f"run={arguments.run}"])
    truth = pl.read_csv(truth_path, schema_overrides={"id": pl.String})
    probs = test.select("id").join(truth, on="id", how="left", maintain_order="left").select(WINNER_COLUMNS).to_numpy()
    losses = {name: -(probs * log_softmax(z)).sum(axis=1) for name, z in logits.items()}
    losses["best possible"] = -(probs * np.log(np.maximum(probs, 1e-15))).sum(axis=1)
    _, prompts = np.unique([turns[0] for turns in test["prompt"].to_list()], return_inverse=True)
    lines = [f"{test.height} test battles, 95 % intervals over prompts.", ""]
    lines += ["| final student | log loss | minus `all` |", "|---|---|---|"]
    for name, loss in losses.items():
        difference = cell(loss - losses["all"], prompts, "+") if name != "all" else ""
        lines.append(f"| {name} | {cell(loss, prompts)} | {difference} |")
    print(write_page(arguments.out, "The final student", [paragraphs(__doc__, 2), "", *lines]))


if __name__ == "__main__":
    run_script(main)
