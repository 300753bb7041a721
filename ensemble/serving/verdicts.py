"""Verdicts of a judge: probabilities of (a, b, tie), and whether they are sure enough to be used."""

from __future__ import annotations

from typing import Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray


class _Probabilities(NamedTuple):
    a: float
    b: float
    tie: float


class Verdict(_Probabilities):
    """Probabilities that A wins, that B wins, and of a tie; they sum to 1.

    Unpack it as a tuple: ``a, b, tie = verdict``.

    Attributes:
        answered: False where ``max_error`` was given and the verdict is not sure enough; its probabilities stay.
        warnings: with ``max_error``: how the battle is unlike the training battles, for which alone it is kept.
    """

    answered: bool
    warnings: tuple[str, ...]

    def __new__(cls, a: float, b: float, tie: float, answered: bool = True, warnings: tuple[str, ...] = ()) -> Self:
        verdict = super().__new__(cls, a, b, tie)
        verdict.answered, verdict.warnings = answered, warnings
        return verdict

    @property
    def winner(self) -> Literal["a", "b", "tie"]:
        """The most probable outcome: "a", "b" or "tie"."""
        best = max(self)
        return "a" if self.a == best else "b" if self.b == best else "tie"

    @property
    def probabilities(self) -> dict[str, float]:
        """The three probabilities by outcome: ``{"a": …, "b": …, "tie": …}``."""
        return self._asdict()


class Answers(NamedTuple):
    """Verdicts on n battles with ``max_error``.

    Attributes:
        probabilities: (n, 3) of (a, b, tie).
        answered: (n,) whether the verdict is sure enough.
        warnings: n times how the battle is unlike the training battles.
    """

    probabilities: NDArray[np.float64]
    answered: NDArray[np.bool_]
    warnings: list[tuple[str, ...]]
