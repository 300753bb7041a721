"""Effect of bringing fold jobs to one scale on the combiners, where the jobs differ and where they do not.

    python -m benchmarks.quality.fold_job_scales               # writes docs/evidence/fold-job-scales.md in 10 minutes
    python -m benchmarks.quality.fold_job_scales --seeds 2 --battles 500 --out runs/scales.md

Arenas of 2,000 battles with two members in five folds: quality as in ``benchmarks/speed/synthetic_arena.py``, and
groups of battles in which quality and ties vary more or less ("deviation of groups"), as between debates. In each fold
job the margins and the tie logits are multiplied by log-normal factors and the tie logits shifted, all with the
standard deviation "of jobs". A cell is the mean over the seeds of the change of the cross-fitted log loss in nats, with
its standard error over the seeds: of scaling as the stack does, and in brackets of full scaling, without regard to
noise. LightGBM has the first parameters of a study and 25 rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.common import argument_parser, paragraphs, run_script, write_page
from benchmarks.speed.synthetic_arena import battles, probabilities
from ensemble.features.battle_features import text_features
from ensemble.features.design_matrix import Design, design_of
from ensemble.stacking.combiners import COMBINERS
from ensemble.stacking.job_scales import JobScale, JobScales, fit_job_scales
from ensemble.stacking.lightgbm_stacker import Stacker
from ensemble.stacking.tuning import first_parameters
from oof.metrics import log_loss, mean_of_orders, softmax

FOLDS = 5
SETTINGS = ((1400, 0.0, 0.0), (1400, 0.0, 0.1), (1400, 0.0, 0.3), (40, 0.4, 0.0), (40, 0.4, 0.3), (16, 0.4, 0.0))
KINDS = ("log_pool", "logistic", "lightgbm")


@dataclass(frozen=True)
class Jobs:
    """Logits of fold jobs, (n, 2, 3) of each member, with (n,) labels, folds and groups."""

    logits: dict[str, NDArray[np.float64]]
    labels: NDArray[np.int64]
    folds: NDArray[np.int64]
    groups: NDArray[np.int64]


def make_jobs(n: int, n_groups: int, spread: float, jobs: float, seed: int) -> Jobs:
    rng = np.random.default_rng(seed)
    groups = rng.integers(n_groups, size=n)
    quality = rng.normal(0, 1.5, n) * np.exp(rng.normal(0, spread, n_groups))[groups]
    width = np.maximum(0.8 + 0.5 * rng.normal(0, spread, n_groups)[groups], 0.1)
    truth = probabilities(quality, width)
    labels = (rng.random(n)[:, None] > truth.cumsum(axis=1)[:, :2]).sum(axis=1)
    folds = rng.permutation(n_groups)[groups] % FOLDS
    shared, logits = rng.normal(0, 0.5, n), {}
    for name, noise, temperature in (("one", 0.6, 1.0), ("two", 0.9, 0.5)):
        perceived = quality + shared + rng.normal(0, noise, n)
        orders = [np.log(probabilities(perceived + rng.normal(0, 0.4, n), width)) / temperature for _ in range(2)]
        logits[name] = np.stack(orders, axis=1)
        for fold in range(FOLDS):
            rows, (margin, tie, shift) = folds == fold, jobs * rng.normal(size=3)
            logits[name][rows] = JobScale(np.exp(margin), np.exp(tie), shift).apply(logits[name][rows])
    return Jobs(logits, labels, folds, groups)


def full_scales(jobs: Jobs) -> JobScales:
    """Return constants that make the jobs' statistics equal."""
    members = {}
    for name, values in jobs.logits.items():
        of_jobs = [mean_of_orders(values[jobs.folds == fold]) for fold in range(FOLDS)]
        margins = np.array([np.sqrt(np.mean((z[:, 0] - z[:, 1]) ** 2)) for z in of_jobs])
        ties = [z[:, 2] - z.mean(axis=1) for z in of_jobs]
        spread, centre = (np.array([getattr(tie, statistic)() for tie in ties]) for statistic in ("std", "mean"))
        margin, tie = (np.exp(np.log(x).mean()) / x for x in (margins, spread))
        shift = centre.mean() - tie * centre
        members[name] = {k: JobScale(*row) for k, row in enumerate(np.column_stack([margin, tie, shift]).tolist())}
    return JobScales(members)


def losses(jobs: Jobs, scales: JobScales, features: tuple[pl.DataFrame, dict[str, str]]) -> list[float]:
    """Return the cross-fitted log loss of each of ``KINDS``."""
    n = len(jobs.labels)
    ids = [str(i) for i in range(n)]
    design = design_of(ids, *features, scales.out_of_fold(jobs.logits, jobs.folds))
    logits = {kind: np.empty((n, 3)) for kind in KINDS}
    for fold in range(FOLDS):
        rest, held = np.flatnonzero(jobs.folds != fold), np.flatnonzero(jobs.folds == fold)
        for kind, values in logits.items():
            values[held] = _fitted(kind, design.take(rest), jobs.labels[rest], design.take(held))
    return [log_loss(softmax(values), jobs.labels) for values in logits.values()]


def _fitted(kind: str, train: Design, labels: NDArray[np.int64], unseen: Design) -> NDArray[np.float64]:
    if kind == "lightgbm":
        return Stacker.fit(train, labels, first_parameters(len(labels)), 25, 0).logits(unseen)
    return COMBINERS[kind].fit(train, labels).logits(unseen)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--battles", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("docs/evidence/fold-job-scales.md"))
    arguments = parser.parse_args()
    n = arguments.battles
    features = text_features(battles(n).with_columns(id=pl.Series([str(i) for i in range(n)])))
    lines = [
        "| number of groups | deviation of groups | of jobs | " + " | ".join(KINDS) + " |",
        "|---|---|---|" + "---|" * len(KINDS),
    ]
    for setting in SETTINGS:
        changes = np.empty((arguments.seeds, 2, len(KINDS)))
        for seed in range(arguments.seeds):
            jobs = make_jobs(n, *setting, seed)
            before = np.array(losses(jobs, JobScales(), features))
            ours = fit_job_scales(jobs.logits, jobs.folds, jobs.groups)
            for i, scales in enumerate((ours, full_scales(jobs))):
                changes[seed, i] = losses(jobs, scales, features) - before
        mean, error = changes.mean(axis=0), changes.std(axis=0, ddof=1) / np.sqrt(arguments.seeds)
        cells = [f"{m:+.4f} ± {e:.4f} ({full:+.4f})" for m, e, full in zip(mean[0], error[0], mean[1], strict=True)]
        lines.append("| " + " | ".join([*map(str, setting), *cells]) + " |")
        print(lines[-1], flush=True)
    print(write_page(arguments.out, "Fold jobs on one scale", [paragraphs(__doc__, 2), "", *lines]))


if __name__ == "__main__":
    run_script(main)
