"""Battles on which stage two is measured: real logits, real verdicts with texts, synthetic arenas.

A setting's name says what it holds and, for a part of the battles or a synthetic arena, how many. The seed draws the
part, the folds and the synthetic qualities and verdicts; five folds of whole groups, as in a run.

Synthetic ``binary-*`` have no ties, but members that give ties a small probability; those of ``two-class-*`` know that
there are none (``data.ties=false``).

Real logits: ``king2-*`` are two models of the LMSYS competition, ``king3-*`` has a third one that is nearly a copy of
the second. Each battle was scored in one order and is a group of its own. Real verdicts have texts and no logits: the
one member is the TF-IDF baseline, out of fold; ``*-weak`` has instead two members that have learned nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.quality.real_battles import PANDALM, TULU, UKP
from benchmarks.speed.synthetic_arena import ArenaKind, Perception, battles, make_arena
from ensemble.features.battle_features import text_features
from ensemble.features.design_matrix import Design, design_of
from ensemble.features.term_counts import TermCounts, count_terms
from ensemble.stacking.baselines import fit_tfidf
from oof.classes import CLASSES, TIE, with_tie
from oof.config import Data, Groups
from oof.data.battles import read_battles
from oof.folds.assignment import assign_folds
from oof.folds.groups import group_battles

KING, VICUNA, LLMFAO = "oof_lmsys_king.csv.gz", "vicuna80_human.csv.gz", "llmfao_crowd.csv.gz"
FOLDS = 5
SOME, MANY, FEW_SEEDS = 4000, 10_000, 2  # synthetic settings above SOME battles have 5 seeds, all above MANY have 2
DATA_VERSION = 1  # raise when a setting's battles change


@dataclass(frozen=True)
class Battles:
    """A design, with term counts where there are texts, labels, folds and groups of (n) battles."""

    design: Design
    labels: NDArray[np.int64]
    folds: NDArray[np.int64]
    groups: NDArray[np.int64]


@dataclass(frozen=True)
class Setting:
    """How to make the battles of a seed, from which file of the data's folder ("": synthetic), for how many seeds."""

    make: Callable[[Path, int], Battles]
    file: str = ""
    most_seeds: int = 100

    @property
    def same_battles(self) -> bool:
        """Whether every seed has all battles of a file, and draws their folds alone."""
        return self.file not in ("", KING)


def real_logits(members: tuple[str, ...], n: int, path: Path, seed: int) -> Battles:
    """Return n random battles (0: all) of a file of probabilities with labels."""
    frame = _read_csv(path)
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(frame.height)[: n or None])
    frame = frame[rows].with_columns(id=pl.col("id").cast(pl.String))
    logits = {}
    for name in members:
        probs = frame.select([f"{name}_{c}" for c in CLASSES]).to_numpy()
        logits[name] = np.repeat(np.log(np.maximum(probs, 1e-6))[:, None], 2, axis=1)
    design = design_of(frame["id"].to_list(), pl.DataFrame(), {}, logits)
    labels = frame["label"].to_numpy().astype(np.int64)
    return Battles(design, labels, rng.permutation(frame.height) % FOLDS, rows)


@cache
def _read_csv(path: Path) -> pl.DataFrame:
    return pl.read_csv(path)


def real_verdicts(weak: bool, path: Path, seed: int) -> Battles:
    """Return the battles of a file with texts, with the TF-IDF baseline as the one member or with two weak ones."""
    table, groups, counts = _with_groups(path)
    folds = assign_folds(table, groups, FOLDS, seed).astype(np.int64)
    labels = table["label"].to_numpy().astype(np.int64)
    if weak:
        rng = np.random.default_rng(seed)
        members = {f"weak {spread}": rng.normal(0, spread, (table.height, 2, 3)) for spread in (0.15, 0.3)}
    else:
        members = {"tfidf": _out_of_fold(counts, labels, folds)}
    features, families = text_features(table)
    design = design_of(table["id"].to_list(), features, families, members)
    return Battles(replace(design, terms=counts), labels, folds, groups)


def _out_of_fold(counts: TermCounts, labels: NDArray[np.int64], folds: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the TF-IDF baseline's (n, 2, 3) logits of each fold, fitted on the others."""
    logits = np.empty((len(labels), 3))
    for fold in np.unique(folds):
        rest, held = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        logits[held] = fit_tfidf(counts.take(rest), labels[rest]).logits(counts.take(held))
    return np.repeat(logits[:, None], 2, axis=1)


@cache
def _with_groups(path: Path) -> tuple[pl.DataFrame, NDArray[np.int64], TermCounts]:
    table = read_battles(Data(train=(str(path),)), seed=0, roles=("train",)).table.sort("id")
    if path.name == UKP:  # a debate's prompts differ in the stance only
        groups = table["prompt"].list.join("\n").rank("dense").to_numpy().astype(np.int64) - 1
    else:
        groups = np.asarray(group_battles(table, Groups()), dtype=np.int64)
    return table, groups, count_terms(table)


def synthetic(n: int, kind: ArenaKind, two_classes: bool, path: Path, seed: int) -> Battles:
    """Return n battles of a synthetic arena, with members of two classes if asked for; the path is of no use."""
    arena = make_arena(n, seed, kind)
    logits = {name: with_tie(z[..., :TIE]) if two_classes else z for name, z in arena.logits.items()}
    features, families, counts = _features(n)
    design = design_of(arena.table["id"].to_list(), features, families, logits)
    return Battles(replace(design, terms=counts), arena.labels, arena.folds, arena.groups)


@cache
def _features(n: int) -> tuple[pl.DataFrame, dict[str, str], TermCounts]:
    return *text_features(battles(n)), count_terms(battles(n))


KINDS_OF_ARENA = {
    "weak": ArenaKind({"one": Perception(0.3, 1.0, slope=0.0), "two": Perception(0.6, 1.0, slope=0.0)}),
    "strong": ArenaKind({"one": Perception(0.2, 1.0), "two": Perception(0.3, 0.7), "three": Perception(0.3, 1.3)}),
    "scale-noise": ArenaKind(n_groups=60, scale_spread=0.5),
    "8-groups": ArenaKind(n_groups=8, scale_spread=0.3, length_spread=0.5),
    "16-groups": ArenaKind(n_groups=16, scale_spread=0.3, length_spread=0.5),
    "binary": ArenaKind(ties=False),
    "two-class": ArenaKind(ties=False),
    "arena": ArenaKind(),
}
SIZES = {"weak": (700, 5000), "binary": (700, 5000), "two-class": (700,), "arena": (200, 1000, 5000, 20_000, 50_000)}


def all_settings() -> dict[str, Setting]:
    settings = {
        f"{last}-{n or 'all'}": Setting(partial(real_logits, members, n), KING, 100 if n else FEW_SEEDS)
        for last, members in (("king2", ("king", "king2")), ("king3", ("king", "king2", "king3")))
        for n in (300, 700, 3000, 0)
    }
    files = {"pandalm": PANDALM, "tulu": TULU, "vicuna80": VICUNA, "llmfao": LLMFAO, "ukp": UKP}
    settings |= {name: Setting(partial(real_verdicts, False), file) for name, file in files.items()}
    settings |= {f"{name}-weak": Setting(partial(real_verdicts, True), files[name]) for name in ("pandalm", "tulu")}
    for name, kind in KINDS_OF_ARENA.items():
        for n in SIZES.get(name, (1200,)):
            make = partial(synthetic, n, kind, name == "two-class")
            settings[f"{name}-{n}"] = Setting(make, "", FEW_SEEDS if n > MANY else 5 if n > SOME else 100)
    return settings


SETTINGS = all_settings()
