"""Levels of a run's cascade and their predictions, from whatever work on the battles has been done.

* ``one_order``: the student in the order ab, calibrated with the position bias that one order has.
* ``student``: the mean of both orders, exactly as the student predicts on its own.
* ``student+MEMBER``, ``student+MEMBER+MEMBER``, …: log-linear pools of the student and the cheapest members.
* ``ensemble``: all members and their stack, exactly as ``predict.model=ensemble`` predicts, without the student.

A level is one function of the logits. It is fitted on out-of-fold logits and called on those of new battles, where a
member's are the mean of its fold jobs on one scale, as the stack reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ensemble.cascade.policy import AB, BA, ENSEMBLE, ONE_ORDER, STUDENT, Levels
from ensemble.cascade.scores import Output
from ensemble.stacking.calibration import Calibrator, fit_calibrator
from ensemble.stacking.log_pool import fit_pool, pool_logits
from oof.metrics import Floats, Integers, log_softmax, mean_of_orders, softmax


@dataclass(frozen=True)
class Scored:
    """Logits of n battles, as far as they have been scored.

    Attributes:
        student: (n, 2, 3) logits as the exported student gives them; NaN in the order ba where it has not run.
        members: (n, 2, 3) logits of each member that has run, on one scale.
        ensemble: (n, 3) probabilities of the stack, where it has run.
    """

    student: NDArray[np.float64]
    members: Mapping[str, Floats] = field(default_factory=dict)
    ensemble: NDArray[np.float64] | None = None

    def take(self, rows: NDArray[Any]) -> Scored:
        """Return the logits of some of the battles."""
        members = {name: values[rows] for name, values in self.members.items()}
        return Scored(self.student[rows], members, None if self.ensemble is None else self.ensemble[rows])


def levels_of(seconds: Mapping[str, float]) -> Levels:
    """Return the levels, given the seconds of each piece of work: both orders of the student, and every member."""
    members = sorted((name for name in seconds if name not in (AB, BA)), key=lambda name: seconds[name])
    names, work = [ONE_ORDER, STUDENT], [(AB,), (AB, BA)]
    for n in range(1, len(members)):
        names.append("+".join([STUDENT, *members[:n]]))
        work.append((AB, BA, *members[:n]))
    return Levels((*names, ENSEMBLE), (*work, tuple(members)), dict(seconds))


@dataclass(frozen=True)
class LevelFunctions:
    """The fitted functions of all levels.

    Attributes:
        one_order: calibrator of the order ab.
        pools: level -> weights of the student and its members, and the tie term.
    """

    one_order: Calibrator
    pools: Mapping[str, Sequence[float]]

    @classmethod
    def fit(cls, levels: Levels, scored: Scored, labels: Integers, groups: Integers, seed: int) -> Self:
        """Fit on the out-of-fold logits of n battles.

        Args:
            levels: of :func:`levels_of`.
            scored: all work done.
            labels: (n,).
            groups: (n,).
            seed: of the calibrator.
        """
        ab = scored.student[:, 0]
        one_order = fit_calibrator("vector", "position", ab, labels, groups, seed, one_order=True)
        pools = {name: fit_pool(_pool(name, scored), labels).tolist() for name in levels.names[2:-1]}
        return cls(one_order, pools)

    def output(self, name: str, scored: Scored) -> Output:
        """Return what a level says about n battles; the work that it reads must have been done."""
        if name == ONE_ORDER:
            return Output(self.one_order.apply(scored.student[:, 0]))
        if name == STUDENT:
            return Output(softmax(mean_of_orders(scored.student)), _largest_difference(scored.student))
        if name == ENSEMBLE:
            assert scored.ensemble is not None
            return Output(scored.ensemble)
        pool, parameters = _pool(name, scored), np.asarray(self.pools[name])
        probs = softmax(pool_logits(pool, parameters[:-1], float(parameters[-1])))
        return Output(probs, _largest_difference(pool))

    def to_dict(self) -> dict[str, Any]:
        """Return the parameters for a JSON file."""
        return {"one_order": self.one_order.to_dict(), "pools": dict(self.pools)}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """Return the functions of :meth:`to_dict`."""
        return cls(Calibrator.from_dict(saved["one_order"]), saved["pools"])


def _pool(name: str, scored: Scored) -> NDArray[np.float64]:
    """Return (n, m, 3) centred log-probabilities of the student and the members that a level's name has."""
    members = [scored.members[member] for member in name.split("+")[1:]]
    log_p = np.stack([log_softmax(mean_of_orders(values)) for values in (scored.student, *members)], axis=1)
    return np.asarray(log_p - log_p.mean(axis=-1, keepdims=True))


def _largest_difference(logits: Floats) -> NDArray[np.float64]:
    """Return (n,) the largest difference of a log-probability between m >= 2 predictions, (n, m, 3)."""
    return np.asarray(np.ptp(log_softmax(logits), axis=1).max(axis=1))
