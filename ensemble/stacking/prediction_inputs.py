"""Inputs of prediction from logits that were made elsewhere (``stack.test_logits``): one file a member.

The files have the format of ``stack.logits``. Several rows of a battle, told apart by a column ``fold``, are logits of
several fold jobs and are averaged, as a run averages those of its own jobs: where they are the fold jobs of
``stack.logits``, each is brought to the average scale first.

Guarantee: every member predicts the same battles, each once. Battles that the stack learned from are refused: their
predictions would be in-sample.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from ensemble.features.design_matrix import join_logits
from ensemble.stacking.inputs import Inputs, read_logits
from ensemble.stacking.job_scales import JobScales
from oof.common.errors import UserError
from oof.common.logits_format import LOGIT_COLUMNS
from oof.config import Config
from oof.metrics import log_softmax, mean_of_orders

logger = logging.getLogger(__name__)

FEWEST_COMPARED = 30  # battles from which two members' files are compared by the spread of their logits
SWAP_GAIN = 0.5  # sum of log ratios of spreads by which another assignment of files must fit better

Logits = Mapping[str, NDArray[np.float32]]  # member -> (n, 2, 3)


@dataclass(frozen=True)
class MemberLogits:
    """Logits of the test battles.

    Attributes:
        ids: (n,) in the order of the first member's file.
        logits: member -> (n, 2, 3), in the order of ``stack.logits``; of several fold jobs the plain mean.
        jobs: member -> fold -> (n, 2, 3), for members whose file has rows of each fold job of ``stack.logits``.
        file: the first member's, for messages.
    """

    ids: pl.Series
    logits: dict[str, NDArray[np.float32]]
    jobs: dict[str, dict[int, NDArray[np.float32]]]
    file: str

    def averaged(self, scales: JobScales, rows: NDArray[np.integer]) -> dict[str, NDArray[np.floating]]:
        """Return member -> (m, 2, 3) logits of m battles, those of fold jobs averaged on one scale.

        Args:
            scales: constants of the fold jobs.
            rows: (m,) positions in ``ids``.
        """
        logits: dict[str, NDArray[np.floating]] = {name: values[rows] for name, values in self.logits.items()}
        for name, jobs in self.jobs.items():
            logits[name] = scales.mean_over_jobs(name, {fold: values[rows] for fold, values in jobs.items()})
        return logits


def read_test_logits(config: Config, inputs: Inputs) -> MemberLogits:
    """Return the logits of ``stack.test_logits``.

    Args:
        config: of the command.
        inputs: what the stack was or will be fitted on.

    Raises:
        UserError: the members are not those of ``stack.logits``, a file cannot be read, the files hold different
            battles, or they are those of ``stack.logits``.
    """
    paths = test_logits_paths(config)
    files, frames = {}, {}
    for name, path in paths.items():
        files[name] = file = read_logits(path, config.data.ties)
        frames[name] = one_row_a_battle(path, file.frame)
        n = frames[name].height
        several = f", several rows a battle averaged: {n:,} battles" if n < file.frame.height else ""
        logger.info("test logits of %s: %s: %s%s", name, path, file.description, several)
        if several and inputs.fold_jobs:
            _log_scale(path, file.frame["fold"].unique().sort().to_list(), inputs.fold_jobs)
    first = next(iter(frames))
    ids = frames[first]["id"]
    for name, frame in frames.items():
        refuse_other_ids(ids, frame["id"], paths[first], paths[name])
    used = {name: frame for name, frame in frames.items() if name in inputs.logits}  # stack.strict may leave some out
    logits = {name: join_logits(ids.to_list(), frame, paths[name]) for name, frame in used.items()}
    jobs = {name: logits_by_job(files[name].frame, ids, inputs.fold_jobs) for name in used}
    test = MemberLogits(ids, logits, {name: by_job for name, by_job in jobs.items() if by_job}, paths[first])
    _refuse_equal_members(test.logits, inputs.logits, paths)
    _refuse_training_battles(test, inputs, paths)
    _warn_of_other_orders(test.logits, inputs.logits)
    _warn_of_swapped_files(test.logits, inputs.logits, paths)
    return test


def test_logits_paths(config: Config) -> dict[str, str]:
    """Return member -> file of its test logits, in the order of ``stack.logits``.

    Raises:
        UserError: the members are not those of ``stack.logits``.
    """
    given, needed = config.stack.test_logits, config.stack.logits
    form = " ".join(f"{name}=FILE" for name in needed)
    if not given:
        raise UserError(
            f"{config.run}: stacks logits that were made elsewhere, so it needs the members' logits of the test "
            f'battles, too: set stack.test_logits (TEST_LOGITS="{form}")'
        )
    if given.keys() != needed.keys():
        raise UserError(
            f"stack.test_logits names {', '.join(given)}, but the members are {', '.join(needed)}; "
            f'give one file to each: TEST_LOGITS="{form}"'
        )
    return {name: given[name] for name in needed}


def one_row_a_battle(path: str, frame: pl.DataFrame) -> pl.DataFrame:
    """Return a battle's only row, or the mean of its rows of several fold jobs, in the order of first occurrence.

    Args:
        path: of the file, for messages.
        frame: in the open logits format, with or without ``fold``.

    Raises:
        UserError: an id is repeated without a fold job of its own for each row, or lacks one.
    """
    keys = ["id", "fold"] if "fold" in frame.columns else ["id"]
    repeated = frame.filter(frame.select(keys).is_duplicated())["id"].unique(maintain_order=True)
    if len(repeated):
        same = " and fold" if len(keys) > 1 else ""
        raise UserError(
            f"{path}: {_named(repeated, 'ids')} occur more than once with the same id{same}; give each battle one row, "
            "or number the fold jobs of its rows in a column 'fold'"
        )
    if len(keys) == 1:
        return frame
    mean = frame.group_by("id", maintain_order=True).agg(pl.col(LOGIT_COLUMNS).cast(pl.Float64).mean(), rows=pl.len())
    n_jobs = int(mean["rows"].to_numpy().max(initial=0))
    fewer = mean.filter(pl.col("rows") != n_jobs)["id"]
    if len(fewer):
        raise UserError(
            f"{path}: {_named(fewer, 'battles')} have fewer rows than the {n_jobs} of others; each fold job must "
            "predict every test battle"
        )
    return mean.drop("rows")


def logits_by_job(frame: pl.DataFrame, ids: pl.Series, fold_jobs: Sequence[int]) -> dict[int, NDArray[np.float32]]:
    """Return fold -> (n, 2, 3) logits of each fold job; {} unless the jobs of the file's rows are these.

    Args:
        frame: in the open logits format, in any order; as :func:`one_row_a_battle` accepts it.
        ids: (n,) of the battles.
        fold_jobs: (k,) numbers in files of folds 0..k-1.
    """
    if "fold" not in frame.columns or sorted(frame["fold"].unique()) != list(fold_jobs):
        return {}
    by_job = frame.partition_by("fold", as_dict=True)
    if any(of_job.height != len(ids) for of_job in by_job.values()):
        return {}  # each battle is by the one job that held it out
    return {i: join_logits(ids.to_list(), by_job[(number,)]) for i, number in enumerate(fold_jobs)}


def _log_scale(path: str, fold_jobs: Sequence[int], known: Sequence[int]) -> None:
    """Log whether a file's fold jobs are those of ``stack.logits``, so that their scales are known."""
    if list(fold_jobs) == list(known):
        logger.info("%s: each fold job is brought to the average scale before the mean", path)
        return
    ours, theirs = (", ".join(map(str, numbers)) for numbers in (known, fold_jobs))
    logger.warning(
        "%s: fold jobs %s are averaged as they are, because those of stack.logits are %s; number them alike", path,
        theirs, ours,
    )  # fmt: skip


def refuse_other_ids(expected: pl.Series, given: pl.Series, first: str, second: str) -> None:
    """Refuse a file that does not have the expected ids, in any order.

    Args:
        expected: (n,) ids of ``first``.
        given: (m,) ids of ``second``.
        first: file, for messages.
        second: file.

    Raises:
        UserError: counts the missing and the surplus ids and names the first ones.
    """
    missing, surplus = expected.filter(~expected.is_in(given.implode())), given.filter(~given.is_in(expected.implode()))
    if not len(missing) and not len(surplus):
        return
    parts = [f"{second} lacks {_named(missing, 'ids')}"] * bool(len(missing))
    parts += [f"{second} has {_named(surplus, 'ids')} that {first} does not have"] * bool(len(surplus))
    raise UserError(f"{first} and {second} hold different test battles: {'; '.join(parts)}; both need the same ids")


def _named(ids: pl.Series, what: str) -> str:
    """Return the number of ids and the first ones, in words."""
    return f"{len(ids):,} {what} ({', '.join(ids.head(3))}{', …' if len(ids) > 3 else ''})"


def _refuse_equal_members(test: Logits, train: Logits, paths: Mapping[str, str]) -> None:
    """Refuse equal test logits of two members that differ in training: one file was named twice."""
    for one, other in combinations(test, 2):
        if np.array_equal(test[one], test[other]) and not np.array_equal(train[one], train[other]):
            raise UserError(
                f"stack.test_logits: {one} ({paths[one]}) and {other} ({paths[other]}) hold the same logits, but "
                "these members differ in stack.logits; name each member's own file"
            )


def _refuse_training_battles(test: MemberLogits, inputs: Inputs, paths: Mapping[str, str]) -> None:
    """Refuse the labelled battles as test battles, and warn of ids that only look like theirs.

    Two data sets may both count their battles from 0, so shared ids alone are no proof. Equal logits are one.
    """
    position = pl.DataFrame({"id": inputs.table["id"]}).with_row_index("train")
    shared = pl.DataFrame({"id": test.ids}).with_row_index("test").join(position, on="id", maintain_order="left")
    if not shared.height:
        return
    ours, theirs = shared["test"].to_numpy(), shared["train"].to_numpy()
    all_shared = shared.height == len(test.ids)
    same_set = all_shared and shared.height == inputs.table.height
    copied = [
        name
        for name, values in test.logits.items()
        if np.array_equal(values[ours], inputs.logits[name][theirs]) and len(np.unique(values[ours], axis=0)) > 1
    ]
    remedy = "name files of battles that have no verdict yet; out-of-fold ones are in RUN/stack/predictions.parquet"
    battles = f"{_named(shared['id'], 'ids')} of the test logits are ids of labelled battles (data.train)"
    if copied or same_set:
        proof = f", and the logits of {copied[0]} ({paths[copied[0]]}) are those of stack.logits" if copied else ""
        whole = ", which are all of them" if same_set else ""
        raise UserError(f"{battles}{whole}{proof}: the stack learned from their verdicts; {remedy}")
    sure = "all" if all_shared else "some"
    logger.warning(
        "%s; %s of the test battles. If they are the same battles, their predictions are in-sample: %s. If only the "
        "numbering is the same, all is well",
        battles, sure, remedy,
    )  # fmt: skip


def _warn_of_other_orders(test: Logits, train: Logits) -> None:
    for name in test:
        one_order = [bool((values[:, 0] == values[:, 1]).all()) for values in (train[name], test[name])]
        if one_order[0] != one_order[1]:
            first, second = ("one order" if one else "both orders" for one in one_order)
            logger.warning(
                "%s: logits of %s in stack.logits, of %s in stack.test_logits; what the stack learned about position "
                "and noise fits the former only",
                name, first, second,
            )  # fmt: skip


def _warn_of_swapped_files(test: Logits, train: Logits, paths: Mapping[str, str]) -> None:
    """Warn if other members' training logits resemble the test logits far more than the members' own do."""
    names = list(test)
    if len(names) < 2 or min(len(test[names[0]]), len(train[names[0]])) < FEWEST_COMPARED:
        return
    ours, theirs = (np.stack([_spread(logits[name]) for name in names]) for logits in (test, train))
    cost = np.abs(ours[:, None] - theirs).sum(axis=2)
    rows, best = linear_sum_assignment(cost)
    own, other = float(cost.trace()), float(cost[rows, best].sum())
    if own - other > SWAP_GAIN and own > 2 * other:
        pairs = [
            f"{paths[names[i]]} (given to {names[i]}) looks like {names[j]}"
            for i, j in zip(rows, best, strict=True)
            if i != j
        ]
        logger.warning("stack.test_logits: files may be swapped, by the spread of their logits: %s", ", ".join(pairs))


def _spread(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the logs of the margins' root mean square and of the tie logits' standard deviation."""
    centred = log_softmax(mean_of_orders(logits))
    centred = centred - centred.mean(axis=1, keepdims=True)
    margin = np.sqrt(np.mean((centred[:, 0] - centred[:, 1]) ** 2))
    return np.asarray(np.log(np.maximum([margin, centred[:, 2].std()], 1e-6)), dtype=np.float64)
