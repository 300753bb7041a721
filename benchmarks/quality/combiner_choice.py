"""Stage two on a thousand battles: how many inner folds, and which combiner. Its page: docs/results-choice.md.

    python -m benchmarks.quality.combiner_choice                     # minutes on one core
    python -m benchmarks.quality.combiner_choice --seeds 1 --trials 4 --out runs/choice.md

The sets: PandaLM's test set and the human judgements of Tulu 1 (real verdicts; the one member is the TF-IDF baseline,
out of fold), and synthetic arenas of ``benchmarks/speed/stack_peers.py`` in 16 groups, whose members' scale differs from
group to group. Three outer folds, drawn anew for each seed. Two outer folds are left for the inner cross-validation:
either they are the inner folds, or each is split once more (``ensemble.stacking.tuning.INNER``). Losses are those of the outer
folds, before calibration: of each combiner, of the simplest within one standard error (``stack.final: auto``) and of
the one with the smallest inner loss (``best``).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import ensemble.stacking.tuning as tuning
from benchmarks.common import made
from benchmarks.speed.synthetic_arena import make_arena
from ensemble.features.design_matrix import Design, build_design
from ensemble.stacking.cross_fit import cross_fit
from ensemble.stacking.selection import KINDS
from ensemble.stacking.tfidf_baseline import count_terms, fit_text
from oof.common.atomic_files import replacing
from oof.config import Data, Groups, Stack
from oof.data.battles import read_battles
from oof.folds.assignment import assign_folds
from oof.folds.groups import group_battles
from oof.metrics import log_loss

FILES = {"PandaLM": "pandalm_testset.csv", "Tulu": "tulu_human_eval.csv"}
RULES = ("auto", "best")
ROWS = (*KINDS, *RULES)


class Battles(NamedTuple):
    """A design, labels, outer folds and groups of (n) battles."""

    design: Design
    labels: NDArray[np.int64]
    folds: NDArray[np.int64]
    groups: NDArray[np.int64]


def real(path: Path, seed: int) -> Battles:
    table = read_battles(Data(train=(str(path),)), seed=0, roles=("train",)).table.sort("id")
    groups = group_battles(table, Groups())
    folds = assign_folds(table, groups, 3, seed).astype(np.int64)
    labels, texts = table["label"].to_numpy().astype(np.int64), count_terms(table)
    logits = np.empty((len(labels), 3))
    for fold in range(3):
        rest, held = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        logits[held] = fit_text(texts.take(rest), labels[rest]).logits(texts.take(held))
    return Battles(build_design(table, {"text": np.repeat(logits[:, None], 2, axis=1)}), labels, folds, groups)


def synthetic(n: int, seed: int) -> Battles:
    arena, rng = make_arena(n, seed), np.random.default_rng(seed + 1)
    groups = rng.integers(16, size=n)
    scale = np.exp(rng.normal(0, 0.5, 16))[groups, None, None]
    folds = rng.permutation(16)[groups] % 3
    logits = {name: (values * scale).astype(np.float32) for name, values in arena.logits.items()}
    return Battles(build_design(arena.table, logits), arena.labels, folds, groups)


def losses(battles: Battles, trials: int) -> dict[str, float]:
    """Return the mean outer loss by combiner, and of what each rule chooses."""
    with tempfile.TemporaryDirectory() as folder:  # the second rule finds the first one's studies there
        settings = {rule: Stack(trials=trials, final=rule, workers=1) for rule in RULES}  # in here, where ENOUGH is set
        by_rule = {
            rule: cross_fit(*battles, of_rule, 0, Path(folder)).predictions for rule, of_rule in settings.items()
        }
    rows = {kind: by_rule["auto"][f"combiner:{kind}"] for kind in KINDS} | {r: p["stack"] for r, p in by_rule.items()}
    return {row: log_loss(probs, battles.labels) for row, probs in rows.items()}


def sets(data: Path, seeds: int) -> Iterator[tuple[str, int, Callable[[], Battles]]]:
    for seed in range(seeds):
        for name, file in FILES.items():
            yield name, seed, partial(real, data / file, seed)
        yield "synthetic", seed, partial(synthetic, 1200, seed)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("docs/results-choice.md"))
    arguments = parser.parse_args()
    missing = [file for file in FILES.values() if not (arguments.data / file).is_file()]
    if missing:
        print(f"error: {arguments.data / missing[0]}: not there; give --data", file=sys.stderr)
        return 2
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for name, seed, make in sets(arguments.data, arguments.seeds):
        battles = make()
        for inner, enough in ((2, 2), (4, 3)):
            tuning.ENOUGH = enough  # two outer folds are left: enough, or to be split
            found.setdefault((name, inner), []).append(losses(battles, arguments.trials))
        print(f"{name} {seed}", file=sys.stderr, flush=True)
    lines = [
        "# Inner folds and combiners on a thousand battles",
        "",
        f"{made()} by `python -m benchmarks.quality.combiner_choice`, whose docstring says how: {arguments.seeds} seeds, "
        f"{arguments.trials} trials. Mean log loss of the outer folds over the seeds; no intervals, since seeds share "
        "battles.",
        "",
        f"| set | inner folds | {' | '.join(ROWS)} |",
        f"|---|---|{'---|' * len(ROWS)}",
    ]
    for name in (*FILES, "synthetic"):
        for inner in (2, 4):
            means = (np.mean([one[row] for one in found[name, inner]]) for row in ROWS)
            lines.append(f"| {name} | {inner} | {' | '.join(f'{mean:.4f}' for mean in means)} |")
    page = "\n".join(lines) + "\n"
    with replacing(arguments.out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
