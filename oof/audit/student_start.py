"""Audit of the weights that students start from: none was trained on a battle of the fold that the student predicts.

With ``distill.start: member``, the manifest of a student names the fold jobs that its first weights come from. A start
from an earlier version of a fold job is left out: that job's list of training battles is gone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from oof.audit.findings import Finding, read_columns
from oof.common.atomic_files import read_json
from oof.common.errors import UserError

NAME = "starts of fold students"


def audit_student_starts(run: Path, table: pl.DataFrame) -> list[Finding]:
    """Return the finding about the fold students' first weights; none where they start from their base.

    Args:
        run: the run folder.
        table: id, role, group and fold of the run's battles.
    """
    n_starts, faults = 0, []
    try:
        for path in sorted((run / "distill").glob("fold-*/job.json")):
            student = read_json(path)
            for start in student.get("start", []):
                n_starts += 1
                faults += _faults(run, table, student, start)
    except (UserError, KeyError, TypeError, AttributeError) as error:
        return [Finding(NAME, "violated", f"a student's manifest is damaged ({error})")]
    if faults:
        message = f"{len(faults):,} fold students started from weights that had seen their fold"
        return [Finding(NAME, "violated", message, tuple(faults[:3]))]
    message = f"{n_starts:,} fold students, none from a fold job that trained on a group of the student's fold"
    return [Finding(NAME, "ok", message)] if n_starts else []


def _faults(run: Path, table: pl.DataFrame, student: dict[str, Any], start: dict[str, Any]) -> list[str]:
    job = run / "oof" / start["member"] / f"fold-{start['fold']}"
    if not (job / "job.json").is_file() or read_json(job / "job.json").get("key") != start["key"]:
        return []
    trained = table.join(read_columns(job / "trained.parquet", ("id",)), on="id", how="semi")
    held_out = table.filter((pl.col("role") == "train") & (pl.col("fold") == student["fold"]))
    seen = held_out.join(trained.select("group").unique(), on="group", how="semi")["id"].sort()
    place = f"student fold {student['fold']} started from {job.parent.name}/{job.name}"
    return [f"{place}, which trained on the group of {seen[0]}"] if len(seen) else []
