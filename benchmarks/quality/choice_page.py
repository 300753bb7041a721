"""Tables of ``benchmarks/quality/choice.py``: the default against the best candidate and AutoGluon; all losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble.statistics.bootstrap import Interval, group_interval
from ensemble.statistics.interval_words import above_zero, below_zero, in_words
from ensemble.statistics.standard_errors import half_width
from oof.common.atomic_files import read_json, write_json

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


@dataclass(frozen=True)
class Row:
    """What the page says of a setting, and the commit that measured it.

    ``losses``: title -> mean loss over seeds; ``behind`` and ``against``: the default minus the best candidate and
    minus AutoGluon, the latter over ``peer_seeds`` seeds, if any.
    """

    setting: str
    battles: int
    seeds: int
    losses: dict[str, float]
    best: str
    behind: Interval
    verdict: str
    against: Interval | None
    peer_seeds: int
    commit: str


def row_of(outcome: Outcome, commit: str) -> Row:
    """Return a setting's row; of its members the best one."""
    names = [name for name in outcome.per_seed[0] if name != "groups" and name not in PEERS]
    single = [name for name in names if not name.startswith(("member:", "scaled:"))]
    shown = {title(name): name for name in single}
    shown |= {"best member": outcome.best(("member:",)), "best member scaled": outcome.best(("scaled:",))}
    shown |= {title(name): name for name in PEERS}
    means = {heading: outcome.mean(name) for heading, name in shown.items()}
    peers = sum("autogluon" in losses for losses in outcome.per_seed)
    return Row(
        outcome.setting,
        len(outcome.per_seed[0]["default"]),
        len(outcome.per_seed),
        {heading: round(mean, 4) for heading, mean in means.items() if not np.isnan(mean)},
        title(outcome.best()),
        outcome.behind(outcome.best()),
        verdict(outcome),
        outcome.behind("autogluon") if peers else None,
        peers,
        commit,
    )


def merged(path: Path, rows: Sequence[Row], order: Sequence[str]) -> list[Row]:
    """Return the rows of a file and, in place of those of the same setting, ``rows``; keep them all in the file."""
    stored = [Row(**row) for row in read_json(path)] if path.is_file() else []
    known = {row.setting: row for row in [*stored, *rows]}
    all_rows = [known[setting] for setting in order if setting in known]
    write_json(path, [asdict(row) for row in all_rows])
    return all_rows


def summary(rows: Sequence[Row]) -> list[str]:
    """Return how many settings have which verdict."""
    good = sum("**" not in row.verdict for row in rows)
    against = [row.against for row in rows if row.against]
    better, worse = sum(map(below_zero, against)), sum(map(above_zero, against))
    return [
        f"In {good} of {len(rows)} settings the default is within {TOLERANCE} of the best candidate (known "
        "afterwards only) or not significantly behind it, and behind neither lengths nor TF-IDF beyond noise.",
        f"Beside AutoGluon it is better beyond noise in {better} of {len(against)} settings and worse in {worse}.",
        "",
        f"Intervals (95 %) are over seeds. Where there are fewer than {ENOUGH_SEEDS} seeds, or all have the same "
        "battles (real verdicts) and differ in their folds alone, they are over groups of battles.",
        "",
    ]


def page(rows: Sequence[Row]) -> list[str]:
    """Return the Markdown tables of the settings that have been measured."""
    lines = summary(rows)
    lines += ["| setting | battles | seeds | default | best candidate | minus it | verdict | minus AutoGluon (seeds) |"]
    lines[-1] += " commit |"
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        cells = [row.setting, f"{row.battles:,}", str(row.seeds), f"{row.losses['default']:.4f}"]
        cells += [f"{row.best} {_loss(row, row.best)}".strip(), in_words(row.behind), row.verdict]
        cells += [f"{in_words(row.against)} ({row.peer_seeds})" if row.against else "", row.commit]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", *_losses(rows)]


def _loss(row: Row, heading: str) -> str:
    return f"{row.losses[heading]:.4f}" if heading in row.losses else ""


def _losses(rows: Sequence[Row]) -> list[str]:
    """Return the table of mean losses."""
    first, last = ["default", "uncalibrated"], ["best member", "best member scaled", *map(title, PEERS)]
    others = dict.fromkeys(heading for row in rows for heading in row.losses if heading not in first + last)
    headings = [*first, *others, *last]
    lines = [f"| setting | {' | '.join(headings)} |", f"|---|{'---|' * len(headings)}"]
    return lines + [f"| {row.setting} | {' | '.join(_loss(row, heading) for heading in headings)} |" for row in rows]
