"""Number of inner folds and choice of the combiner for stage two on a thousand battles.

    python -m benchmarks.quality.combiner_choice --data DIR        # writes docs/evidence/combiner-choice.md in minutes
    python -m benchmarks.quality.combiner_choice --data DIR --seeds 1 --trials 4 --out runs/choice.md

Three sets of battles: PandaLM's test set and the human judgements of Tulu 1 (real verdicts; the one member is the
TF-IDF baseline, out of fold), and the synthetic arena (``benchmarks/speed/synthetic_arena.py``) in 16 groups, with
members whose scale differs from group to group. Three outer folds, drawn anew for each seed. Two outer folds are left
for the inner cross-validation: either they are the inner folds, or each is split once more. Losses are those of the
outer folds, before calibration: of each combiner, of the simplest within one standard error (``stack.final: auto``)
and of the one with the smallest inner loss (``best``).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import ensemble.stacking.tuning as tuning
from benchmarks.common import argument_parser, paragraphs, require, run_script, write_page
from benchmarks.quality.real_battles import PANDALM, TULU
from benchmarks.speed.synthetic_arena import make_arena
from ensemble.features.design_matrix import Design, build_design
from ensemble.stacking.baselines import count_terms, fit_tfidf
from ensemble.stacking.cross_fit import cross_fit
from ensemble.stacking.selection import KINDS
from oof.config import Data, Groups, Stack
from oof.data.battles import read_battles
from oof.folds.assignment import assign_folds
from oof.folds.groups import group_battles
from oof.metrics import log_loss

FILES = {"PandaLM": PANDALM, "Tulu": TULU}
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
        logits[held] = fit_tfidf(texts.take(rest), labels[rest]).logits(texts.take(held))
    return Battles(build_design(table, {"text": np.repeat(logits[:, None], 2, axis=1)}), labels, folds, groups)


def synthetic(n: int, seed: int) -> Battles:
    arena, rng = make_arena(n, seed), np.random.default_rng(seed + 1)
    groups = rng.integers(16, size=n)
    scale = np.exp(rng.normal(0, 0.5, 16))[groups, None, None]
    folds = rng.permutation(16)[groups] % 3
    logits = {name: (values * scale).astype(np.float32) for name, values in arena.logits.items()}
    return Battles(build_design(arena.table, logits), arena.labels, folds, groups)


def losses(battles: Battles, trials: int) -> dict[str, float]:
    """Return the mean outer loss of each combiner and of each rule's choice."""
    with tempfile.TemporaryDirectory() as folder:  # the second rule reuses the first one's studies
        # One worker, because processes of their own would not see the ENOUGH_OUTER that main sets.
        settings = {rule: Stack(trials=trials, final=rule, workers=1) for rule in RULES}
        by_rule = {rule: cross_fit(*battles, stack, 0, Path(folder)).predictions for rule, stack in settings.items()}
    rows = {kind: by_rule["auto"][f"combiner:{kind}"] for kind in KINDS} | {r: p["stack"] for r, p in by_rule.items()}
    return {row: log_loss(probs, battles.labels) for row, probs in rows.items()}


def sets(data: Path, seeds: int) -> Iterator[tuple[str, int, Callable[[], Battles]]]:
    for seed in range(seeds):
        for name, file in FILES.items():
            yield name, seed, partial(real, data / file, seed)
        yield "synthetic", seed, partial(synthetic, 1200, seed)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the real judgements")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("docs/evidence/combiner-choice.md"))
    arguments = parser.parse_args()
    require([arguments.data / file for file in FILES.values()], "--data")
    results: dict[tuple[str, int], list[dict[str, float]]] = {}
    for name, seed, make in sets(arguments.data, arguments.seeds):
        battles = make()
        for inner, enough in ((2, 2), (4, 3)):
            tuning.ENOUGH_OUTER = enough  # from this many outer folds on, they serve as inner folds unsplit
            results.setdefault((name, inner), []).append(losses(battles, arguments.trials))
        print(f"{name} {seed}", file=sys.stderr, flush=True)
    lines = [
        paragraphs(__doc__, 2),
        "",
        f"{arguments.seeds} seeds, {arguments.trials} trials. Mean log loss of the outer folds over the seeds; no "
        "intervals, because the seeds share battles.",
        "",
        f"| set | inner folds | {' | '.join(ROWS)} |",
        f"|---|---|{'---|' * len(ROWS)}",
    ]
    for name in (*FILES, "synthetic"):
        for inner in (2, 4):
            means = (np.mean([losses_of_seed[row] for losses_of_seed in results[name, inner]]) for row in ROWS)
            lines.append(f"| {name} | {inner} | {' | '.join(f'{mean:.4f}' for mean in means)} |")
    print(write_page(arguments.out, "Inner folds and combiners on a thousand battles", lines))


if __name__ == "__main__":
    run_script(main)
