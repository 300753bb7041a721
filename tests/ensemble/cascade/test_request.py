"""Settings of a cascade: what is read, and what is refused in one sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ensemble.cascade.policy import Frontier, Levels
from ensemble.cascade.request import Request, requested, seconds_of, with_thresholds
from oof.common.errors import UserError
from oof.config import Config
from oof.config.schema import Cascade, Predict

LEVELS = Levels(("one_order", "student", "ensemble"), (("s",), ("s", "t"), ("m",)), {"s": 0.1, "t": 0.1, "m": 1.0})


def config(model: str = "student", **settings: Any) -> Config:
    return Config(predict=replace(Predict(model=model), cascade=Cascade(**settings)))


@pytest.mark.parametrize(
    ("text", "seconds"), [("9h", 32_400), ("1h30m", 5400), ("90m", 5400), ("5400", 5400), ("0.5h", 1800), ("45s", 45)]
)
def test_times_are_read(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds
    assert requested(config(time=text)) == Request(seconds=seconds)


@pytest.mark.parametrize("text", ["", "h", "9 hours", "-1h", "0", "1m1h", "9h;rm"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no time; write 9h"):
        seconds_of(text)


def test_without_settings_there_is_no_cascade() -> None:
    assert requested(config()) is None
    assert requested(config(budget=0.4)) == Request(budget=0.4)
    assert requested(config(thresholds=[0.1])) == Request(thresholds=(0.1,), levels=("student", "ensemble"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 0.4, "time": "9h"}, "budget and predict.cascade.time are set"),
        ({"budget": 0.4, "model": "ensemble"}, "has no effect with predict.model=ensemble"),
        ({"levels": ["student"]}, "has no effect without predict.cascade.thresholds"),
        ({"time": "9h", "levels": ["student", "giant"]}, "has no effect without predict.cascade.thresholds"),
        ({"budget": 0.4, "score": "margin"}, "predict.cascade.score has no effect without predict.cascade.thresholds"),
        ({"thresholds": [0.1, 0.2]}, "has 2 levels and thresholds 2 values"),
        ({"thresholds": [0.1], "levels": ["one_order", "ensemble"], "score": "disagreement"}, "needs two predictions"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        requested(config(**settings))


@pytest.mark.parametrize(
    ("levels", "message"),
    [(("student", "giant"), "no level 'giant'; this run has one_order"), (("ensemble", "student"), "cheapest first")],
)
def test_levels_that_the_run_lacks_or_in_another_order_are_refused(levels: tuple[str, ...], message: str) -> None:
    frontiers: list[Frontier] = []
    with pytest.raises(UserError, match=message):
        with_thresholds(Request(thresholds=(0.1,), levels=levels), frontiers, LEVELS)
