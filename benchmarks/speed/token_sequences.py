"""Random token sequences of the arena's lengths, with a learnable label."""

from __future__ import annotations

import numpy as np

from oof.encoding.encode import Encoded

# Tokens of prompt and responses together of 700 arena battles (Gemma2's tokenizer): median 563, 16 % above 1,024, p90
# 1,243, 2.6 % above 2,048, p99 3,087. The ends are chosen so that, capped at 2,048, the mean is the measured 644 and
# padding costs what it did there: 2.23 times the tokens in random batches of 8, 3.18 times up to the cap.
QUANTILES = {0.0: 120, 0.5: 563, 0.84: 1024, 0.9: 1243, 0.974: 2048, 0.99: 3087, 1.0: 6000}
LABEL_NOISE = 0.4  # share of sequences that show a random label; without it all contenders end near a loss of 0


def arena_lengths(n: int, cap: int, seed: int = 0) -> np.ndarray:
    """Return (n,) token counts of the arena's distribution, one from each n-th of it, in random order."""
    shares = (np.random.default_rng(seed).permutation(n) + 0.5) / n
    return np.minimum(np.exp(np.interp(shares, list(QUANTILES), np.log(list(QUANTILES.values())))), cap).astype(int)


def make_battles(n: int, cap: int, vocabulary: int, seed: int) -> tuple[Encoded, np.ndarray]:
    """Return n random sequences, whose last tokens show the label or, for a share of them, a random one; and labels."""
    rng = np.random.default_rng(seed)
    lengths, labels = arena_lengths(n, cap, seed), rng.integers(3, size=n)
    shown = np.where(rng.random(n) < LABEL_NOISE, rng.integers(3, size=n), labels)
    rows = [rng.integers(100, vocabulary - 100, size) for size in lengths]
    for row, label in zip(rows, shown, strict=True):
        row[-8:] = 50 + label
    offsets, none = np.concatenate([[0], np.cumsum(lengths)]), np.zeros((n, 3), dtype=np.int32)
    return Encoded(np.concatenate(rows).astype(np.int32), offsets, 1, none, none), labels
