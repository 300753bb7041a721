"""Audit of pretraining: no training pair near a scored prompt, and every fold job started from the same pretraining.

The training pairs are compared with the scored battles' prompts by the exact similarity of :mod:`oof.audit.prompts`,
not by the MinHash of the grouping that left pairs out.
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
from oof.data.text_columns import prompt_texts

NAME = "pretraining"


def audit_pretraining(run: Path, scored: pl.DataFrame, threshold: float, sample: int, wanted: bool) -> list[Finding]:
    """Return the findings about ``RUN/pretrain`` and the fold jobs that started from it.

    Args:
        run: the run folder.
        scored: id and prompt of the scored battles.
        threshold: Jaccard similarity of the run's grouping.
        sample: most scored prompts that are compared exactly with every pair's prompt.
        wanted: whether the run's configuration has pretraining; if not, no fold job may have started from one.
    """
    jobs = sorted((run / "oof").glob("*/fold-*/job.json"))
    try:
        if not wanted:
            started = [job for job in jobs if "pretrain" in read_json(job)]
            fault = f"{len(started)} fold jobs started from one, but the run's configuration has none"
            return [_finding(NAME, [fault])] if started else []
        pairs, findings = _pairs(run / "pretrain")
        findings.append(_far_from_scored(run / "pretrain", pairs, scored, threshold, sample))
        members = sorted({job.parents[1].name for job in jobs})
        findings += [
            _member(run, name, pairs, [job for job in jobs if job.parents[1].name == name]) for name in members
        ]
        if (run / "pretrain" / "student").is_dir():
            record, faults = _trained(run / "pretrain" / "student", pairs)
            message = f"trained on these {record['n_trained']:,} pairs"
            findings.append(_finding(f"{NAME} of the student", faults, message))
    except UserError as error:
        return [Finding(NAME, "violated", str(error))]
    return findings


def _finding(name: str, faults: list[str], message: str = "") -> Finding:
    return Finding(name, "violated", "; ".join(faults)) if faults else Finding(name, "ok", message)


def _pairs(folder: Path) -> tuple[pl.DataFrame, list[Finding]]:
    """Return the training pairs, and the finding whether kept and left-out rows add up to the rows read."""
    record = _record(folder / "battles.json")
    faults = _changed(folder, record)
    pairs = read_columns(folder / "battles.parquet", ("id", "prompt"))
    counts = record.get("counts", {})
    left_out = pl.read_csv(folder / "dropped.csv", glob=False).height if (folder / "dropped.csv").is_file() else 0
    near = counts.get("near_train", 0) + counts.get("near_test", 0)
    if counts.get("kept") != pairs.height or counts.get("bad_rows", 0) + near != left_out:
        faults.append(f"{pairs.height:,} pairs and {left_out:,} left-out rows, but battles.json counts {counts}")
    if counts.get("rows_read") != pairs.height + left_out:
        faults.append(f"{counts.get('rows_read')} rows read, {pairs.height:,} kept and {left_out:,} left out")
    message = f"{pairs.height:,} pairs; {near:,} left out for a scored battle's prompt, {left_out - near:,} bad rows"
    return pairs, [_finding(f"{NAME} pairs", faults, message)]


def _far_from_scored(folder: Path, pairs: pl.DataFrame, scored: pl.DataFrame, threshold: float, sample: int) -> Finding:
    """Check that no training pair has a (near-)duplicate of the prompt of a scored battle (train or test)."""
    test = read_columns(folder / "test.parquet", ("id", "prompt"))
    # As if all scored battles were in one fold and all pairs in another.
    sources = [("battle ", scored, "train", 0), ("test battle ", test, "train", 0), ("pair ", pairs, "pretrain", 1)]
    both = pl.concat(
        frame.select("prompt", id=name + pl.col("id"), role=pl.lit(role), fold=pl.lit(fold, dtype=pl.Int32))
        for name, frame, role, fold in sources
    )
    compared, near = prompts.near_duplicates(both, threshold, sample)
    scored_texts, texts = (prompt_texts(frame).str.strip_chars() for frame in (pl.concat([scored, test]), pairs))
    equal = int((texts.is_in(scored_texts.to_list()) & (texts != "")).sum())
    status = f"{len(near):,} pairs are near a scored prompt, {equal:,} have an equal one"
    total = scored.height + test.height
    message = f"{status}; {compared:,} distinct prompts of {total:,} scored battles compared exactly with all"
    examples = tuple(f"{pair.one} and {pair.other}: similarity {pair.similarity:.2f}" for pair in near[:3])
    return Finding(f"{NAME} pairs near scored prompts", "violated" if near or equal else "ok", message, examples)


def _member(run: Path, name: str, pairs: pl.DataFrame, jobs: list[Path]) -> Finding:
    """Check that a member was pretrained on the run's pairs, and that its fold jobs started from that pretraining."""
    record, faults = _trained(run / "pretrain" / f"member-{name}", pairs)
    others = [job.parent.name for job in jobs if _record(job).get("pretrain") != record["key"]]
    if others:
        faults.append(f"{', '.join(others)} did not start from this pretraining")
    message = f"trained on these {pairs.height:,} pairs; {len(jobs)} fold jobs started from it"
    return _finding(f"{NAME} of {name}", faults, message)


def _trained(folder: Path, pairs: pl.DataFrame) -> tuple[dict[str, Any], list[str]]:
    """Return the record of one pretraining and its faults."""
    record = _record(folder / "job.json")
    faults = _changed(folder, record)
    trained = read_columns(folder / "trained.parquet", ("id",))
    if sorted(trained["id"]) != sorted(pairs["id"]) or record.get("n_trained") != pairs.height:
        faults.append("trained on other pairs than those of the run")
    return record, faults


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
