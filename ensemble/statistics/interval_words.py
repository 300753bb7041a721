"""Words for intervals: the sign that an interval shows, its bounds, and too few groups for a verdict."""

from __future__ import annotations

from ensemble.statistics.bootstrap import Interval


def below_zero(interval: Interval) -> bool:
    """Return whether the whole interval is below 0; never of too few groups."""
    return interval["high"] is not None and interval["high"] < 0


def above_zero(interval: Interval) -> bool:
    """Return whether the whole interval is above 0; never of too few groups."""
    return interval["low"] is not None and interval["low"] > 0


def too_few(n_groups: int) -> str:
    """Return the verdict of a comparison on fewer than ``LEAST_GROUPS`` groups."""
    return f"too few groups for a verdict ({n_groups})"


def in_words(interval: Interval, form: str = "+.4f") -> str:
    """Return ``value [low, high]``, or the value and why it has no bounds; "none" without a value."""
    if interval["value"] is None:
        return "none"
    value = format(interval["value"], form)
    if interval["low"] is None or interval["high"] is None:
        return f"{value}, {too_few(interval['groups'])}" if "groups" in interval else value
    return f"{value} [{interval['low']:{form}}, {interval['high']:{form}}]"
