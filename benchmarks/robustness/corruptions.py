"""Damage to every kind of file of a finished run: one bit flipped, or the end cut off."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.robustness import fault_runs as runs

DAMAGES = ("flipped", "cut")
OUTPUTS = ("metrics.json", "run.json", "submission.csv", "report/index.html", "report/report.json")
# The commands of the benchmark name a configuration, so they write this file again without a look at it. A command that
# names a run alone refuses it by name.
UNREAD = "config.yaml"
KEPT = "submission-1.csv"  # a submission that has lost battles is of other battles, and is kept beside the new one
# Kinds that are damaged together; a kind belongs to the first batch that it fits. A step whose manifest is damaged
# names no other damaged file, and a report made from other numbers names none, so these have batches of their own.
BATCHES: dict[str, Callable[[str], bool]] = {
    "jobs' manifests": lambda kind: kind.endswith("job.json"),
    "manifests": lambda kind: kind.rsplit("/", 1)[-1] in runs.MANIFESTS,
    "outputs": lambda kind: kind in OUTPUTS,
    "data": lambda kind: kind.startswith("synth/") or "/" not in kind,
    "stage one": lambda kind: kind.startswith("oof/"),
    "stage two": lambda kind: kind.startswith("stack/"),
    "stage three": lambda kind: kind.startswith("distill/"),
    "token cache": lambda kind: kind.startswith("tokens/"),
}


def kinds(run: Path) -> dict[str, list[Path]]:
    """Return a run's files by kind: the path with placeholders for members, folds and digests.

    Logs of a training are no results: nothing checks or repairs them.
    """
    by_kind: dict[str, list[Path]] = {}
    unchecked = (".lock", ".jsonl")
    for path in sorted(path for path in run.rglob("*") if path.is_file() and not path.name.endswith(unchecked)):
        name = re.sub(r"fold-\d+", "fold-K", str(path.relative_to(run)))
        name = re.sub(r"\b[0-9a-f]{12,32}\b", "DIGEST", name)
        name = re.sub(f"^oof/({'|'.join(runs.MEMBERS)})", "oof/MEMBER", name)
        by_kind.setdefault(name, []).append(path)
    return by_kind


def batch(run: Path, name: str) -> dict[str, list[Path]]:
    """Return the kinds of one batch; a kind that fits several batches belongs to the first."""
    by_kind = kinds(run).items()
    return {kind: p for kind, p in by_kind if next(b for b, fits in BATCHES.items() if fits(kind)) == name}


def damage(path: Path, how: str, rng: np.random.Generator) -> None:
    """Flip one bit in the middle half of a file, or cut it off at a place there."""
    data = bytearray(path.read_bytes())
    at = int(rng.integers(len(data) // 4, max(len(data) * 3 // 4, len(data) // 4 + 1)))
    if how == "cut":
        data = data[:at]
    else:
        data[at] ^= 1 << int(rng.integers(0, 7))
    path.write_bytes(data)


def corrupt(run: Path, name: str, how: str, seed: int, stage: str, overrides: list[str]) -> dict:
    """Damage one file of each kind of a batch in a finished run, rerun every stage, and compare.

    Returns:
        ``kinds``: kind -> whether the file was named (None where it is not read) and has its old bytes again;
        ``identical``: nothing else changed.
    """
    rng = np.random.default_rng([seed, sum(map(ord, name + how))])
    chosen = {}
    for kind, paths in batch(run, name).items():
        # The larger files of the token cache hold the training texts.
        chosen[kind] = (
            max(paths, key=lambda p: p.stat().st_size) if name == "token cache" else paths[rng.integers(len(paths))]
        )
    intact = {path: content(path) for path in chosen.values()}
    before = runs.fingerprint(run)
    for path in chosen.values():
        damage(path, how, rng)
    if name == "token cache":  # only a job that must tokenise opens it
        for member in runs.MEMBERS:
            shutil.rmtree(run / "oof" / member / "fold-0")
    outcome = runs.run_chain(runs.commands(run, stage, overrides))
    lines = [line for line in outcome.stderr.splitlines() if "damaged" in line]
    results = {
        kind: {
            "named": None if kind == UNREAD else any(str(path) in line for line in lines),
            "same": content(path) == intact[path],
        }
        for kind, path in chosen.items()
    }
    changed = [path for path in runs.differences(run, before) if path != KEPT]
    return {
        "kinds": results,
        "status": outcome.status,
        "message": outcome.last_line if outcome.status else "",
        "identical": outcome.status == 0 and not changed,
        "half_written": runs.half_written(run),
        "lost_seconds": round(outcome.busy, 2),
    }


def content(path: Path) -> object:
    """Return the content that must come back: a file's bytes, of manifests and journals all but the times."""
    if not path.is_file():
        return "missing"
    if path.parent.name == "report" and path.name in runs.MANIFESTS:
        return sorted(json.loads(path.read_text())["files"])  # without checksums, because the page holds times
    if path.name in runs.MANIFESTS:
        return {k: v for k, v in json.loads(path.read_text()).items() if k not in runs.RECORDS}
    if path.suffix == ".log":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [{k: v for k, v in line.items() if k != "worker_id" and "datetime" not in k} for line in lines]
    return path.read_bytes()
