"""Prove from a run's files that pretraining saw no scored prompt, and that each fold job started from it or from none.

The pairs that were trained on are compared with the scored battles' prompts by the exact measure of
:mod:`oof.audit.prompts`, which shares no code with the grouping that left pairs out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from oof.audit import prompts
from oof.audit.findings import Finding, read_columns
from oof.common.atomic_files import read_json
from oof.common.digests import file_digest
from oof.common.errors import UserError

NAME = "pretraining"


def audit_pretraining(run: Path, scored: pl.DataFrame, threshold: float, sample: int, wanted: bool) -> list[Finding]:
    """Return the findings about ``RUN/pretrain`` and what started from it.

    Args:
        run: the run folder.
        scored: id and prompt of the scored battles.
        threshold: Jaccard similarity of the run's grouping.
        sample: scored prompts that are compared exactly with every pair's.
        wanted: whether the run's configuration has pretraining; if not, nothing may have started from one.
    """
    jobs = sorted((run / "oof").glob("*/fold-*/job.json"))
    try:
        if not wanted:
            started = [job for job in jobs if "pretrain" in read_json(job)]
            return [_finding(NAME, [f"{len(started)} fold jobs started from it, and the run has none"])] * bool(started)
        pairs, findings = _pairs(run / "pretrain")
        findings.append(_apart(run / "pretrain", pairs, scored, threshold, sample))
        members = sorted({job.parents[1].name for job in jobs})
        findings += [
            _member(run, name, pairs, [job for job in jobs if job.parents[1].name == name]) for name in members
        ]
        if (run / "pretrain" / "student").is_dir():
            record, wrong = _trained(run / "pretrain" / "student", pairs)
            findings.append(
                _finding(f"{NAME} of the student", wrong, f"trained on these {record['n_trained']:,} pairs")
            )
    except UserError as error:
        return [Finding(NAME, "violated", str(error))]
    return findings


def _finding(name: str, wrong: list[str], message: str = "") -> Finding:
    return Finding(name, "violated", "; ".join(wrong)) if wrong else Finding(name, "ok", message)


def _pairs(folder: Path) -> tuple[pl.DataFrame, list[Finding]]:
    """Return the pairs, and whether every row that was read is among them or among those left out, with its reason."""
    record = _record(folder / "battles.json")
    wrong = _changed(folder, record)
    pairs = read_columns(folder / "battles.parquet", ("id", "prompt"))
    counts = record.get("counts", {})
    left_out = pl.read_csv(folder / "dropped.csv").height if (folder / "dropped.csv").is_file() else 0
    near = counts.get("near_train", 0) + counts.get("near_test", 0)
    if counts.get("kept") != pairs.height or counts.get("bad_rows", 0) + near != left_out:
        wrong.append(f"{pairs.height:,} pairs and {left_out:,} left-out rows, but it counts {counts}")
    if counts.get("rows_read") != pairs.height + left_out:
        wrong.append(f"{counts.get('rows_read')} rows read, {pairs.height:,} kept and {left_out:,} left out")
    message = f"{pairs.height:,} pairs; {near:,} left out for a scored battle's prompt, {left_out - near:,} bad rows"
    return pairs, [_finding(f"{NAME} pairs", wrong, message)]


def _apart(folder: Path, pairs: pl.DataFrame, scored: pl.DataFrame, threshold: float, sample: int) -> Finding:
    """Check that no pair that was kept has a (near-)duplicate of a scored battle's prompt (train or test)."""
    test = read_columns(folder / "test.parquet", ("id", "prompt"))
    parts = [(scored, "train", 0), (test, "train", 0), (pairs, "pretrain", 1)]  # scored ones as if in one fold
    names = ("battle ", "test battle ", "pair ")
    both = pl.concat(
        frame.select("prompt", id=name + pl.col("id"), role=pl.lit(role), fold=pl.lit(fold, dtype=pl.Int32))
        for (frame, role, fold), name in zip(parts, names, strict=True)
    )
    compared, torn = prompts.near_duplicates(both, threshold, sample)
    texts = [frame["prompt"].list.join("\n").str.strip_chars() for frame in (pl.concat([scored, test]), pairs)]
    equal = int((texts[1].is_in(texts[0].to_list()) & (texts[1] != "")).sum())
    status = f"{len(torn):,} pairs are near a scored prompt, {equal:,} have an equal one"
    total = scored.height + test.height
    message = f"{status}; {compared:,} distinct prompts of {total:,} scored battles compared exactly with all"
    if torn or equal:
        examples = tuple(f"{pair.one} and {pair.other}: similarity {pair.similarity:.2f}" for pair in torn[:3])
        return Finding(f"{NAME} pairs near scored prompts", "violated", message, examples)
    return Finding(f"{NAME} pairs near scored prompts", "ok", message)


def _member(run: Path, name: str, pairs: pl.DataFrame, jobs: list[Path]) -> Finding:
    """Check what a member was pretrained on, and that each of its fold jobs started from that."""
    record, wrong = _trained(run / "pretrain" / f"member-{name}", pairs)
    others = [job.parent.name for job in jobs if _record(job).get("pretrain") != record["key"]]
    if others:
        wrong.append(f"{', '.join(others)} started from something else")
    return _finding(
        f"{NAME} of {name}", wrong, f"trained on these {pairs.height:,} pairs; {len(jobs)} fold jobs started from it"
    )


def _trained(folder: Path, pairs: pl.DataFrame) -> tuple[dict[str, Any], list[str]]:
    """Return the record of one pretraining and what is wrong with it."""
    record = _record(folder / "job.json")
    wrong = _changed(folder, record)
    trained = read_columns(folder / "trained.parquet", ("id",))
    if sorted(trained["id"]) != sorted(pairs["id"]) or record.get("n_trained") != pairs.height:
        wrong.append("trained on other pairs than those of the run")
    return record, wrong


def _record(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; the run's configuration has pretrain.data, so run 'make oof' again")
    record = read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("files"), dict) or "key" not in record:
        raise UserError(f"{path}: not the record of a finished step; delete its folder and run 'make oof' again")
    return record


def _changed(folder: Path, record: dict[str, Any]) -> list[str]:
    changed = [
        name
        for name, sha in record["files"].items()
        if not (folder / name).is_file() or file_digest(folder / name) != sha
    ]
    return [f"{', '.join(changed)} changed after they were written"] if changed else []
