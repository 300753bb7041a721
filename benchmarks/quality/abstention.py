"""Abstention: how often is the error above its level, and how much is answered, beside a naive threshold.

    python -m benchmarks.quality.abstention --data DIR      # writes docs/evidence/abstention.md
    python -m benchmarks.quality.abstention --data DIR --repeats 5 --groups 2000 --out runs/abstention.md

Thresholds are chosen on calibration battles at levels of error of 5, 10, 20 and 30 %, with a guarantee of 90 %
(`ensemble/abstention/thresholds.py`). The naive threshold is the smallest whose error rate on the same battles is at
most the level. "Above" is the share of repetitions in which the error is above the level: at most 10 % is promised.
"Error" is the mean over the repetitions in which anything is answered.

A simulation has groups of unequal size, 1 to 80 battles; battles of large groups are harder, and battles of one group
share a part of their luck. The true error and share answered are those of a random battle of a random group of the
population. "By battle" counts battles equally instead, which is not promised.

Real logits: battles of the LMSYS competition with the probabilities of one model that is not ours. A random half is for
calibration, its temperature included; error and share answered are those of the other half, which has noise of its own.
No texts are known, so each battle is a group.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.common import argument_parser, paragraphs, require, run_script, write_page
from benchmarks.quality.choice_settings import KING
from benchmarks.quality.grouped_population import Population
from ensemble.abstention.observed import Observed
from ensemble.abstention.thresholds import calibrate
from ensemble.distillation.plan import cross_fitted_temperature
from ensemble.stacking.calibration import shrunk_temperature
from oof.classes import CLASSES
from oof.metrics import softmax

LEVELS = (0.05, 0.10, 0.20, 0.30)
SIZES = (100, 300, 1_000, 3_000, 10_000)
JUDGES = {"calibrated": (2.0, 1.0), "surer, calibrated": (4.0, 1.0), "overconfident": (2.0, 1.3)}
REPEATS, FOLDS = 200, 5
OURS, NAIVE = 0, 1
Choice = tuple[float | None, float | None]  # thresholds: ours and the naive one


def choose(probs: NDArray[np.float64], labels: NDArray[np.int64], groups: NDArray[np.int64], seed: int) -> list[Choice]:
    """Return both thresholds of each level."""
    thresholds, observed = calibrate(probs, labels, groups, seed), Observed.of(probs, labels, groups)
    return [(thresholds.at(level), observed.naive_threshold(level)) for level in LEVELS]


def results(repeats: int, once: Callable[[int], tuple[list[Choice], list[Observed]]]) -> NDArray[np.float64]:
    """Return (repeats, levels, 2 thresholds, ways to count, 2): share answered and error of each repetition."""
    rows = []
    for seed in range(repeats):
        choices, judged = once(seed)
        rows.append([[[observed.at(chosen) for observed in judged] for chosen in pair] for pair in choices])
    return np.array(rows)


def simulation(population: Population, n: int, repeats: int) -> NDArray[np.float64]:
    """Return the results of resamplings of n battles by groups; ways to count: by group, by battle."""
    by_battle = Observed.of(population.probs, population.labels, np.arange(len(population.labels)))

    def once(seed: int) -> tuple[list[Choice], list[Observed]]:
        rows, groups = population.sample(n, np.random.default_rng([n, seed]))
        chosen = choose(population.probs[rows], population.labels[rows], groups, seed)
        return chosen, [population.truth, by_battle]

    return results(repeats, once)


def real_halves(path: Path, member: str, repeats: int) -> NDArray[np.float64]:
    """Return the results of random halves of real battles."""
    frame = pl.read_csv(path)
    logits = np.log(np.maximum(frame.select(f"{member}_{c}" for c in CLASSES).to_numpy(), 1e-6))
    labels = frame["label"].to_numpy().astype(np.int64)
    names, n = np.arange(len(labels)), len(labels) // 2

    def once(seed: int) -> tuple[list[Choice], list[Observed]]:
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(labels))
        half, other = order[:n], order[n:]
        folds = rng.permutation(n) % FOLDS
        probs, _ = cross_fitted_temperature(logits[half], labels[half], folds, names[half])
        temperature = shrunk_temperature(logits[half], labels[half], names[half])
        held_out = Observed.of(softmax(logits[other] / temperature), labels[other], names[other])
        return choose(probs, labels[half], names[half], seed), [held_out]

    return results(repeats, once)


def table_rows(name: str, outcome: NDArray[np.float64], by_battle: bool) -> list[str]:
    """Return a line of Markdown for each level."""
    lines = []
    for i, level in enumerate(LEVELS):
        answered, error = outcome[:, i, :, :, 0].mean(axis=0), outcome[:, i, :, :, 1]
        above = (error > level).mean(axis=0)
        cells = [f"{level:.0%}"]
        for j in (OURS, NAIVE):
            cells += [f"{above[j, 0]:.1%}", f"{answered[j, 0]:.1%}", _mean_error(outcome[:, i, j, 0])]
        cells += [f"{above[OURS, 1]:.1%}"] if by_battle else []
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _mean_error(rows: NDArray[np.float64]) -> str:
    """Return the mean error of the (repeats, 2) rows that answered something."""
    answered = rows[rows[:, 0] > 0]
    return f"{answered[:, 1].mean():.1%}" if len(answered) else "-"


HEAD = "| {} | level | ours: above | answered | error | naive: above | answered | error |"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help=f"folder of {KING}")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--groups", type=int, default=60_000, help="of the population")
    parser.add_argument("--member", default="king2", help="model of the real logits")
    parser.add_argument("--out", type=Path, default=Path("docs/evidence/abstention.md"))
    arguments = parser.parse_args()
    require([arguments.data / KING], "--data")
    lines = [paragraphs(__doc__, 2, 3), "", f"{arguments.repeats} repetitions each.", ""]
    lines += ["## Simulation", "", paragraphs(__doc__, 3, 4), ""]
    for name, (spread, overconfidence) in JUDGES.items():
        population = Population.draw(arguments.groups, 7, spread, overconfidence)
        lines += [f"Judge: {name}; wrong in {population.truth.error[-1]:.1%} of all battles.", ""]
        lines += [f"{HEAD.format('battles')} ours by battle: above |", "|---" * 9 + "|"]
        for n in SIZES:
            lines += table_rows(f"{n:,}", simulation(population, n, arguments.repeats), by_battle=True)
        lines.append("")
    lines += ["## Real logits", "", paragraphs(__doc__, 4, 5), "", HEAD.format("calibration battles"), "|---" * 8 + "|"]
    outcome = real_halves(arguments.data / KING, arguments.member, arguments.repeats)
    lines += table_rows("half", outcome, by_battle=False)
    print(write_page(arguments.out, "Abstention at a level of error", lines))


if __name__ == "__main__":
    run_script(main)
