"""Audit of a finished run: near-duplicate prompts never sit in two folds, every prediction is out of fold.

The audit reads the run's files and does not trust the code that made them: groups are compared with the folds row by
row, prompts by exact similarity (:mod:`oof.audit.prompts`), and predictions with each fold job's own list of training
battles (:mod:`oof.audit.predictions`). A finding of status *violated* means that a number of this run is not out of
fold, or that this cannot be shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from oof.audit import prompts
from oof.audit.extra_battles import audit_extra_battles
from oof.audit.findings import STATUSES, Finding, Status, read_columns
from oof.audit.predictions import audit_member
from oof.audit.pretrain import audit_pretraining
from oof.audit.student_start import audit_student_starts
from oof.classes import CLASSES
from oof.common.atomic_files import read_json
from oof.common.errors import UserError
from oof.config import Folds, Groups
from oof.config.stored import stored_settings
from oof.data.text_columns import prompt_texts

COLUMNS = ("id", "role", "label", "weight", "prompt", "response_a", "response_b", "group", "fold")
TRAINABLE = ("train", "extra", "unlabelled")  # roles that a job or a student may learn from
MAX_SHARE_DIFFERENCE = 0.05  # between a class's share in a fold and its overall share; above it we warn
MAX_SIZE_RATIO = 1.5  # of the largest fold to the smallest; above it we warn


def audit_run(run: Path, sample: int = 1000) -> list[Finding]:
    """Return the findings of all checks; the run is sound if none has status ``violated``.

    Args:
        run: the run folder, after stage one.
        sample: scored battles whose prompts are compared exactly with every prompt of the run.

    Raises:
        UserError: the folder is not a run: it has no battles or folds, or they cannot be read.
    """
    own = _own_logits(run)
    if own is not None:
        return _audit_own_logits(run, own, sample)
    table = read_columns(run / "battles.parquet", COLUMNS)
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
    return findings + audit_extra_battles(run, table, k) + audit_student_starts(run, table)


def findings_document(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the findings and their numbers by status as JSON values."""
    counts = {status: sum(f.status == status for f in findings) for status in STATUSES}
    return {"sound": not counts["violated"], "counts": counts, "findings": [asdict(finding) for finding in findings]}


def _own_logits(run: Path) -> dict[str, Any] | None:
    """Return the settings of a run of ``stack.logits``, which has only stage two; None if the folder is none."""
    if (run / "battles.parquet").is_file():
        return None
    settings = stored_settings(run)
    return settings if settings and (settings.get("stack") or {}).get("logits") else None


def _audit_own_logits(run: Path, settings: dict[str, Any], sample: int) -> list[Finding]:
    """Return the findings about groups and folds, and what a run of others' logits cannot show."""
    path = run / "stack" / "battles.parquet"
    if not path.is_file():
        raise UserError(f"{path}: no such file; run 'make stack' with this RUN first")
    table = read_columns(path, COLUMNS)
    findings = [_whole_groups(table)]
    if (prompt_texts(table).str.strip_chars() != "").any():
        threshold = Groups(**settings["groups"]).threshold
        findings += [_equal_prompts(table), _near_duplicates(table, threshold, sample)]
    else:
        findings.append(Finding("near-duplicate prompts across folds", "warning", "not checked: there are no texts"))
    findings.append(_balance(table, int(table["fold"].to_numpy().max()) + 1))
    names = ", ".join(settings["stack"]["logits"])
    findings.append(
        Finding("predictions", "warning", f"the logits of {names} were made elsewhere; only their maker knows whether "
                "each model was trained without the battles that it predicts")
    )  # fmt: skip
    leaked = read_json(run / "stack" / "manifest.json").get("possibly_in_sample", {})
    return findings + [
        Finding("predictions", "warning", f"{name} is possibly in-sample: {'; '.join(reasons)}")
        for name, reasons in leaked.items()
    ]


def format_findings(findings: Sequence[Finding]) -> str:
    """Return one line per finding, its examples below it, and a last line that counts the findings."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:<9} {finding.check}: {finding.message}")
        lines += [f"{'':<9}   {example}" for example in finding.examples]
    counts = findings_document(findings)["counts"]
    lines.append(f"audit: {', '.join(f'{n} {status}' for status, n in counts.items())}")
    return "\n".join(lines)


def _same_tables(table: pl.DataFrame, folds: pl.DataFrame) -> Finding:
    keys = ("id", "role", "group", "fold")
    repeated = table["id"].is_duplicated().sum()
    same = table.select(keys).sort("id").equals(folds.select(keys).cast(table.select(keys).schema).sort("id"))
    if repeated or not same:
        return Finding(
            "tables", "violated", f"battles and folds.parquet disagree, or {repeated} ids occur more than once"
        )
    return Finding("tables", "ok", f"{table.height:,} battles, ids unique, folds.parquet agrees")


def _in_one_fold(check: str, table: pl.DataFrame, key: str, values: str) -> Finding:
    """Check that all battles with the same ``key`` as a scored battle are in its fold; ``values`` names the keys."""
    table = table.filter(pl.col(key).is_not_null()).sort("id")
    scored = table.filter(pl.col("role") == "train").unique(key, keep="first", maintain_order=True)
    split = (
        table.join(scored.select(key, scored_fold="fold", scored_id="id"), on=key, maintain_order="left")
        .filter(pl.col("fold").ne_missing(pl.col("scored_fold")))
        .unique(key, keep="first", maintain_order=True)
    )
    examples = tuple(
        f"battle {row['scored_id']} in fold {row['scored_fold']}, battle {row['id']} in fold {row['fold']}"
        for row in split[:3].to_dicts()
    )
    status: Status = "violated" if split.height else "ok"
    message = f"{split.height:,} of {table[key].n_unique():,} {values} lie in several folds"
    return Finding(check, status, message, examples)


def _whole_groups(table: pl.DataFrame) -> Finding:
    return _in_one_fold("groups across folds", table, "group", "groups")


def _equal_prompts(table: pl.DataFrame) -> Finding:
    text = prompt_texts(table).str.strip_chars()
    keyed = table.select("id", "role", "fold", text=pl.when(text != "").then(text))
    return _in_one_fold("equal prompts across folds", keyed, "text", "prompts")


def _near_duplicates(table: pl.DataFrame, threshold: float, sample: int) -> Finding:
    compared, split = prompts.near_duplicates(table, threshold, sample)
    examples = tuple(f"battles {pair.one} and {pair.other}: similarity {pair.similarity:.2f}" for pair in split[:3])
    message = f"{len(split):,} pairs, {compared:,} prompts compared exactly with all"
    return Finding("near-duplicate prompts across folds", "violated" if split else "ok", message, examples)


def _equal_rows(table: pl.DataFrame) -> Finding:
    """Check that rows of extra files that repeat a scored battle, in either order, are held out with it."""
    prompt, a, b = (pl.col(name).list.join("\x1f") for name in ("prompt", "response_a", "response_b"))
    content = pl.concat_str(prompt, pl.min_horizontal(a, b), pl.max_horizontal(a, b), separator="\x1e")
    keyed = table.select("id", "role", "fold", content=pl.when(content.str.strip_chars("\x1e\x1f") != "").then(content))
    keyed = keyed.filter(pl.col("role").is_in(["train", "extra"]))
    shared = (
        keyed.group_by("content")
        .agg(both=pl.col("role").n_unique() > 1)
        .filter("both", pl.col("content").is_not_null())
    )
    repeated = keyed.join(shared, on="content", how="semi")
    finding = _in_one_fold("scored battles repeated in extra", repeated, "content", "of them")
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
    """Return the run's grouping, its number of folds and whether it has pretraining.

    Without run.json: the default grouping, and pretraining if the folder contains its record.
    """
    path = run / "run.json"
    if path.is_file():
        try:
            config: dict[str, Any] = read_json(path)["config"]
            pretrained = bool(config.get("pretrain", {}).get("data"))
            return Groups(**config["groups"]), Folds(**config["folds"]).k, pretrained
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: no readable configuration ({error}); run 'make oof' again") from error
    k = max([-1, *table["fold"].drop_nulls().unique().to_list()]) + 1
    return Groups(), k, (run / "pretrain" / "battles.json").is_file()
