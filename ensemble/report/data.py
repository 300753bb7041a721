"""A run folder -> the arrays that the report is made of. What a stage has not made yet is simply absent."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble.contamination import check
from ensemble.evaluation.run_table import truth_of
from ensemble.features.design_matrix import join_logits
from ensemble.stacking.stage import read_predictions
from oof.common.atomic_files import read_json, read_parquet, verified
from oof.common.errors import UserError
from oof.jobs.dataset import load_battles
from oof.metrics import softmax_mean

Probs = NDArray[np.float64]
BASELINES = ("prior", "length_only", "text")
STAGES = (*BASELINES, "mean", "stack", "calibrated", "student", "bayes")


@dataclass(frozen=True)
class RunData:
    """One run.

    Attributes:
        folder: the run folder.
        facts: ``run.json``: config, versions, hardware.
        table: (n) scored battles.
        labels, groups, folds: (n,) in the table's order.
        logits: member -> (n, 2, 3) out-of-fold logits.
        student_logits: (n, 2, 3) of the fold students, if there are any.
        probs: predictor -> (n, 3): members by their name, and those of ``STAGES`` that exist.
        manifests: step -> its manifest ({} where the step is missing).
        jobs: member or "student" -> facts of its fold jobs, as their ``job.json`` have them.
        seen: (n,) is the prompt in a corpus? None without ``seen``.
    """

    folder: Path
    facts: dict[str, Any]
    table: pl.DataFrame
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    folds: NDArray[np.int64]
    logits: dict[str, NDArray[np.float32]]
    probs: dict[str, Probs]
    student_logits: NDArray[np.float32] | None = None
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)
    jobs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    seen: NDArray[np.bool_] | None = None

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def members(self) -> list[str]:
        return list(self.logits)

    @property
    def predictors(self) -> list[str]:
        """The predictors of the summary, from prior to student, then Bayes."""
        stages = [name for name in STAGES if name in self.probs]
        return [*(n for n in stages if n in BASELINES), *self.members, *(n for n in stages if n not in BASELINES)]

    @property
    def seed(self) -> int:
        return int(self.facts.get("config", {}).get("seed", 0))

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.facts.get("config", {}))

    def step(self, name: str) -> dict[str, Any]:
        return self.manifests.get(name, {})


def load_run(folder: Path) -> RunData:
    """Return what a run folder holds.

    Raises:
        UserError: stage one has not finished there, or a file does not cover the run's battles.
    """
    table = load_battles(folder).filter(pl.col("role") == "train")
    if not (folder / "run.json").is_file():
        raise UserError(f"{folder}: no finished stage one here; run 'make oof' with this RUN first")
    facts = read_json(folder / "run.json")
    ids = table["id"]
    logits = {name: _logits(folder / "oof" / name / "logits.parquet", ids) for name in _members(folder, facts)}
    probs = {name: softmax_mean(values) for name, values in logits.items()}
    for path in (folder / "stack" / "predictions.parquet", folder / "distill" / "predictions.parquet"):
        if path.is_file():
            found = read_predictions(verified(path, "manifest.json", f"make {path.parent.name}"), ids)
            probs |= {name: p for name, p in found.items() if not name.startswith("member:")}
    truth = truth_of(folder, ids)
    if truth is not None:
        probs["bayes"] = truth
    labels, groups, folds = (table[name].to_numpy().astype(np.int64) for name in ("label", "group", "fold"))
    student = folder / "distill" / "logits.parquet"
    steps = {"battles": "battles.json", "stack": "stack/manifest.json", "distill": "distill/manifest.json"}
    steps |= {
        "scores": "stack/scores.json",
        "ablations": "stack/ablations.json",
        "metrics": "metrics.json",
        "submission": "submission.json",
    }
    return RunData(
        folder=folder,
        facts=facts,
        table=table,
        labels=labels,
        groups=groups,
        folds=folds,
        logits=logits,
        probs=probs,
        student_logits=_logits(student, ids) if student.is_file() else None,
        manifests={name: _json(folder / path) for name, path in steps.items()},
        jobs={name: _jobs(folder / "oof" / name) for name in logits} | {"student": _jobs(folder / "distill")},
        seen=check.read_seen(folder, ids),
    )


def _members(folder: Path, facts: dict[str, Any]) -> list[str]:
    named = list(facts.get("config", {}).get("members", {}))
    found = [name for name in named if (folder / "oof" / name / "logits.parquet").is_file()]
    if not found:
        raise UserError(f"{folder / 'oof'}: no member has out-of-fold logits; run 'make oof' with this RUN first")
    return found


def _logits(path: Path, ids: pl.Series) -> NDArray[np.float32]:
    student = path.parent.name == "distill"
    verified(path, *(("manifest.json", "make distill") if student else ("member.json", "make oof")))
    try:
        return join_logits(ids.to_list(), read_parquet(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    found = read_json(path) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def _jobs(folder: Path) -> list[dict[str, Any]]:
    jobs = [_json(path) | {"folder": path.parent.name} for path in sorted(folder.glob("*/job.json"))]
    return [job for job in jobs if len(job) > 1]


def trials(journal: Path) -> list[float]:
    """Return the values of a study's complete trials, in order, from an Optuna journal (one JSON object a line)."""
    values: dict[int, float] = {}
    for line in journal.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # a line that a kill tore
        if entry.get("op_code") == 6 and entry.get("state") == 1 and entry.get("values"):
            values[int(entry["trial_id"])] = float(entry["values"][0])
    return [values[trial] for trial in sorted(values)]
