"""Prove the invariants of a finished run from its files: no leak, each battle scored once, by a job that may.

Nothing here trusts the code that made the run: groups are compared with the folds row by row, prompts by an exact
measure (:mod:`oof.audit.prompts`), and what a fold job trained on is read from the job's own list. A finding of
status *violated* means that some number of this run is not out of fold, or cannot be shown to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from oof.audit import prompts
from oof.audit.findings import Finding, Status, read_columns
from oof.audit.pretrain import audit_pretraining
from oof.classes import CLASSES
from oof.common.atomic_files import read_json
from oof.common.digests import file_digest
from oof.common.errors import UserError
from oof.common.logits_format import LOGIT_COLUMNS
from oof.config import Folds, Groups

TRAINABLE = ("train", "extra", "unlabelled")  # roles that a job or a student may learn from
MAX_SHARE_DIFFERENCE = 0.05  # of a class's share in a fold from its overall share, beyond which we warn
MAX_SIZE_RATIO = 1.5  # of the largest fold to the smallest, beyond which we warn


def audit_run(run: Path, sample: int = 1000) -> list[Finding]:
    """Return the findings of all checks; the run is sound when none has status ``violated``.

    Args:
        run: the run folder, after stage one.
        sample: scored battles whose prompts are compared exactly with every prompt of the run.

    Raises:
        UserError: the folder is no run: no battles or folds in it, or they cannot be read.
    """
    table = read_columns(
        run / "battles.parquet", ("id", "role", "label", "prompt", "response_a", "response_b", "group", "fold")
    )
    folds = read_columns(run / "folds.parquet", ("id", "role", "group", "fold"))
    groups, k, pretrained = _configuration(run, table)
    findings = [_same_tables(table, folds)]
    table = table.filter(pl.col("role").is_in(TRAINABLE))
    findings += [
        _whole_groups(table),
        _equal_prompts(table),
        _near_duplicates(table, groups.threshold, sample),
        _equal_rows(table),
        _balance(table, k),
    ]
    scored = table.filter(pl.col("role") == "train").select("id", "prompt")
    findings += audit_pretraining(run, scored, groups.threshold, sample, pretrained)
    members = sorted(path for path in (run / "oof").glob("*") if path.is_dir())
    if not members:
        findings.append(Finding("predictions", "violated", "no member has out-of-fold logits; run 'make oof'"))
    for member in members:
        findings += audit_member(member, table, k)
    return findings


def format_findings(findings: Sequence[Finding]) -> str:
    """Return one line a finding, its examples below it, and a last line that counts them."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:<9} {finding.check}: {finding.message}")
        lines += [f"{'':<9}   {example}" for example in finding.examples]
    counts = {status: sum(f.status == status for f in findings) for status in ("ok", "warning", "violated")}
    lines.append(f"audit: {', '.join(f'{n} {status}' for status, n in counts.items())}")
    return "\n".join(lines)


def audit_member(folder: Path, table: pl.DataFrame, k: int) -> list[Finding]:
    """Return the findings about one member's predictions, ``RUN/oof/<member>``."""
    name = f"predictions of {folder.name}"
    scored = table.filter(pl.col("role") == "train").select("id", "group", "fold")
    jobs = sorted(folder.glob("fold-*"))
    try:
        findings = [_job(job, scored, table) for job in jobs]
        if jobs:
            parts = [read_columns(job / "logits.parquet", _COLUMNS) for job in jobs]
            findings.append(_once(f"{name}, fold jobs", pl.concat(parts, how="vertical_relaxed"), scored))
        else:
            message = "logits come from elsewhere, without fold jobs: what they were trained on cannot be checked"
            findings.append(Finding(name, "warning", message))
        joined = read_columns(folder / "logits.parquet", _COLUMNS)
        findings.append(_once(f"{name}, joined", joined, scored))
        if jobs:
            findings.append(_same_logits(f"{name}, joined", joined, pl.concat(parts, how="vertical_relaxed")))
    except UserError as error:
        return [Finding(name, "violated", str(error))]
    absent = sorted(set(range(k)) - {_number(job) for job in jobs})
    if jobs and (absent or len(jobs) != k):
        message = f"{len(jobs)} fold jobs for {k} folds"
        return [*findings, Finding(name, "violated", message, tuple(f"no fold-{fold}" for fold in absent[:3]))]
    return findings


_COLUMNS = ("id", "fold", *LOGIT_COLUMNS)


def _job(folder: Path, scored: pl.DataFrame, table: pl.DataFrame) -> Finding:
    """Check one fold job: it predicted its own fold, and trained on no battle of a group that it predicted."""
    name = f"job {folder.parent.name}/{folder.name}"
    facts = read_json(folder / "job.json")
    if not isinstance(facts, dict) or not isinstance(facts.get("files"), dict):
        raise UserError(
            f"{folder / 'job.json'}: not the record of a fold job; delete the folder and run 'make oof' again"
        )
    logits, trained = (
        read_columns(folder / "logits.parquet", _COLUMNS),
        read_columns(folder / "trained.parquet", ("id",)),
    )
    wrong = []
    for file, sha in facts["files"].items():
        if file in ("logits.parquet", "trained.parquet") and file_digest(folder / file) != sha:
            wrong.append(f"{file} was changed after the job finished")
    if facts.get("held_out") != _number(folder) or (logits["fold"] != _number(folder)).any():
        wrong.append(f"the job or its logits name another fold than {_number(folder)}")
    if facts.get("n_trained") != trained.height:
        wrong.append(f"trained on {facts.get('n_trained')} battles but lists {trained.height}")
    if trained["id"].is_duplicated().any():
        wrong.append("lists a battle more than once as trained on")
    strangers = trained.join(table, on="id", how="anti").height
    if strangers:
        wrong.append(f"trained on {strangers:,} battles that the run does not have")
    seen = table.join(trained, on="id", how="semi").select("group", trained="id").unique("group", keep="first")
    leaked = logits.join(scored.drop("fold"), on="id").join(seen, on="group").sort("id")
    if leaked.height:
        wrong.append(f"{leaked.height:,} predicted battles whose group the job trained on")
    if wrong:
        pairs = tuple(f"{row['id']} was predicted, {row['trained']} trained on" for row in leaked[:3].to_dicts())
        return Finding(name, "violated", "; ".join(wrong), pairs)
    return Finding(
        name, "ok", f"{logits.height:,} battles predicted; none of their groups among {trained.height:,} trained on"
    )


def _once(name: str, logits: pl.DataFrame, scored: pl.DataFrame) -> Finding:
    """Check that each scored battle has exactly one row of finite logits, in its own fold, and nobody else has."""
    missing = scored.join(logits, on="id", how="anti")["id"]
    repeated = logits.filter(logits["id"].is_duplicated())["id"].unique()
    strangers = logits.join(scored, on="id", how="anti")["id"]
    both = logits.join(scored, on="id", suffix="_run")
    moved = both.filter(pl.col("fold").ne_missing(pl.col("fold_run")))["id"]
    broken = logits.filter(~pl.all_horizontal(pl.col(LOGIT_COLUMNS).is_finite().fill_null(False)))["id"]
    cases = {
        "scored battles without a prediction": missing,
        "battles predicted more than once": repeated,
        "predicted battles that are not scored ones of this run": strangers,
        "battles predicted in another fold than theirs": moved,
        "battles with a logit that is not finite": broken,
    }
    wrong = [f"{len(ids):,} {what}" for what, ids in cases.items() if len(ids)]
    if wrong:
        examples = tuple(f"battle {ids.sort()[0]}" for ids in cases.values() if len(ids))
        return Finding(name, "violated", "; ".join(wrong), examples[:3])
    return Finding(name, "ok", f"each of {scored.height:,} scored battles predicted exactly once, in its fold")


def _same_logits(name: str, joined: pl.DataFrame, parts: pl.DataFrame) -> Finding:
    both = joined.select(_COLUMNS).join(parts.select(_COLUMNS), on="id", suffix="_job")
    same = [pl.col(column).eq_missing(pl.col(f"{column}_job")) for column in _COLUMNS[1:]]
    differing = both.filter(~pl.all_horizontal(same))["id"].unique().sort()
    if len(differing):
        examples = tuple(f"battle {name}" for name in differing[:3])
        return Finding(name, "violated", f"{len(differing):,} battles differ from their fold job's logits", examples)
    return Finding(name, "ok", "equal to the fold jobs' logits")


def _number(folder: Path) -> int:
    digits = folder.name.removeprefix("fold-")
    return int(digits) if digits.isdigit() else -1


def _same_tables(table: pl.DataFrame, folds: pl.DataFrame) -> Finding:
    keys = ("id", "role", "group", "fold")
    repeated = table["id"].is_duplicated().sum()
    same = table.select(keys).sort("id").equals(folds.select(keys).cast(table.select(keys).schema).sort("id"))
    if repeated or not same:
        return Finding(
            "tables", "violated", f"battles and folds.parquet disagree, or {repeated} ids occur more than once"
        )
    return Finding("tables", "ok", f"{table.height:,} battles, ids unique, folds.parquet agrees")


def _apart(check: str, table: pl.DataFrame, key: str, what: str) -> Finding:
    """Check that no value of ``key`` holds a scored battle and a trainable one of another fold (or of none)."""
    table = table.filter(pl.col(key).is_not_null()).sort("id")
    homes = table.filter(pl.col("role") == "train").unique(key, keep="first", maintain_order=True)
    torn = (
        table.join(homes.select(key, home="fold", scored="id"), on=key, maintain_order="left")
        .filter(pl.col("fold").ne_missing(pl.col("home")))
        .unique(key, keep="first", maintain_order=True)
    )
    examples = tuple(
        f"battle {row['scored']} in fold {row['home']}, battle {row['id']} in fold {row['fold']}"
        for row in torn[:3].to_dicts()
    )
    status: Status = "violated" if torn.height else "ok"
    return Finding(check, status, f"{torn.height:,} of {table[key].n_unique():,} {what} lie in several folds", examples)


def _whole_groups(table: pl.DataFrame) -> Finding:
    return _apart("groups across folds", table, "group", "groups")


def _equal_prompts(table: pl.DataFrame) -> Finding:
    text = pl.col("prompt").list.join("\n").str.strip_chars()
    keyed = table.select("id", "role", "fold", text=pl.when(text != "").then(text))
    return _apart("equal prompts across folds", keyed, "text", "prompts")


def _near_duplicates(table: pl.DataFrame, threshold: float, sample: int) -> Finding:
    compared, torn = prompts.near_duplicates(table, threshold, sample)
    examples = tuple(f"battles {pair.one} and {pair.other}: similarity {pair.similarity:.2f}" for pair in torn[:3])
    message = f"{len(torn):,} pairs, {compared:,} prompts compared exactly with all"
    return Finding("near-duplicate prompts across folds", "violated" if torn else "ok", message, examples)


def _equal_rows(table: pl.DataFrame) -> Finding:
    """Check the rows of extra files that repeat a scored battle, in either order of the responses."""
    prompt, a, b = (pl.col(name).list.join("\x1f") for name in ("prompt", "response_a", "response_b"))
    content = pl.concat_str(prompt, pl.min_horizontal(a, b), pl.max_horizontal(a, b), separator="\x1e")
    keyed = table.select("id", "role", "fold", content=pl.when(content.str.strip_chars("\x1e\x1f") != "").then(content))
    keyed = keyed.filter(pl.col("role").is_in(["train", "extra"]))
    shared = (
        keyed.group_by("content")
        .agg(both=pl.col("role").n_unique() > 1)
        .filter("both", pl.col("content").is_not_null())
    )
    finding = _apart(
        "scored battles repeated in extra", keyed.join(shared, on="content", how="semi"), "content", "of them"
    )
    if finding.status == "ok":
        return Finding(finding.check, "ok", f"{shared.height:,}, each held out together with its battle")
    return finding


def _balance(table: pl.DataFrame, k: int) -> Finding:
    scored = table.filter(pl.col("role") == "train")
    outside = scored.filter(~pl.col("fold").is_between(0, k - 1).fill_null(False)).height
    sizes = [scored.filter(pl.col("fold") == fold).height for fold in range(k)]
    if outside or min(sizes, default=0) == 0:
        message = f"{outside:,} scored battles outside folds 0..{k - 1}; battles per fold {sizes}"
        return Finding("fold balance", "violated", message)
    share = {c: pl.col("label").eq(i).mean() for i, c in enumerate(CLASSES)}
    overall = scored.select(**share).row(0)
    each = scored.group_by("fold").agg(**share).select(CLASSES)
    difference = max(abs(value - mean) for row in each.iter_rows() for value, mean in zip(row, overall, strict=True))
    uneven = difference > MAX_SHARE_DIFFERENCE or max(sizes) > MAX_SIZE_RATIO * min(sizes)
    message = f"battles per fold {sizes}; class shares differ by at most {difference:.3f} from the whole"
    return Finding("fold balance", "warning" if uneven else "ok", message)


def _configuration(run: Path, table: pl.DataFrame) -> tuple[Groups, int, bool]:
    """Return the run's grouping, number of folds and whether it has pretraining; without run.json what is there."""
    path = run / "run.json"
    if path.is_file():
        try:
            facts: dict[str, Any] = read_json(path)["config"]
            pretrained = bool(facts.get("pretrain", {}).get("data"))
            return Groups(**facts["groups"]), Folds(**facts["folds"]).k, pretrained
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: no readable configuration ({error}); run 'make oof' again") from error
    k = max([-1, *table["fold"].drop_nulls().unique().to_list()]) + 1
    return Groups(), k, (run / "pretrain" / "battles.json").is_file()
