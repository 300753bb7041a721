"""Estimated tokens of the battles that a configuration trains on and scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oof.config import Config
from oof.data.battles import read_battles
from oof.data.subset import subset_size
from oof.jobs.dataset import read_sample, text_characters
from oof.jobs.pretrain import read_pairs

Lengths = NDArray[np.float64]

# Tokens of 700 real arena battles under Gemma2's tokenizer, all three texts: log-normal with this median and sigma.
ARENA_MEDIAN, ARENA_SIGMA, ARENA_BATTLES = 563.0, 0.78, 57_477
CHARACTERS_PER_TOKEN = 4.0  # of English prose and code under a vocabulary of 128k to 256k
TEMPLATE_TOKENS = 30


@dataclass(frozen=True)
class BattleLengths:
    """Tokens of each battle before truncation, template included, by the role of the battle.

    Attributes:
        train, extra, unlabelled, pairs: (n,) arrays; ``pairs`` are those of ``pretrain.data`` before decontamination.
        test: (n,) array, or None where no test file is set.
    """

    train: Lengths
    extra: Lengths
    unlabelled: Lengths
    pairs: Lengths
    test: Lengths | None

    @property
    def labelled(self) -> Lengths:
        return np.concatenate([self.train, self.extra])


def battle_lengths(config: Config) -> BattleLengths:
    """Return the lengths of a configuration's battles.

    Raises:
        UserError: a file cannot be read.
    """
    train = battle_tokens(config)
    extra, unlabelled, test = (_role_tokens(config, role) for role in ("extra", "unlabelled", "test"))
    if config.data.synth.battles and not config.data.train and not len(test):
        test = np.resize(train, config.data.synth.test_battles)
    return BattleLengths(train, extra, unlabelled, pair_tokens(config), test if len(test) else None)


def battle_tokens(config: Config, sample: int = 2000) -> Lengths:
    """Return the (n,) estimated tokens of every battle: characters of a sample, or the arena's distribution."""
    n, characters = read_sample(config, sample)
    if n == 0:
        from scipy.stats import norm

        n, quantiles = subset_size(ARENA_BATTLES, config.data.subset), (np.arange(sample) + 0.5) / sample
        tokens = np.exp(np.log(ARENA_MEDIAN) + ARENA_SIGMA * np.asarray(norm.ppf(quantiles)))
        return np.resize(tokens, n) + TEMPLATE_TOKENS
    return np.resize(characters / CHARACTERS_PER_TOKEN, n) + TEMPLATE_TOKENS


def pair_tokens(config: Config) -> Lengths:
    """Return the (n,) estimated tokens of every pair of ``pretrain.data`` before decontamination; else (0,)."""
    if not config.pretrain.data:
        return np.empty(0)
    return text_characters(read_pairs(config).table) / CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS


def _role_tokens(config: Config, role: str) -> Lengths:
    if not getattr(config.data, role):
        return np.empty(0)
    table = read_battles(config.data, seed=config.seed, roles=(role,)).table
    return text_characters(table) / CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS
