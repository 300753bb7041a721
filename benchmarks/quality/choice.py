"""Stage two against its own candidates and other tools, on real logits, real verdicts and synthetic arenas.

    python -m benchmarks.quality.choice --data DIR --first-seed 100            # hours; the next call does the rest
    python -m benchmarks.quality.choice --data DIR --only king2-700 tulu --contenders ours --trials 8

For each setting (``benchmarks/quality/choice_settings.py``) and seed, stage two is cross-fitted over five outer folds.
Log losses are those of the outer folds: of the default, with and without calibration; of its candidates, which are the
class shares, lengths, TF-IDF, each member as it is and with a temperature fitted on the other folds, and each combiner;
and of the rules ``best`` and ``auto``, which choose one of them, calibrated. Beside ours, on the same columns and
folds: AutoGluon with networks, given both orders of every battle and the CPU seconds that ours took, but at least
``--seconds-a-fold``; and probmetrics' structured vector and matrix scaling (SVS, SMS) of the member that is best on the
other folds. Settings of many thousand battles have fewer seeds, and AutoGluon has the first ``--peer-seeds`` ones. A
difference is over the seeds that both have. A call replaces the rows of the settings that it measured and keeps the
others; the last column says of which commit a row is.

Seeds below 100 served to develop the rule; the page reports others. Two changes were made after earlier versions of
this page: the ridge went from 0.3 to 0.05 / groups because of a test with a dozen groups, and extra trees became a
candidate, by seeds 50 to 52, because AutoGluon was ahead on PandaLM. So few groups and PandaLM are no independent
checks any more.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import (
    ResumableRows,
    argument_parser,
    chosen,
    commit,
    costed,
    paragraphs,
    require,
    run_script,
    write_page,
)
from benchmarks.peer_environment import peer_python
from benchmarks.quality.choice_page import Outcome, merged, page, row_of
from benchmarks.quality.choice_peers import Losses, autogluon_losses, probmetrics_losses
from benchmarks.quality.choice_settings import DATA_VERSION, SETTINGS, Battles
from ensemble.stacking import STACKING_VERSION
from ensemble.stacking.calibration import Calibrator
from ensemble.stacking.calibration_fit import best_log_temperature
from ensemble.stacking.cross_fit import cross_fit_rules
from ensemble.stacking.selection import RULES
from oof.config import Stack
from oof.metrics import row_log_loss, softmax

CONTENDERS = ("ours", "autogluon", "probmetrics")


def our_losses(battles: Battles, trials: int, seed: int, studies: Path) -> tuple[Losses, dict[str, float]]:
    """Return name -> (n,) losses of ours and of its candidates, and their cost.

    Args:
        battles: n of them.
        trials: of each study.
        seed: of tuning.
        studies: folder of the studies, which later calls share.
    """
    labels, stack = battles.labels, Stack(trials=trials)
    inputs = battles.design, labels, battles.folds, battles.groups, stack
    results, cost = costed(lambda: cross_fit_rules(*inputs, RULES, seed, studies))
    rules = {rule: result.predictions["calibrated"] for rule, result in results.items() if rule != stack.final}
    probs = results[stack.final].predictions
    probs = {"default": probs["calibrated"], "uncalibrated": probs["stack"]} | {
        name: p for name, p in probs.items() if name not in ("stack", "calibrated", "teacher")
    }
    probs |= {f"rule:{rule}": p for rule, p in rules.items()} | single_members(battles)
    return {name: row_log_loss(p, labels) for name, p in probs.items()}, cost


def single_members(battles: Battles) -> Losses:
    """Return the (n, 3) probabilities of each member, as they are and with a temperature from the other folds."""
    probs = {}
    for i, name in enumerate(battles.design.members):
        logits = battles.design.pool[:, i]
        scaled = np.empty_like(logits)
        for fold in np.unique(battles.folds):
            rest, held = battles.folds != fold, battles.folds == fold
            temperature = float(np.exp(best_log_temperature(logits[rest], battles.labels[rest])))
            scaled[held] = Calibrator(temperature).apply(logits[held])
        probs |= {f"member:{name}": softmax(logits), f"scaled:{name}": scaled}
    return probs


class Measurements:
    """Losses of every setting, seed and contender below a folder, each kept from call to call."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.out, self.trials, self.data = arguments.out, arguments.trials, arguments.data
        # A file for each contender, so that two calls can measure different ones at a time.
        self.rows = {name: ResumableRows(self.out / f"{name}.json") for name in CONTENDERS}
        self.seconds_a_fold = arguments.seconds_a_fold
        self.keys = {name: [DATA_VERSION] for name in CONTENDERS}
        self.keys["autogluon"] = [DATA_VERSION, arguments.seconds_a_fold]
        self.keys["ours"] = [DATA_VERSION, STACKING_VERSION, Stack().final, Stack().calibrator, self.trials]

    def get(self, setting: str, seed: int, contender: str) -> dict[str, Any] | None:
        return self.rows[contender].get(f"{setting} {seed}", self.keys[contender])

    def losses(self, setting: str, seed: int, contender: str) -> Losses:
        """Return name -> (n,) losses, and the battles' ``groups``."""
        return dict(np.load(self.out / contender / f"{setting}-{seed}.npz"))

    def missing(self, setting: str, seeds: range, contender: str, again: bool) -> list[int]:
        """Return the seeds that are still to be measured; with ``again`` all."""
        rows = {seed: self.get(setting, seed, contender) for seed in seeds}
        return [seed for seed, row in rows.items() if again or row is None]

    def measure(self, setting: str, seeds: list[int], contender: str, python: str) -> None:
        """Measure some seeds of a setting; a peer's failure is printed, and the next call tries again."""
        battles = {seed: SETTINGS[setting].make(self.data / SETTINGS[setting].file, seed) for seed in seeds}
        try:
            if contender == "probmetrics":
                all_losses, cost = probmetrics_losses(list(battles.values()), python)
                for seed, losses in zip(seeds, all_losses, strict=True):
                    self.put(setting, seed, contender, battles[seed], losses, cost)
                return
            for seed in seeds:
                if contender == "ours":
                    studies = self.out / "studies" / f"{setting}-{seed}"
                    losses, cost = our_losses(battles[seed], self.trials, seed, studies)
                else:
                    ours = self.get(setting, seed, "ours") or {"cpu_seconds": 0.0}
                    least = self.seconds_a_fold * len(np.unique(battles[seed].folds))
                    losses, cost = autogluon_losses(battles[seed], max(least, ours["cpu_seconds"]), python)
                self.put(setting, seed, contender, battles[seed], losses, cost)
        except RuntimeError as error:  # of a peer
            print(f"{contender} {setting}: {error}", file=sys.stderr, flush=True)

    def put(
        self, setting: str, seed: int, contender: str, battles: Battles, losses: Losses, cost: dict[str, float]
    ) -> None:
        path = self.out / contender / f"{setting}-{seed}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, groups=battles.groups, **losses)
        self.rows[contender].put(f"{setting} {seed}", self.keys[contender], cost)
        means = {name: round(float(values.mean()), 4) for name, values in losses.items()}
        print(f"{contender} {setting} {seed} ({cost['seconds']:.0f} s): {means}", file=sys.stderr, flush=True)


def measure_all(arguments: argparse.Namespace, names: list[str], measurements: Measurements) -> None:
    peers = set(arguments.contenders) - {"ours"}
    python, problem = peer_python(arguments.peer_python) if peers else ("", "")
    if problem:
        print(problem, file=sys.stderr)
    for name in names:
        for contender in arguments.contenders:
            seeds = seeds_of(name, arguments)
            if contender == "autogluon":
                seeds = seeds[: arguments.peer_seeds]
            missing = measurements.missing(name, seeds, contender, arguments.again)
            if missing and (contender == "ours" or not problem):
                measurements.measure(name, missing, contender, python)


def seeds_of(name: str, arguments: argparse.Namespace) -> range:
    return range(arguments.first_seed, arguments.first_seed + min(arguments.seeds, SETTINGS[name].most_seeds))


def outcomes(arguments: argparse.Namespace, names: list[str], measurements: Measurements) -> list[Outcome]:
    """Return what has been measured of each setting, of the seeds that ours has."""
    found = []
    for name in names:
        per_seed = []
        for seed in seeds_of(name, arguments):
            if not measurements.get(name, seed, "ours"):
                continue
            losses: Losses = {}
            for contender in CONTENDERS:
                row = measurements.get(name, seed, contender)
                losses |= measurements.losses(name, seed, contender) if row else {}
            per_seed.append(losses)
        if per_seed:
            found.append(Outcome(name, per_seed, SETTINGS[name].same_battles))
    return found


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the real logits and verdicts")
    parser.add_argument("--only", nargs="+", default=[], metavar="SETTING", help=", ".join(SETTINGS))
    every = list(CONTENDERS)
    parser.add_argument("--contenders", nargs="*", choices=every, default=every, help="none: only write the page")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--peer-seeds", type=int, default=3, help="seeds of AutoGluon")
    parser.add_argument("--seconds-a-fold", type=float, default=10, help="least CPU time of AutoGluon")
    parser.add_argument("--peer-python", default="", help="of an environment that has AutoGluon and probmetrics")
    parser.add_argument("--again", action="store_true", help="measure what has been measured, too")
    parser.add_argument("--out", type=Path, default=Path("runs/choice"))
    parser.add_argument("--report", type=Path, help="the page, e.g. docs/evidence/choice.md (default: in --out)")
    arguments = parser.parse_args()
    names = chosen(arguments.only, SETTINGS)
    require([arguments.data / SETTINGS[name].file for name in names if SETTINGS[name].file], "--data")
    measurements = Measurements(arguments)
    measure_all(arguments, names, measurements)
    lines = [
        paragraphs(__doc__, 2),
        "",
        f"{arguments.trials} trials a study, seeds from {arguments.first_seed} on.",
        "",
    ]
    report = arguments.report or arguments.out / "page.md"
    made_from = commit()  # before the file of rows, which is tracked, is written
    found = [row_of(outcome, made_from) for outcome in outcomes(arguments, names, measurements)]
    rows = merged(report.with_suffix(".json"), found, list(SETTINGS))
    if absent := sorted(set(SETTINGS) - {row.setting for row in rows}):
        lines += [f"Not measured yet: {', '.join(absent)}.", ""]
    title = "The default combiner against its candidates"
    print(write_page(report, title, [*lines, *page(rows)], made_from=made_from))


if __name__ == "__main__":
    run_script(main)
