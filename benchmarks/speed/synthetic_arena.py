"""Synthetic arena of any size: battles with texts of the arena's lengths, two members' logits, true probabilities.

A battle has on average 350 + 1,250 + 1,250 characters (87 + 296 + 295 tokens), with heavy tails; a tenth of the texts
are Chinese or Cyrillic. Verdicts follow a latent quality, lengths (saturating), lists, the script of the prompt and
position bias, so that the features of :mod:`ensemble.features` carry information that the logits lack.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import polars as pl
from scipy.special import expit

from ensemble.features import battle_features

WORDS = (
    *("the", "model", "answer", "of", "a", "list", "code", "and", "is", "python", "to", "`x`", "12", "example"),
    *("however,", "http", "function.", "new", "**bold**", "in"),
)
FOREIGN = ("模型", "回答", "列表", "代码", "例子", "это", "ответ", "модели", "пример", "кода")
SEPARATORS = (" ", " ", " ", " ", " ", ". ", "\n", "\n- ", "\n\n## ", "\n```\n")


@dataclass(frozen=True)
class Perception:
    """How well a member sees a battle's quality: its slope, the noise around it, the temperature of the logits."""

    noise: float
    temperature: float
    slope: float = 1.0  # 0: the member has learned nothing


@dataclass(frozen=True)
class ArenaKind:
    """What an arena is like.

    Attributes:
        members: what each member sees.
        position: advantage of response A on the logit scale.
        ties: whether battles can end in one.
        n_groups: groups of battles; 0 = 0.7 n, so that most prompts occur once and some several times.
        scale_spread: standard deviation of the logarithm of the members' scale from group to group.
        length_spread: standard deviation of the effect of length from group to group.
    """

    members: Mapping[str, Perception] = field(
        default_factory=lambda: {"one": Perception(0.6, 1.0), "two": Perception(0.9, 0.5)}
    )
    position: float = 0.1
    ties: bool = True
    n_groups: int = 0
    scale_spread: float = 0.0
    length_spread: float = 0.0


@dataclass(frozen=True)
class Arena:
    """Battles, (n, 2, 3) logits of each member, (n,) labels, folds and groups, (n, 3) true class probabilities."""

    table: pl.DataFrame
    logits: dict[str, np.ndarray]
    labels: np.ndarray
    folds: np.ndarray
    groups: np.ndarray
    truth: np.ndarray


def text(rng: np.random.Generator, characters: float) -> str:
    words = FOREIGN if rng.random() < 0.1 else WORDS
    n = max(1, int(rng.lognormal(np.log(characters / 6.5) - 0.5, 1.0)))
    drawn = zip(rng.integers(len(words), size=n), rng.integers(len(SEPARATORS), size=n), strict=True)
    return "".join(words[w] + SEPARATORS[s] for w, s in drawn)


@cache
def battles(n: int) -> pl.DataFrame:
    """Return the texts of n one-turn battles."""
    rng = np.random.default_rng(0)
    columns = {"prompt": 350, "response_a": 1250, "response_b": 1250}
    return pl.DataFrame({name: [[text(rng, size)] for _ in range(n)] for name, size in columns.items()})


def probabilities(advantage: np.ndarray, tie: np.ndarray | float) -> np.ndarray:
    """Return (n, 3) class probabilities for A's advantage and half the width of the tie region, on the logit scale."""
    a, b = expit(advantage - tie), expit(-advantage - tie)
    return np.stack([a, b, np.maximum(1 - a - b, 0.0)], axis=1)


def make_arena(n: int, seed: int, kind: ArenaKind | None = None) -> Arena:
    """Return n battles in five folds of whole groups; other seeds have the same texts with other qualities."""
    kind = kind or ArenaKind()
    table = battles(n).with_columns(id=pl.Series([f"b{i}" for i in range(n)]))
    features, _ = battle_features.text_features(table)
    names = ("log_words_diff", "list_diff", "latin_prompt")
    length, lists, latin = (features[name].to_numpy().astype(float) for name in names)
    rng = np.random.default_rng(seed)
    n_groups = kind.n_groups or max(1, int(0.7 * n))
    groups = rng.integers(n_groups, size=n)
    quality, shared = rng.normal(0, 1.5, n), rng.normal(0, 0.5, n)
    slope = 0.6 + rng.normal(0, kind.length_spread, n_groups)[groups]
    scale = np.exp(rng.normal(0, kind.scale_spread, n_groups))[groups]
    advantage = quality + slope * np.tanh(1.5 * length) + 0.3 * np.clip(lists, -1, 1) + kind.position
    truth = probabilities(advantage, (0.8 - 0.3 * np.tanh(np.abs(length)) + 0.3 * (latin < 0.5)) * kind.ties)
    labels = (rng.random(n)[:, None] > truth.cumsum(axis=1)[:, :2]).sum(axis=1)
    logits = {}
    for name, member in kind.members.items():
        perceived = member.slope * (quality + shared) + rng.normal(0, member.noise, n)
        width = 0.8 if kind.ties else 0.02  # a tie gets about 1 % then
        orders = [np.log(probabilities(perceived + rng.normal(0, 0.4, n), width)) for _ in range(2)]
        values = np.stack(orders, axis=1) / member.temperature * scale[:, None, None]
        logits[name] = values.astype(np.float32)
    folds = rng.permutation(n_groups)[groups] % 5
    return Arena(table, logits, labels, folds, groups, truth)
