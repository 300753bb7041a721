"""Tables of ``benchmarks/quality/choice.py``: the default against the best candidate and AutoGluon; all losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble.statistics.bootstrap import Interval, group_interval
from ensemble.statistics.interval_words import above_zero, below_zero, in_words
from ensemble.statistics.standard_errors import half_width

ENOUGH_SEEDS = 5  # for an interval over seeds; below it is over groups of battles
TOLERANCE = 0.002  # nats behind the best candidate that are not worth a word
BASELINES = ("length_only", "text")
CANDIDATES = ("prior", *BASELINES, "mean", "member:", "scaled:", "combiner:")
PEERS = ("autogluon", "svs", "sms")


@dataclass(frozen=True)
class Outcome:
    """A setting and, for each seed, name -> (n,) losses, with the battles' ``groups``.

    ``same_battles``: whether all seeds have the same battles, so that seeds differ in the folds alone.
    """

    setting: str
    per_seed: Sequence[dict[str, NDArray[np.float64]]]
    same_battles: bool = False

    def names(self) -> list[str]:
        """Return the names that every seed has, in the order of the first one."""
        first, *others = self.per_seed
        return [name for name in first if name != "groups" and all(name in losses for losses in others)]

    def mean(self, name: str) -> float:
        """Return the mean over the seeds that have the name; NaN where none has."""
        means = [losses[name].mean() for losses in self.per_seed if name in losses]
        return float(np.mean(means)) if means else float("nan")

    def best(self, prefixes: tuple[str, ...] = CANDIDATES) -> str:
        """Return the candidate with the smallest mean loss; "" where there is none."""
        return min((name for name in self.names() if name.startswith(prefixes)), key=self.mean, default="")

    def behind(self, name: str) -> Interval:
        """Return the default's loss minus that of ``name``, with its interval."""
        return self.difference("default", name)

    def difference(self, first: str, second: str) -> Interval:
        """Return the loss of ``first`` minus that of ``second`` over the seeds that have both, with its interval.

        Paired by seed and Student's from ``ENOUGH_SEEDS`` seeds on; with fewer, or with the same battles in each, over
        groups of the seeds' battles, of which equal numbers are one group.
        """
        pairs = [losses for losses in self.per_seed if first in losses and second in losses]
        differences = [losses[first] - losses[second] for losses in pairs]
        means = np.array([float(values.mean()) for values in differences])
        if self.same_battles or len(means) < ENOUGH_SEEDS:
            return group_interval(np.concatenate(differences), np.concatenate([p["groups"] for p in pairs]), 0)
        half = half_width(float(means.std(ddof=1)) / np.sqrt(len(means)), len(means))
        return {"value": float(means.mean()), "low": means.mean() - half, "high": means.mean() + half}


def verdict(outcome: Outcome) -> str:
    """Return in words whether the default is as good as the best candidate and as the baselines."""
    interval = outcome.behind(outcome.best())
    assert interval["value"] is not None
    words = "**behind**" if above_zero(interval) else "not significantly behind"
    if interval["value"] <= TOLERANCE:
        words = "better" if interval["value"] < 0 else f"within {TOLERANCE}"
    worse = [name for name in BASELINES if name in outcome.names() and above_zero(outcome.behind(name))]
    return ", ".join([words, *(f"**behind {title(name)}**" for name in worse)])


def title(name: str) -> str:
    """Return a contender's name in tables."""
    kind, _, rest = name.partition(":")
    words = {
        "length_only": "lengths",
        "prior": "class shares",
        "text": "TF-IDF",
        "autogluon": "AutoGluon",
        "mean": "plain mean",
    }
    words |= {"svs": "SVS", "sms": "SMS"}
    return {"combiner": rest, "rule": f"`{rest}`", "member": f"member {rest}", "scaled": f"{rest} scaled"}.get(
        kind, words.get(name, name)
    )


def summary(outcomes: Sequence[Outcome]) -> list[str]:
    """Return how many settings have which verdict."""
    verdicts = [verdict(outcome) for outcome in outcomes]
    good = sum("**" not in words for words in verdicts)
    against = [outcome.behind("autogluon") for outcome in outcomes if any("autogluon" in s for s in outcome.per_seed)]
    better, worse = sum(map(below_zero, against)), sum(map(above_zero, against))
    return [
        f"In {good} of {len(outcomes)} settings the default is within {TOLERANCE} of the best candidate (known "
        "afterwards only) or not significantly behind it, and behind neither lengths nor TF-IDF beyond noise.",
        f"Beside AutoGluon it is better beyond noise in {better} of {len(against)} settings and worse in {worse}.",
        "",
        f"Intervals (95 %) are over seeds. Where there are fewer than {ENOUGH_SEEDS} seeds, or all have the same "
        "battles (real verdicts) and differ in their folds alone, they are over groups of battles.",
        "",
    ]


def page(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the Markdown tables of the settings that have been measured."""
    lines = summary(outcomes)
    lines += ["| setting | battles | seeds | default | best candidate | minus it | verdict | minus AutoGluon (seeds) |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for outcome in outcomes:
        best, n = outcome.best(), len(outcome.per_seed[0]["default"])
        peers = sum("autogluon" in losses for losses in outcome.per_seed)
        cells = [outcome.setting, f"{n:,}", str(len(outcome.per_seed)), f"{outcome.mean('default'):.4f}"]
        cells += [f"{title(best)} {outcome.mean(best):.4f}", in_words(outcome.behind(best)), verdict(outcome)]
        cells += [f"{in_words(outcome.behind('autogluon'))} ({peers})" if peers else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", *_losses(outcomes)]


def _losses(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the table of mean losses; of the members the best one."""
    names = list(dict.fromkeys(name for outcome in outcomes for name in outcome.per_seed[0] if name != "groups"))
    single = [name for name in names if not name.startswith(("member:", "scaled:")) and name not in PEERS]
    heads = [*(title(name) for name in single), "best member", "best member scaled", *(title(name) for name in PEERS)]
    lines = [f"| setting | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for outcome in outcomes:
        shown = [*single, outcome.best(("member:",)), outcome.best(("scaled:",)), *PEERS]
        means = [outcome.mean(name) for name in shown]
        cells = ["" if np.isnan(mean) else f"{mean:.4f}" for mean in means]
        lines.append(f"| {outcome.setting} | {' | '.join(cells)} |")
    return lines
