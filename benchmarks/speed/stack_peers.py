"""Stage two at the competition's size beside other libraries: log loss, seconds, memory.

    python -m benchmarks.speed.stack_peers                                   # about an hour and a half on 2 cores
    python -m benchmarks.speed.stack_peers --no-position                     # another one; the page has both
    python -m benchmarks.speed.stack_peers --battles 6000 --trials 5 --limit 60 --out runs/bench-stack-small
    python -m benchmarks.speed.stack_peers --only ours sklearn               # a part; the next call does the rest

57,477 battles of the synthetic arena (``benchmarks/speed/synthetic_arena.py``), two members that scored both orders,
all battle features, five outer folds, 50 trials a study, and one more study on everything, which only ours does.
Beside ours, on the same columns and folds: LightGBMTunerCV nested in the same way, scikit-learn's StackingClassifier
and AutoGluon's TabularPredictor with its networks (``benchmarks/speed/other_stackers.py``), each in a process of its
own, AutoGluon in an environment of its own, and all on both orders of every battle. ``--limit`` is the time that
LightGBMTunerCV and AutoGluon may take for all folds together. Only ours computes its features within its time. Response
A has a small advantage, which only ours has a term for; with ``--no-position`` it has none.

Memory is the largest sum of the proportional set sizes of a contender's processes, read several times a second.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.common import ResumableRows, argument_parser, cell, measured, paragraphs, run_script, write_page
from benchmarks.peer_environment import last_words, peer_python, with_our_path
from benchmarks.speed.synthetic_arena import Arena, ArenaKind, make_arena
from ensemble.features.design_matrix import add_terms, build_design
from ensemble.stacking import STACKING_VERSION
from ensemble.stacking.cross_fit import cross_fit
from ensemble.stacking.parallel import cores
from oof.common.atomic_files import read_json, read_parquet, replacing, write_json, write_parquet
from oof.config import Stack
from oof.metrics import row_log_loss

TITLES = {
    "ours": "ours (calibrated)",
    "tuner": "LightGBMTunerCV",
    "sklearn": "StackingClassifier",
    "autogluon": "AutoGluon",
}
DATA_VERSION = 2  # raise when the same options would give other battles


def save_arena(arena: Arena, out: Path) -> None:
    """Write the input of ours (battles, logits) and of the others (columns)."""
    write_parquet(out / "battles.parquet", arena.table)
    design = build_design(arena.table, arena.logits)
    rows = {"labels": arena.labels, "folds": arena.folds, "groups": arena.groups, "truth": arena.truth}
    np.savez(out / "logits.npz", **arena.logits)
    with replacing(out / "columns.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, x=design.x, x_swapped=design.x_swapped, **rows)


def run_ours(out: Path, trials: int, seed: int) -> None:
    """Compute features, nested studies, combiners, selection, calibration and the final stack, as ``make stack``."""
    columns, saved = np.load(out / "columns.npz"), np.load(out / "logits.npz")
    table = read_parquet(out / "battles.parquet")
    design = add_terms(build_design(table, {name: saved[name] for name in saved.files}), table)
    folder = out / "ours"
    shutil.rmtree(folder, ignore_errors=True)  # nothing of an earlier measurement is reused
    rows = columns["labels"], columns["folds"], columns["groups"]
    result = cross_fit(design, *rows, Stack(trials=trials), seed, folder / "studies")
    result.save(folder / "model")
    kinds = {name.replace(":", "_"): p for name, p in result.predictions.items() if name.startswith("combiner")}
    np.savez(out / "ours.npz", probs=result.predictions["calibrated"], **kinds)


def run_logged(command: list[str], log: Path) -> dict[str, Any]:
    """Run a contender; return its seconds, CPU seconds, peak memory and, if it failed, how."""
    peak = 0

    def sample_memory(pid: int) -> None:
        nonlocal peak
        peak = max(peak, _proportional_set_size(pid))

    with log.open("w") as file:
        usage = measured(command, sample_memory, stdout=file, stderr=subprocess.STDOUT, env=with_our_path())
    row = {"seconds": round(usage.seconds, 1), "cpu_seconds": round(usage.cpu_seconds, 1), "peak_bytes": peak}
    return row | ({"failed": f"status {usage.status}: {last_words(log)}"} if usage.status else {})


def _proportional_set_size(pid: int) -> int:
    """Return the bytes of a process and its descendants, shared pages counted once."""
    total = 0
    try:
        process = psutil.Process(pid)
        processes = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0  # it has just ended
    for each in processes:
        try:
            total += each.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def contend(name: str, out: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    python = sys.executable
    if name == "ours":
        command = [python, "-m", "benchmarks.speed.stack_peers", "--run-ours", "--out", str(out)]
        command += ["--trials", str(arguments.trials), "--seed", str(arguments.seed)]
        return run_logged(command, out / "ours.txt")
    if name == "autogluon":
        python, problem = peer_python(arguments.peer_python)
        if problem:
            return {"failed": problem}
    files = [str(out / "columns.npz"), str(out / f"{name}.npz")]
    command = [python, "-m", "benchmarks.speed.other_stackers", name, *files]
    command += ["--cores", str(cores()), "--limit", f"{arguments.limit:g}"]
    return run_logged(command, out / f"{name}.txt")


def table(folder: Path, rows: dict[str, dict[str, Any]], heading: str) -> list[str]:
    """Return the Markdown table; differences are ours minus the row, so that below 0 ours is better."""
    columns = np.load(folder / "columns.npz")
    labels, groups = columns["labels"], columns["groups"]
    lines = [
        heading,
        "",
        f"{len(labels):,} battles in {len(np.unique(groups)):,} groups, {columns['x'].shape[1]} columns.",
        "",
        "| contender | log loss | ours minus it | seconds | CPU seconds | peak GB |",
        "|---|---|---|---|---|---|",
    ]
    costs = {TITLES[name]: row for name, row in rows.items()}
    losses = losses_by_title(folder, rows)
    ours = losses.get(TITLES["ours"])
    for title, loss in losses.items():
        difference = "" if ours is None or title == TITLES["ours"] else cell(ours - loss, groups, "+")
        cost = costs.get(title)
        cost_cells = [f"{cost['seconds']:,.0f}", f"{cost['cpu_seconds']:,.0f}"] if cost else ["", ""]
        cost_cells.append(f"{cost['peak_bytes'] / 1e9:.2f}" if cost else "")
        lines.append(f"| {title} | {cell(loss, groups)} | {difference} | {' | '.join(cost_cells)} |")
    lines += [f"\n{TITLES[name]} is left out: {row['failed']}." for name, row in rows.items() if "failed" in row]
    missing = [title for name, title in TITLES.items() if name not in rows]
    return [*lines, *([f"\nNot measured: {', '.join(missing)}."] if missing else []), ""]


def losses_by_title(out: Path, rows: dict[str, dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return the (n,) log losses of each finished contender, of our combiners and of the true probabilities."""
    columns = np.load(out / "columns.npz")
    finished = [name for name in rows if "failed" not in rows[name]]
    probs = {TITLES[name]: np.load(out / f"{name}.npz")["probs"] for name in finished}
    if "ours" in finished:
        ours = np.load(out / "ours.npz")
        probs |= {f"  its {n.removeprefix('combiner_')}": ours[n] for n in ours.files if n.startswith("combiner")}
    probs |= {"the true probabilities": columns["truth"]}
    return {title: row_log_loss(p / p.sum(axis=1, keepdims=True), columns["labels"]) for title, p in probs.items()}


FOLDERS = {"with-position": "With position effect", "without-position": "Without position effect"}  # below --out


def data_settings(arguments: argparse.Namespace) -> list[int]:
    """Return the settings that the battles depend on."""
    return [DATA_VERSION, arguments.battles, arguments.seed]


def prepare(folder: Path, arguments: argparse.Namespace) -> None:
    """Write the arena unless it is there already."""
    path = folder / "data.json"
    if not path.is_file() or read_json(path)["settings"] != data_settings(arguments):
        kind = ArenaKind(position=0.0) if arguments.no_position else ArenaKind()
        save_arena(make_arena(arguments.battles, arguments.seed, kind), folder)
        write_json(path, {"settings": data_settings(arguments)})


def measured_rows(folder: Path, arguments: argparse.Namespace, only: list[str]) -> dict[str, dict[str, Any]]:
    """Return the rows of a folder's battles, of which those in ``only`` are measured if they are missing."""
    saved, rows = ResumableRows(folder / "rows.json"), {}
    settings: dict[str, list[float]] = {"ours": [STACKING_VERSION, arguments.trials], "sklearn": []}
    for name in TITLES:
        key = [*data_settings(arguments), *settings.get(name, [arguments.limit])]
        row = saved.get(name, key)
        if name in only and (row is None or "failed" in row):
            row = contend(name, folder, arguments)
            saved.put(name, key, row)
            print(f"{name}: {row.get('failed', row.get('seconds'))}", file=sys.stderr, flush=True)
        if row is not None:
            rows[name] = row
    return rows


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--battles", type=int, default=57_477)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--limit", type=float, default=1200, help="seconds of the tuner and of AutoGluon; 0 = none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=TITLES, default=list(TITLES))
    parser.add_argument("--no-position", action="store_true", help="battles whose order has no effect on the verdict")
    parser.add_argument("--peer-python", default="", help="of an environment that has AutoGluon already")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-stack"))
    parser.add_argument("--report", type=Path, help="the page, e.g. docs/evidence/stack-peers.md (default: in --out)")
    parser.add_argument("--run-ours", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run_ours:
        run_ours(arguments.out, arguments.trials, arguments.seed)
        return
    chosen = arguments.out / list(FOLDERS)[arguments.no_position]
    prepare(chosen, arguments)
    settings = f"{arguments.trials} trials, limit {arguments.limit:g} s, {cores()} cores."
    lines = [paragraphs(__doc__, 2), "", settings, ""]
    for name, title in FOLDERS.items():
        folder = arguments.out / name
        rows = measured_rows(folder, arguments, arguments.only if folder == chosen else [])
        lines += table(folder, rows, f"## {title}") if rows else []
    print(write_page(arguments.report or arguments.out / "table.md", "Stage two against other tools", lines[:-1]))


if __name__ == "__main__":
    run_script(main)
