"""Prediction of new battles by a cascade: level by level, in pieces, within a budget or a time.

The first level scores every battle. At each step the battles whose score is above the threshold go on, those with the
highest score first. A **budget** is counted in the run's measured costs: where more battles want to go on than it
pays for, those with the lowest scores stay. A **time** is watched before every piece: from the seconds so far, the next
piece is predicted, and work stops before a piece that would not fit, so that the limit is overrun by no more than one
piece. The battles left behind keep the answer of their level; there is one for all, at worst the class shares.

Each decision is stored before the work that follows from it: the policy in ``policy.json``, each piece that is begun
in ``decisions.json``. A killed prediction thus continues to the same submission.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble.cascade.levels import LevelFunctions
from ensemble.cascade.policy import Levels, Policy
from ensemble.cascade.policy_choice import Candidates, Choice, unused
from ensemble.cascade.request import Request, with_thresholds
from ensemble.cascade.state import SECONDS, State, StoredBattles
from ensemble.cascade.work import Models
from oof.classes import WINNER_COLUMNS
from oof.common.atomic_files import read_json, read_parquet, write_json, write_parquet
from oof.common.errors import UserError
from oof.common.progress import duration

logger = logging.getLogger(__name__)

POLICY, DECISIONS, CALLS = "policy.json", "decisions.json", "calls.json"


@dataclass
class Cascade:
    """A cascade at work on new battles.

    Attributes:
        request: what was asked for.
        levels: of the run, with their measured costs.
        fitted: gives the levels' functions and the policies to choose from; called only where no policy is stored.
        prior: (3,) class shares of the run's battles.
        models: that score.
        folder: of the files.
        rows: battles of a piece.
        clock: seconds.
        started: by the clock, when the command began; None = when it predicts.
    """

    request: Request
    levels: Levels
    fitted: Callable[[], tuple[LevelFunctions, Candidates]]
    prior: NDArray[np.float64]
    models: Models
    folder: Path
    rows: int
    clock: Callable[[], float]
    started: float | None = None
    _prepared: float = 0.0  # seconds of all calls before their first piece
    _each: dict[int, float] = field(default_factory=dict)  # step -> expected seconds of a battle
    _state: State = field(init=False)
    _battles: StoredBattles = field(init=False)
    _mark: float = field(init=False)  # when the seconds of the piece in progress began

    def predict(self, tables: Iterable[pl.DataFrame]) -> tuple[list[Path], dict[str, Any]]:
        """Return files with id and probabilities, one for each table, and what the manifest tells about them.

        Raises:
            UserError: the time or the budget is too small for the cheapest level.
        """
        started = self.clock() if self.started is None else self.started
        self._battles = StoredBattles.store(self.folder, tables)
        path = self.folder / CALLS
        self._mark = self.clock()
        calls = [*(read_json(path) if path.is_file() else []), self._mark - started]
        write_json(path, calls)
        self._prepared = sum(calls)
        n = len(self._battles)
        self._state = State.empty(n, self.levels.work[-1])
        answers, ended = np.tile(self.prior, (n, 1)), np.full(n, -1)
        reached = np.arange(n)
        if self.request.seconds is not None:  # how much the rest of the time pays for depends on the speed
            reached = self._step(0, (0,), reached)
            functions, policy = self._policy()
        else:
            functions, policy = self._policy()
            reached = self._step(0, policy.chain, reached)
        for step, level in enumerate(policy.chain):
            output = functions.output(self.levels.names[level], self._state.scored(reached))
            answers[reached], ended[reached] = output.probs, level
            if step < len(policy.thresholds):
                scores = policy.scores(step, output)
                above = scores > policy.thresholds[step]
                highest_first = np.argsort(-scores[above], kind="stable")
                reached = self._step(step + 1, policy.chain, reached[above][highest_first])
        return self._parts(answers), {"cascade": self._summary(policy, ended)}

    def _policy(self) -> tuple[LevelFunctions, Policy]:
        """Return the levels' functions and the policy, as stored; they are chosen and stored first if need be."""
        path = self.folder / POLICY
        if not path.is_file():
            functions, candidates = self.fitted()
            write_json(path, {**functions.to_dict(), **self._chosen(candidates)})
        saved = read_json(path)
        choice = saved.get("choice")
        if choice and (words := unused(choice["cost"], choice["budget"])):
            logger.info("cascade: %s", words)
        return LevelFunctions.from_dict(saved), Policy.from_dict(saved["policy"], self.levels)

    def _chosen(self, candidates: Candidates) -> dict[str, Any]:
        """Return the policy, and why it was chosen where the request left a choice."""
        if self.request.thresholds:
            policy = with_thresholds(self.request, candidates.frontiers, self.levels)
            return {"policy": policy.to_dict(self.levels)}
        choice = self._choice(candidates)
        return {"policy": choice.policy.to_dict(self.levels), "choice": choice.to_dict()}

    def _choice(self, candidates: Candidates) -> Choice:
        if self.request.budget is not None:
            return candidates.choose(self.request.budget)
        assert self.request.seconds is not None
        ensemble = self.levels.seconds_of([len(self.levels.names) - 1]) * self._factor()
        left = max(self.request.seconds - self._elapsed(), 0.0)
        share = self.levels.cost((0,)) + left / (ensemble * len(self._battles))
        return candidates.choose(share, first=0)

    def _step(self, step: int, chain: Sequence[int], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Score battles by level ``chain[step]``, the first ones first, as far as it is paid for; return those."""
        level = chain[step]
        self._each[step] = self.levels.seconds_of(chain[: step + 1]) - self.levels.seconds_of(chain[:step])
        if self.request.budget is not None:
            rows = rows[: self._affordable(step)]
        reached = [np.empty(0, dtype=np.int64)]
        for piece, start in enumerate(range(0, len(rows), self.rows)):
            own = np.sort(rows[start : start + self.rows])
            path = self.folder / f"step-{step}-{piece:06}.parquet"
            if not path.is_file():
                if not self._begins(step, piece, len(own), len(rows) - start):
                    break
                name, units = self.levels.names[level], self.levels.work[level]
                frame = self._state.work(self.models, name, units, own, self._battles.take(own))
                now = self.clock()
                write_parquet(path, frame.with_columns(pl.lit(now - self._mark).alias(SECONDS)))
                self._mark = now
            reached.append(self._state.read(path, step))
        done = np.concatenate(reached)
        logger.info("cascade: %s: %s of %s battles", self.levels.names[level], f"{len(done):,}", f"{len(rows):,}")
        return done

    def _affordable(self, step: int) -> int:
        """Return how many battles the rest of the budget pays for."""
        assert self.request.budget is not None
        total = self.request.budget * len(self._battles) * self.levels.seconds_of([len(self.levels.names) - 1])
        return int((total - self._expected()) / self._each[step] + 1e-6)

    def _begins(self, step: int, piece: int, n: int, n_left: int) -> bool:
        """Return whether the time allows for a piece of n battles, and store that it begins.

        Raises:
            UserError: the time is too short for the cheapest level, as its first pieces show.
        """
        limit = self.request.seconds
        if limit is None:
            return True
        path = self.folder / DECISIONS
        begun: dict[str, int] = read_json(path) if path.is_file() else {}
        if piece < begun.get(str(step), 0):  # by a call that was killed
            return True
        elapsed, each = self._elapsed(), self._each[step] * self._factor(step)
        needed = elapsed + each * (n_left if step == 0 and piece == 2 else n)
        if needed > limit and (step or piece):
            if step == 0 and piece <= 2:
                raise UserError(
                    f"predict.cascade.time={limit:.0f}s is too short: one order of the student needs about "
                    f"{duration(elapsed + each * n_left)} for {len(self._battles):,} battles; give more time"
                )
            logger.warning("cascade: the time ends here; %s battles keep the answer of a cheaper level", f"{n_left:,}")
            return False
        write_json(path, {**begun, str(step): piece + 1})
        return True

    def _elapsed(self) -> float:
        return self._prepared + sum(self._state.spent.values()) + self.clock() - self._mark

    def _expected(self) -> float:
        """Return the seconds of all finished pieces by the run's measured costs."""
        return sum(self._each[step] * n for step, n in self._state.done.items())

    def _factor(self, step: int | None = None) -> float:
        """Return how many times longer work takes than the run's costs say: work of the step if there is any yet."""
        if step is not None and step in self._state.done:
            return self._state.rate(step) / self._each[step]
        expected = self._expected()
        return sum(self._state.spent.values()) / expected if expected else 1.0

    def _parts(self, answers: NDArray[np.float64]) -> list[Path]:
        paths, starts = [], self._battles.starts
        probs = answers / answers.sum(axis=1, keepdims=True)
        for i, (file, start, end) in enumerate(zip(self._battles.files, starts[:-1], starts[1:], strict=True)):
            columns = {name: probs[start:end, c] for c, name in enumerate(WINNER_COLUMNS)}
            paths.append(self.folder / f"part-{i:06}.parquet")
            write_parquet(paths[-1], pl.DataFrame({"id": read_parquet(file)["id"], **columns}))
        return paths

    def _summary(self, policy: Policy, ended: NDArray[np.int64]) -> dict[str, Any]:
        """Return the policy and its reasons, the share of battles that ended at each level, cost and seconds."""
        shares = {name: float((ended == i).mean()) for i, name in enumerate(self.levels.names)}
        cost = self._expected() / (len(ended) * self.levels.seconds_of([len(self.levels.names) - 1]))
        chosen = {name: value for name, value in policy.to_dict(self.levels).items() if name != "gains"}
        if "choice" in (saved := read_json(self.folder / POLICY)):
            chosen["choice"] = saved["choice"]
        return {**chosen, "shares": shares, "cost": cost, "seconds": self._elapsed()}
