"""Data of a run folder, as the arrays that the report is computed from; results of missing stages are absent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble.contamination import check
from ensemble.evaluation.run_table import true_probabilities
from ensemble.features.battle_features import has_text
from ensemble.features.design_matrix import join_logits
from ensemble.stacking.stage import load_inputs, load_predictions, read_predictions
from oof.common.atomic_files import read_json, read_parquet, verified
from oof.common.errors import UserError
from oof.common.logits_format import COUNT_COLUMNS
from oof.config.load import to_dict
from oof.config.stored import load_for_run, stored_settings
from oof.jobs.dataset import load_battles
from oof.metrics import softmax_mean

Probs = NDArray[np.float64]
BASELINES = ("prior", "length_only", "text")
STAGES = (*BASELINES, "mean", "stack", "calibrated", "student", "bayes")
OUTCOMES = ("A wins", "B wins", "tie")  # names of the classes on the page, in class order
MANIFESTS = {
    "battles": "battles.json",
    "stack": "stack/manifest.json",
    "distill": "distill/manifest.json",
    "scores": "stack/scores.json",
    "ablations": "stack/ablations.json",
    "cascade": "cascade/curve.json",
    "abstention": "distill/student/abstention.json",
    "student_slices": "student_slices.json",
    "student_prompts": "distill/student/prompts.json",
}
OPTUNA_SET_STATE = 6  # operation code of an Optuna journal: a trial has ended
OPTUNA_COMPLETE = 1  # state of a trial that returned a value


@dataclass(frozen=True)
class RunData:
    """Data of one run.

    Attributes:
        folder: the run folder.
        record: content of ``run.json``: configuration, versions, hardware.
        table: (n) scored battles.
        labels: (n,) classes, in the table's order as all arrays.
        groups: (n,) group numbers.
        folds: (n,) fold numbers.
        logits: member -> (n, 2, 3) out-of-fold logits.
        probs: predictor -> (n, 3) out-of-fold probabilities: members by name, ``STAGES`` and combiners that exist.
        student_logits: (n, 2, 3) held-out logits of the fold students; None without stage three.
        manifests: step -> its manifest; {} if the step is missing.
        jobs: member or "student" -> contents of its jobs' ``job.json``, with the job's ``folder``.
        reads: member or "student" -> (n, 6) tokens of prompt, A and B, and how many of each it reads; absent where the
            files do not say so.
        in_corpus: (n,) whether the prompt is in a corpus; None without a contamination check.
    """

    folder: Path
    record: dict[str, Any]
    table: pl.DataFrame
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    folds: NDArray[np.int64]
    logits: dict[str, NDArray[np.float32]]
    probs: dict[str, Probs]
    student_logits: NDArray[np.float32] | None = None
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)
    jobs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    reads: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    in_corpus: NDArray[np.bool_] | None = None

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def members(self) -> list[str]:
        return list(self.logits)

    @property
    def predictors(self) -> list[str]:
        """The predictors of the summary in order: baselines, members, stages two and three, best possible."""
        stages = [name for name in STAGES if name in self.probs]
        return [*(n for n in stages if n in BASELINES), *self.members, *(n for n in stages if n not in BASELINES)]

    @property
    def has_text(self) -> bool:
        """Whether any battle has a text; logits that were made elsewhere may come with verdicts alone."""
        return has_text(self.table)

    @property
    def seed(self) -> int:
        return int(self.record.get("config", {}).get("seed", 0))

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.record.get("config", {}))

    @property
    def ties(self) -> bool:
        """Whether a battle can end in a tie."""
        return bool((self.config.get("data") or {}).get("ties", True))

    def step(self, name: str) -> dict[str, Any]:
        return self.manifests.get(name, {})


def load_run(folder: Path) -> RunData:
    """Read a run folder, or the files of ``stack.logits`` that it was made from.

    Raises:
        UserError: stage one has not finished there, or a file does not cover the run's battles.
    """
    own = _own_logits_run(folder)
    if own is not None:
        return own
    table = load_battles(folder, unlabelled=False).filter(pl.col("role") == "train")
    if not (folder / "run.json").is_file():
        raise UserError(f"{folder}: no finished stage one here; run 'make oof' with this RUN first")
    record = read_json(folder / "run.json")
    ids = table["id"]
    logits = {name: _logits(folder / "oof" / name / "logits.parquet", ids) for name in _members(folder, record)}
    probs = {name: softmax_mean(values) for name, values in logits.items()}
    for path in (folder / "stack" / "predictions.parquet", folder / "distill" / "predictions.parquet"):
        if path.is_file():
            predictions = read_predictions(verified(path, "manifest.json", f"make {path.parent.name}"), ids)
            probs |= {name: p for name, p in predictions.items() if not name.startswith("member:")}
    truth = true_probabilities(folder, ids)
    if truth is not None:
        probs["bayes"] = truth
    labels, groups, folds = (table[name].to_numpy().astype(np.int64) for name in ("label", "group", "fold"))
    student = folder / "distill" / "logits.parquet"
    reads = {name: tokens_read([folder / "oof" / name / "logits.parquet"], ids) for name in logits}
    reads["student"] = tokens_read(sorted(folder.glob("distill/fold-*/logits.parquet")), ids)
    return RunData(
        folder=folder,
        record=record,
        table=table,
        labels=labels,
        groups=groups,
        folds=folds,
        logits=logits,
        probs=probs,
        student_logits=_logits(student, ids) if student.is_file() else None,
        manifests={name: _json(folder / path) for name, path in MANIFESTS.items()},
        jobs={name: _jobs(folder / "oof" / name) for name in logits} | {"student": _jobs(folder / "distill")},
        reads={name: counts for name, counts in reads.items() if counts is not None},
        in_corpus=check.read_contaminated(folder, ids),
    )


def _own_logits_run(folder: Path) -> RunData | None:
    """Return the data of a run of ``stack.logits``, which has only stage two; None if the folder is none."""
    stored = stored_settings(folder)
    if stored is None or not (stored.get("stack") or {}).get("logits") or (folder / "run.json").is_file():
        return None
    with chdir("."):  # the paths start where the run was made
        config = load_for_run(None, [f"run={folder.absolute()}"])
        inputs = load_inputs(config)
        predictions = load_predictions(config, inputs)
    probs = {name: softmax_mean(values) for name, values in inputs.logits.items()}
    probs |= {name: p for name, p in predictions.items() if not name.startswith("member:")}
    return RunData(
        folder=folder,
        record={"config": to_dict(config)},
        table=inputs.table,
        labels=inputs.labels,
        groups=inputs.groups,
        folds=inputs.folds,
        logits=inputs.logits,
        probs=probs,
        manifests={name: _json(folder / path) for name, path in MANIFESTS.items()},
    )


def _members(folder: Path, record: dict[str, Any]) -> list[str]:
    """Return the members with out-of-fold logits, in the order of the configuration."""
    configured = list(record.get("config", {}).get("members", {}))
    members = [name for name in configured if (folder / "oof" / name / "logits.parquet").is_file()]
    if not members:
        raise UserError(f"{folder / 'oof'}: no member has out-of-fold logits; run 'make oof' with this RUN first")
    return members


def _logits(path: Path, ids: pl.Series) -> NDArray[np.float32]:
    student = path.parent.name == "distill"
    verified(path, *(("manifest.json", "make distill") if student else ("member.json", "make oof")))
    try:
        return join_logits(ids.to_list(), read_parquet(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def tokens_read(paths: Sequence[Path], ids: pl.Series) -> NDArray[np.int64] | None:
    """Return the (n, 6) ``COUNT_COLUMNS`` of n battles; None where the files do not have them for every battle."""
    frames = [read_parquet(path) for path in paths]
    if not frames or not all(set(COUNT_COLUMNS) <= set(frame.columns) for frame in frames):
        return None
    counts = pl.concat([frame.select("id", *COUNT_COLUMNS) for frame in frames])
    found = pl.DataFrame({"id": ids}).join(counts, on="id", how="left", maintain_order="left").select(COUNT_COLUMNS)
    complete = not any(found.null_count().row(0))
    return found.to_numpy().astype(np.int64) if complete else None


def _json(path: Path) -> dict[str, Any]:
    content = read_json(path) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def _jobs(folder: Path) -> list[dict[str, Any]]:
    jobs = [_json(path) | {"folder": path.parent.name} for path in sorted(folder.glob("*/job.json"))]
    return [job for job in jobs if len(job) > 1]


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return path -> value of a tree of dictionaries; a path joins the keys by dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def trial_values(journal: Path) -> list[float]:
    """Return the values of a study's completed trials, in order, from an Optuna journal (one JSON object a line)."""
    values: dict[int, float] = {}
    for line in journal.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # a kill may cut the last line short
        ended = entry.get("op_code") == OPTUNA_SET_STATE
        if ended and entry.get("state") == OPTUNA_COMPLETE and entry.get("values"):
            values[int(entry["trial_id"])] = float(entry["values"][0])
    return [values[trial] for trial in sorted(values)]
