"""Which final student: one more, trained on everything, or the fold students' average.

    python -m benchmarks.quality.students_on_demo --only default && python -m benchmarks.quality.final_student     # a minute more

Neither can be scored on battles that it was trained on, so both read the synthetic arena's test battles, whose true
class probabilities are known: the expected log loss under the truth has no noise of drawn verdicts. Both use the fold
students' temperature. Also shown: the average of the fold students' *logits*, K models that the average stands in for.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble.distillation.plan import FINAL, plan_student
from ensemble.stacking.calibration import fit_temperature
from ensemble.statistics.bootstrap import group_interval
from oof import config as configuration
from oof.classes import WINNER_COLUMNS
from oof.common.errors import UserError
from oof.common.logging_setup import quiet_libraries
from oof.common.steps import locked
from oof.jobs.dataset import read_test
from oof.metrics import log_softmax


def test_logits(path: str, overrides: list[str]) -> tuple[dict[str, NDArray[np.float64]], pl.DataFrame]:
    """Return each candidate's (n, 3) mean-of-orders logits of the test battles at temperature, and the battles."""
    from ensemble.distillation.merge import fold_average
    from ensemble.distillation.train import StudentJob, fold_students, run_job
    from oof.jobs.run_fold_job import Texts
    from oof.model.classifier import device, load_classifier
    from oof.training.inference import predict_logits

    config = configuration.load(path, overrides)
    plan, test = plan_student(config), read_test(config)
    folder = Path(config.run) / "students" / "default"
    held_out = fold_students(plan, folder)
    final = StudentJob(plan, folder, FINAL)
    if not final.step.done:
        run_job(final)
    texts = Texts(config.distill.student, test, config)
    folds = [folder / f"fold-{fold}" / "adapter" for fold in range(config.folds.k)]
    models = {"all": load_classifier(texts.member, final.folder / "adapter", texts.tokenizer, seed=0)}
    models["fold_average"] = fold_average(texts.member, folds, texts.tokenizer).to(device()).eval()
    for fold, adapter in enumerate(folds):
        models[f"fold {fold}"] = load_classifier(texts.member, adapter, texts.tokenizer, seed=0)
    parts = texts.scoring, texts.tokenizer.pad_token_id
    temperature = fit_temperature(held_out.mean(axis=1), plan.inputs.labels)
    logits = {
        name: predict_logits(model, texts.member, *parts, name).mean(axis=1).astype(np.float64) / temperature
        for name, model in models.items()
    }
    average = np.mean([logits.pop(f"fold {fold}") for fold in range(config.folds.k)], axis=0)
    return {**logits, "average of the fold students' logits": average}, test


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--run", default="runs/demo")
    arguments = parser.parse_args()
    quiet_libraries()
    try:
        with locked(Path(arguments.run)):
            logits, test = test_logits(arguments.config, [f"run={arguments.run}"])
        truth = pl.read_csv(Path(arguments.run) / "synth" / "truth.csv", schema_overrides={"id": pl.String})
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    probs = test.select("id").join(truth, on="id", how="left", maintain_order="left").select(WINNER_COLUMNS).to_numpy()
    losses = {name: -(probs * log_softmax(z)).sum(axis=1) for name, z in logits.items()}
    losses["bayes"] = -(probs * np.log(np.maximum(probs, 1e-15))).sum(axis=1)
    _, prompts = np.unique([turns[0] for turns in test["prompt"].to_list()], return_inverse=True)
    print(f"{test.height} test battles, expected log loss under the true probabilities, 95 % intervals over prompts\n")
    print("| final student | log loss | minus `all` |\n|---|---|---|")
    for name, loss in losses.items():
        row, apart = (group_interval(values, prompts, seed=0) for values in (loss, loss - losses["all"]))
        less = f"{apart['value']:+.4f} [{apart['low']:+.4f}, {apart['high']:+.4f}]" if name != "all" else ""
        print(f"| {name} | {row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}] | {less} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
