"""Audit of a member's out-of-fold predictions: each scored battle predicted once, by a job that did not train on it."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from oof.audit.findings import Finding, read_columns
from oof.common.atomic_files import read_json
from oof.common.digests import file_digest
from oof.common.errors import UserError
from oof.common.logits_format import LOGIT_COLUMNS

_COLUMNS = ("id", "fold", *LOGIT_COLUMNS)


def audit_member(folder: Path, table: pl.DataFrame, k: int) -> list[Finding]:
    """Return the findings about one member's predictions, ``RUN/oof/<member>``.

    Args:
        folder: of the member.
        table: id, role, group and fold of the run's battles of roles train, extra and unlabelled.
        k: number of folds.
    """
    name = f"predictions of {folder.name}"
    scored = table.filter(pl.col("role") == "train").select("id", "group", "fold")
    jobs = sorted(folder.glob("fold-*"))
    try:
        findings = [_audit_job(job, scored, table) for job in jobs]
        if jobs:
            of_jobs = pl.concat(
                [read_columns(job / "logits.parquet", _COLUMNS) for job in jobs], how="vertical_relaxed"
            )
            findings.append(_predicted_once(f"{name}, fold jobs", of_jobs, scored))
        else:
            message = "logits come from elsewhere, without fold jobs: their training battles cannot be checked"
            findings.append(Finding(name, "warning", message))
        joined = read_columns(folder / "logits.parquet", _COLUMNS)
        findings.append(_predicted_once(f"{name}, joined", joined, scored))
        if jobs:
            findings.append(_same_logits(f"{name}, joined", joined, of_jobs))
    except UserError as error:
        return [Finding(name, "violated", str(error))]
    absent = sorted(set(range(k)) - {_fold_of(job) for job in jobs})
    if jobs and (absent or len(jobs) != k):
        message = f"{len(jobs)} fold jobs for {k} folds"
        return [*findings, Finding(name, "violated", message, tuple(f"no fold-{fold}" for fold in absent[:3]))]
    return findings


def _audit_job(folder: Path, scored: pl.DataFrame, table: pl.DataFrame) -> Finding:
    """Check one fold job: it predicted its own fold, and trained on no battle of a group that it predicted."""
    name = f"job {folder.parent.name}/{folder.name}"
    manifest = read_json(folder / "job.json")
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise UserError(
            f"{folder / 'job.json'}: not the record of a fold job; delete the folder and run 'make oof' again"
        )
    logits = read_columns(folder / "logits.parquet", _COLUMNS)
    trained = read_columns(folder / "trained.parquet", ("id",))
    faults = []
    for file, sha in manifest["files"].items():
        if file in ("logits.parquet", "trained.parquet") and file_digest(folder / file) != sha:
            faults.append(f"{file} was changed after the job finished")
    if manifest.get("held_out") != _fold_of(folder) or (logits["fold"] != _fold_of(folder)).any():
        faults.append(f"the job or its logits name another fold than {_fold_of(folder)}")
    if manifest.get("n_trained") != trained.height:
        faults.append(f"trained on {manifest.get('n_trained')} battles but lists {trained.height}")
    if trained["id"].is_duplicated().any():
        faults.append("lists a battle more than once as trained on")
    unknown = trained.join(table, on="id", how="anti").height
    if unknown:
        faults.append(f"trained on {unknown:,} battles that the run does not have")
    trained_groups = (
        table.join(trained, on="id", how="semi").select("group", trained="id").unique("group", keep="first")
    )
    leaked = logits.join(scored.drop("fold"), on="id").join(trained_groups, on="group").sort("id")
    if leaked.height:
        faults.append(f"{leaked.height:,} predicted battles whose group the job trained on")
    if faults:
        examples = tuple(f"{row['id']} was predicted, {row['trained']} trained on" for row in leaked[:3].to_dicts())
        return Finding(name, "violated", "; ".join(faults), examples)
    return Finding(
        name, "ok", f"{logits.height:,} battles predicted; none of their groups among {trained.height:,} trained on"
    )


def _predicted_once(name: str, logits: pl.DataFrame, scored: pl.DataFrame) -> Finding:
    """Check that the rows are the scored battles, each once, in its own fold and with finite logits."""
    both = logits.join(scored, on="id", suffix="_run")
    finite = pl.all_horizontal(pl.col(LOGIT_COLUMNS).is_finite().fill_null(False))
    orders = (LOGIT_COLUMNS[:3], LOGIT_COLUMNS[3:])
    equal = [pl.all_horizontal(pl.col(column).eq(pl.col(order[0])) for column in order) for order in orders]
    constant = pl.any_horizontal(equal).fill_null(False)
    faults = {
        "scored battles without a prediction": scored.join(logits, on="id", how="anti")["id"],
        "battles predicted more than once": logits.filter(logits["id"].is_duplicated())["id"].unique(),
        "predicted battles that are not scored ones of this run": logits.join(scored, on="id", how="anti")["id"],
        "battles predicted in another fold than theirs": both.filter(pl.col("fold").ne_missing(pl.col("fold_run")))[
            "id"
        ],
        "battles with a logit that is not finite": logits.filter(~finite)["id"],
        "battles whose three logits are equal in an order, as where no process scored them": logits.filter(constant)[
            "id"
        ],
    }
    messages = [f"{len(ids):,} {fault}" for fault, ids in faults.items() if len(ids)]
    if messages:
        examples = tuple(f"battle {ids.sort()[0]}" for ids in faults.values() if len(ids))
        return Finding(name, "violated", "; ".join(messages), examples[:3])
    return Finding(name, "ok", f"each of {scored.height:,} scored battles predicted exactly once, in its fold")


def _same_logits(name: str, joined: pl.DataFrame, of_jobs: pl.DataFrame) -> Finding:
    both = joined.select(_COLUMNS).join(of_jobs.select(_COLUMNS), on="id", suffix="_job")
    same = [pl.col(column).eq_missing(pl.col(f"{column}_job")) for column in _COLUMNS[1:]]
    differing = both.filter(~pl.all_horizontal(same))["id"].unique().sort()
    if len(differing):
        examples = tuple(f"battle {name}" for name in differing[:3])
        return Finding(name, "violated", f"{len(differing):,} battles differ from their fold job's logits", examples)
    return Finding(name, "ok", "equal to the fold jobs' logits")


def _fold_of(job: Path) -> int:
    digits = job.name.removeprefix("fold-")
    return int(digits) if digits.isdigit() else -1
