"""Audit of extra battles: one fold job of each member holds each of them out, and no teacher trained on what it scored.

``RUN/teacher`` has the scores behind the students' targets. Scores by an earlier version of a fold job are left out, as
are those for ``distill.teacher: fold_matched``, which are in-sample by definition.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from oof.audit.findings import Finding, read_columns
from oof.common.atomic_files import read_json
from oof.common.errors import UserError

HELD_OUT, TEACHER = "extra battles held out", "teacher scores of extra battles"


def audit_extra_battles(run: Path, table: pl.DataFrame, k: int) -> list[Finding]:
    """Return the findings about the extra battles of a run; none if it has no such battles.

    Args:
        run: the run folder.
        table: id, role, weight, group and fold of the run's battles.
        k: number of folds.
    """
    extra = table.filter(pl.col("role") == "extra")
    if not extra.height:
        return []
    try:
        return [_held_out_once(run, extra, k), _scored_unseen(run, table)]
    except UserError as error:
        return [Finding(HELD_OUT, "violated", str(error))]


def _held_out_once(run: Path, extra: pl.DataFrame, k: int) -> Finding:
    """Check that of each member the job of an extra battle's fold, and no other, did not train on it."""
    faults: list[str] = []
    for job in _jobs(run, k):
        trained = read_columns(job / "trained.parquet", ("id",))
        inside = pl.col("fold") == int(job.name.removeprefix("fold-"))
        leaked = extra.filter(inside).join(trained, on="id", how="semi")
        missing = extra.filter(~inside & (pl.col("weight") > 0)).join(trained, on="id", how="anti")
        name = f"job {job.parent.name}/{job.name}"
        faults += [f"{name} trained on {battle}, which it should hold out" for battle in _ids(leaked)]
        faults += [f"{name} did not train on {battle}" for battle in _ids(missing)]
    if faults:
        message = f"{len(faults):,} times a fold job holds out other extra battles than those of its fold"
        return Finding(HELD_OUT, "violated", message, tuple(faults[:3]))
    n_free = extra.filter(pl.col("fold") < 0).height
    if n_free:
        message = f"{n_free:,} of {extra.height:,} are in no fold, as in runs made before extra battles had folds of"
        return Finding(HELD_OUT, "warning", f"{message} their own; a teacher's probabilities for them are in-sample")
    return Finding(HELD_OUT, "ok", f"each of {extra.height:,} is held out by one fold job of each member")


def _jobs(run: Path, k: int) -> list[Path]:
    """Return the folders of the fold jobs; those that are missing are another check's finding."""
    folders = [member / f"fold-{fold}" for member in sorted((run / "oof").glob("*")) for fold in range(k)]
    return [folder for folder in folders if folder.is_dir()]


def _scored_unseen(run: Path, table: pl.DataFrame) -> Finding:
    """Check that no teacher's model trained on the group of an extra battle that it scored."""
    n_scores, seen = 0, []
    for scores, trained in _teachers(run):
        scored = table.filter(pl.col("role") == "extra").join(read_columns(scores, ("id",)), on="id", how="semi")
        groups = table.join(read_columns(trained, ("id",)), on="id", how="semi").select("group").unique()
        n_scores += scored.height
        leaked = scored.join(groups, on="group", how="semi")
        job = scores.parent.relative_to(run)
        seen += [f"{battle} was scored by {job}, which trained on its group" for battle in _ids(leaked)]
    if seen:
        message = f"{len(seen):,} of {n_scores:,} scores are by a model that trained on the battle's group"
        return Finding(TEACHER, "violated", message, tuple(seen[:3]))
    return Finding(TEACHER, "ok", f"{n_scores:,} scores, each by a model that did not train on the battle's group")


def _teachers(run: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the scores of each finished teacher job, and the list of battles that its model trained on."""
    teacher = run / "teacher"
    for folder in (*sorted(teacher.glob("*/fold-*")), *sorted(teacher.glob("nested/*/without-*"))):
        nested = folder.name.startswith("without-")
        job = run / "oof" / folder.parent.name / ("fold-0" if nested else "-".join(folder.name.split("-")[:2]))
        if not (folder / "manifest.json").is_file() or not (job / "job.json").is_file():
            continue
        manifest = read_json(folder / "manifest.json")
        if manifest.get("fold_job") == read_json(job / "job.json").get("key") and manifest["teacher"] != "fold_matched":
            yield folder / "logits.parquet", (folder if nested else job) / "trained.parquet"


def _ids(rows: pl.DataFrame) -> list[str]:
    return rows["id"].sort().to_list()
