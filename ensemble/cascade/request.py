"""Request to a cascade: a share of the ensemble's compute, a time, or thresholds; checked before any work."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ensemble.cascade.policy import ENSEMBLE, ONE_ORDER, STUDENT, Frontier, Levels, Policy
from oof.common.errors import UserError
from oof.config import Config

UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0}
TIME = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")


@dataclass(frozen=True)
class Request:
    """What ``predict.cascade`` asks for; exactly one of budget, seconds and thresholds is set.

    Attributes:
        budget: share of the ensemble's compute.
        seconds: limit of the whole prediction.
        thresholds: of each level but the last.
        levels: names of the levels of ``thresholds``.
        score: that is compared with them.
    """

    budget: float | None = None
    seconds: float | None = None
    thresholds: tuple[float, ...] = ()
    levels: tuple[str, ...] = ()
    score: str = "gain"


def requested(config: Config) -> Request | None:
    """Return what the settings ask for, None if no cascade.

    Raises:
        UserError: settings contradict each other, or the time cannot be read.
    """
    given = config.predict.cascade
    named = {"budget": given.budget > 0, "time": bool(given.time), "thresholds": bool(given.thresholds)}
    asked = [f"predict.cascade.{name}" for name, is_set in named.items() if is_set]
    for name, is_set in {"levels": bool(given.levels), "score": given.score != Request.score}.items():
        if is_set and not given.thresholds:
            raise UserError(
                f"predict.cascade.{name} has no effect without predict.cascade.thresholds; set them, too, or reset it "
                f"({'levels=[]' if name == 'levels' else f'score={Request.score}'})"
            )
    if not asked:
        return None
    if len(asked) > 1:
        raise UserError(
            f"{' and '.join(asked)} are set; a cascade follows one of them: reset the other (budget=0, time='', "
            "thresholds=[])"
        )
    if config.predict.model == ENSEMBLE:
        raise UserError(f"{asked[0]} has no effect with predict.model=ensemble; set predict.model=student")
    if given.budget:
        return Request(budget=given.budget)
    if given.time:
        return Request(seconds=seconds_of(given.time))
    levels = tuple(given.levels or [STUDENT, ENSEMBLE])
    if len(levels) != len(given.thresholds) + 1:
        raise UserError(
            f"predict.cascade.levels has {len(levels)} levels and thresholds {len(given.thresholds)} values; give one "
            "threshold for each level but the last"
        )
    if given.score == "disagreement" and ONE_ORDER in levels[:-1]:
        raise UserError(f"predict.cascade.score=disagreement needs two predictions; leave {ONE_ORDER} out of levels")
    return Request(thresholds=tuple(given.thresholds), levels=levels, score=given.score)


def seconds_of(time: str) -> float:
    """Return the seconds of "9h", "1h30m", "90m" or "5400".

    Raises:
        UserError: it is none of these, or not above 0.
    """
    match = TIME.fullmatch(time.strip())
    parts = match.groups() if match else (None, None, None)
    seconds = sum(float(value) * unit for value, unit in zip(parts, UNITS.values(), strict=True) if value)
    if seconds <= 0:
        raise UserError(f"predict.cascade.time={time!r} is no time; write 9h, 1h30m, 90m or 5400 (seconds)")
    return seconds


def with_thresholds(request: Request, frontiers: Sequence[Frontier], levels: Levels) -> Policy:
    """Return the policy with the thresholds of a request.

    Raises:
        UserError: the run has no level of that name, they are not in the order of their costs, or are too many.
    """
    unknown = [name for name in request.levels if name not in levels.names]
    if unknown:
        raise UserError(f"predict.cascade.levels: no level {unknown[0]!r}; this run has {', '.join(levels.names)}")
    chain = tuple(levels.names.index(name) for name in request.levels)
    for frontier in frontiers:
        if frontier.kind == request.score and frontier.chain == chain:
            return Policy(request.score, chain, request.thresholds, frontier.gains)
    raise UserError(
        f"predict.cascade.levels={list(request.levels)}: give at most four levels, cheapest first: "
        f"{', '.join(levels.names)}"
    )
