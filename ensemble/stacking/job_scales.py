"""Bring the fold jobs of a member to one scale, without labels.

Each fold of out-of-fold logits comes from another model: the fold job that was trained without it. Jobs differ in how
far apart their logits of A and B lie and in where their logit of a tie lies, but a combiner reads one variable. So each
job's root mean square of the margins, mean of the tie logits and standard deviation of the tie logits are brought to
the average over the jobs of that member. The same constants are applied to each job's logits of new battles before
these are averaged over jobs.

A job's statistics come from the battles that it held out, so the jobs also differ by their samples, and by few groups
very much: battles of one debate may all be easy. The differences between jobs are therefore shrunk to zero by the
factor max(0, 1 - q / F). F compares them with their errors by groups, is about 1 where they are noise, and exceeds q by
noise alone in one case of twenty. James and Stein's factor has 1 in the place of q: it cost some loss with 40 groups
that differ, where jobs are alike, and gained no more where they are not.

Source: James & Stein, Estimation with quadratic loss, 1961 (the form of the factor).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtri

from ensemble.statistics.standard_errors import LEAST_GROUPS, LEVEL, effective_groups, standard_error
from oof.classes import TIE, A, B
from oof.metrics import Floats, Integers, mean_of_orders

SMALLEST_SPREAD = 1e-4  # relative to the mean's size: below, logits are constant but for their rounding to float32

Logits = Mapping[str, NDArray[np.floating[Any]]]  # member -> (n, 2, 3)


@dataclass(frozen=True)
class JobScale:
    """Constants of one fold job; the defaults change nothing.

    Attributes:
        margin: factor of the difference between the logits of A and B.
        tie: factor of the logit of a tie minus the mean of all three logits.
        shift: added to that product.
    """

    margin: float = 1.0
    tie: float = 1.0
    shift: float = 0.0

    def apply(self, logits: Floats) -> NDArray[np.float64]:
        """Return (..., 3) logits on the average scale; their mean stays, and swapping A and B swaps them exactly."""
        z = logits.astype(np.float64)
        margin, tie = _margin(z), _tie(z)
        half = (self.margin - 1) * margin / 2
        lift = (self.tie - 1) * tie + self.shift
        return np.stack([z[..., A] + (half - lift / 2), z[..., B] + (-half - lift / 2), z[..., TIE] + lift], axis=-1)


@dataclass(frozen=True)
class JobScales:
    """Constants of every fold job: member -> fold -> constants. Without members, nothing is changed."""

    members: Mapping[str, Mapping[int, JobScale]] = field(default_factory=dict)

    def out_of_fold(self, logits: Logits, folds: Integers) -> dict[str, NDArray[np.floating]]:
        """Return member -> (n, 2, 3) logits on the average scale, float32; those without constants stay as they are.

        Args:
            logits: of the same members, or of some of them.
            folds: (n,) row i is by the job that held out fold ``folds[i]``.
        """
        scaled: dict[str, NDArray[np.floating]] = dict(logits)
        for name in scaled.keys() & self.members.keys():
            values = logits[name].astype(np.float32)
            for fold, scale in self.members[name].items():
                rows = folds == fold
                values[rows] = scale.apply(logits[name][rows])
            scaled[name] = values
        return scaled

    def mean_over_jobs(self, name: str, jobs: Mapping[int, Floats]) -> NDArray[np.float32]:
        """Return the (n, 2, 3) mean of a member's fold jobs, fold -> (n, 2, 3), each on the average scale first."""
        scales = self.members.get(name, {})
        scaled = [scales.get(fold, JobScale()).apply(values) for fold, values in jobs.items()]
        return np.asarray(np.mean(scaled, axis=0), dtype=np.float32)

    def to_dict(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return the constants for a JSON file."""
        return {name: {str(fold): asdict(scale) for fold, scale in jobs.items()} for name, jobs in self.members.items()}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Self:
        """Return the constants of :meth:`to_dict`."""
        return cls({n: {int(fold): JobScale(**scale) for fold, scale in jobs.items()} for n, jobs in saved.items()})


def fit_job_scales(logits: Logits, folds: Integers, groups: Integers) -> JobScales:
    """Return the constants that bring each member's fold jobs to their average.

    Args:
        logits: member -> (n, 2, 3) out-of-fold logits; a member with some that are not finite has no constants.
        folds: (n,) the fold job that each row comes from.
        groups: (n,) battles that are not independent of each other.
    """
    finite = {name: values for name, values in logits.items() if np.isfinite(values).all()}
    return JobScales({name: _of_member(values, folds, groups) for name, values in finite.items()})


def _of_member(logits: Floats, folds: Integers, groups: Integers) -> dict[int, JobScale]:
    jobs = np.unique(folds).tolist()
    if len(jobs) < 2:
        return {fold: JobScale() for fold in jobs}
    statistics = [_statistics(logits[folds == fold], groups[folds == fold]) for fold in jobs]
    values, errors, effective = (np.stack(rows) for rows in zip(*statistics, strict=True))  # (k, 3), (k, 3), (k,)
    if effective.min() < LEAST_GROUPS:
        return {fold: JobScale() for fold in jobs}
    moves = _shrunk(values - values.mean(axis=0), np.square(errors), float((effective - 1).sum()))
    scales = {}
    for fold, (log_margin, log_tie, lift), centre in zip(jobs, moves.tolist(), values[:, 2].tolist(), strict=True):
        tie = float(np.exp(-log_tie))
        scales[fold] = JobScale(float(np.exp(-log_margin)), tie, (1 - tie) * centre - lift)
    return scales


def _shrunk(differences: NDArray[np.float64], variances: NDArray[np.float64], freedom: float) -> NDArray[np.float64]:
    """Return (k, 3) differences of k jobs from their average, each column shrunk to zero by its noise.

    Args:
        differences: (k, 3); NaN in the column of a statistic that some job lacks, which is 0 in the result.
        variances: (k, 3) of the jobs' own values.
        freedom: degrees of freedom of the variances.
    """
    noise = variances.sum(axis=0) - variances.mean(axis=0)  # the sum of the differences' variances
    squares = np.square(differences).sum(axis=0)
    limit = noise * fdtri(len(differences) - 1, freedom, LEVEL)
    sure = squares > limit  # false where either is NaN
    factor = np.zeros_like(noise)
    factor[sure] = 1 - limit[sure] / squares[sure]
    return np.asarray(np.where(sure, differences, 0.0) * factor)


def _statistics(logits: Floats, groups: Integers) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return (3,) statistics of a job's (n, 2, 3) logits, their standard errors by groups, and the effective groups.

    They are the logarithms of the margins' root mean square and of the tie logits' standard deviation, which are NaN
    where the logits are constant, and the mean of the tie logits. The errors are those of means of the rows' influence.
    """
    mean = mean_of_orders(logits)
    margin, tie = _margin(mean), _tie(mean)
    centre = float(tie.mean())
    values, influences = [], []
    for squares, smallest in ((np.square(margin), 0.0), (np.square(tie - centre), SMALLEST_SPREAD * abs(centre))):
        size = float(squares.mean())
        varies = np.sqrt(size) > smallest
        values.append(float(np.log(size) / 2) if varies else np.nan)
        influences.append((squares / size - 1) / 2 if varies else np.zeros_like(squares))
    errors = np.array([standard_error(influence, groups) for influence in (*influences, tie)])
    return np.array([*values, centre]), errors, effective_groups(np.unique(groups, return_counts=True)[1])


def _margin(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return logits[..., A] - logits[..., B]


def _tie(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each tie logit minus the mean of all three."""
    return np.asarray((2 * logits[..., TIE] - (logits[..., A] + logits[..., B])) / 3)
