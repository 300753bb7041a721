"""Stage two at the competition's size beside other libraries: log loss, seconds, memory.

    python -m benchmarks.speed.stack_peers                                   # about an hour and a half on 2 cores
    python -m benchmarks.speed.stack_peers --battles 6000 --trials 5 --limit 60 --out runs/bench-stack-small
    python -m benchmarks.speed.stack_peers --only ours sklearn               # a part; the next call does the rest

57,477 battles of the synthetic arena (``benchmarks/speed/synthetic_arena.py``), two members that scored both orders,
all battle features, five outer folds, 50 trials a study, and one more study on everything, which only ours does.
Beside ours, on the same columns and folds: LightGBMTunerCV nested in the same way, scikit-learn's StackingClassifier
and AutoGluon's TabularPredictor (``benchmarks/speed/other_stackers.py``), each in a process of its own; AutoGluon in
an environment of its own, made below ``--out``. ``--limit`` is the time that LightGBMTunerCV and AutoGluon may take for
all folds together. Only ours computes its features within its time.

Memory is the largest sum of the proportional set sizes of a contender's processes, read several times a second.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.common import ROOT, ResumableRows, argument_parser, cell, measured, run_script, write_page
from benchmarks.speed.synthetic_arena import Arena, make_arena
from ensemble.features.design_matrix import build_design
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
AUTOGLUON = "autogluon.tabular[lightgbm,catboost,xgboost]==1.6.3"
DATA_VERSION = 1  # raise when the same options would give other battles


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
    design = build_design(read_parquet(out / "battles.parquet"), {name: saved[name] for name in saved.files})
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

    def sample_memory(pid: int, seconds: float) -> None:
        nonlocal peak
        peak = max(peak, _proportional_set_size(pid))

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with log.open("w") as file:
        usage = measured(command, sample_memory, stdout=file, stderr=subprocess.STDOUT, env=environment)
    last_line = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
    row = {"seconds": round(usage.seconds, 1), "cpu_seconds": round(usage.cpu_seconds, 1), "peak_bytes": peak}
    return row | ({"failed": f"status {usage.status}: {' '.join(last_line)}"} if usage.status else {})


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


def autogluon_python(out: Path, given: str) -> tuple[str, str]:
    """Return the interpreter of AutoGluon's environment and, if there is none, the reason."""
    if given:
        return given, ""
    folder = (out / "autogluon-env").resolve()
    python = folder / "bin" / "python"
    if not (folder / "ready").is_file():
        steps = (
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [str(python), "-m", "pip", "install", "-q", AUTOGLUON],
        )
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True, check=False)
            if done.returncode:
                last_line = (done.stderr or done.stdout).strip().splitlines()[-1:]
                return "", f"{AUTOGLUON} could not be installed in an environment of its own: {' '.join(last_line)}"
        (folder / "ready").touch()
    return str(python), ""


def contend(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    out, python = arguments.out, sys.executable
    if name == "ours":
        command = [python, "-m", "benchmarks.speed.stack_peers", "--run-ours", "--out", str(out)]
        command += ["--trials", str(arguments.trials), "--seed", str(arguments.seed)]
        return run_logged(command, out / "ours.txt")
    if name == "autogluon":
        python, problem = autogluon_python(out, arguments.autogluon_python)
        if problem:
            return {"failed": problem}
    files = [str(out / "columns.npz"), str(out / f"{name}.npz")]
    command = [python, "-m", "benchmarks.speed.other_stackers", name, *files]
    command += ["--cores", str(cores()), "--limit", f"{arguments.limit:g}"]
    return run_logged(command + ["--swap"] * arguments.swap, out / f"{name}.txt")


def table(arguments: argparse.Namespace, rows: dict[str, dict[str, Any]]) -> list[str]:
    """Return the Markdown table; differences are ours minus the row, so that below 0 ours is better."""
    columns = np.load(arguments.out / "columns.npz")
    labels, groups = columns["labels"], columns["groups"]
    swapped = ", the others on both orders too" if arguments.swap else ""
    lines = [
        f"{len(labels):,} battles in {len(np.unique(groups)):,} groups, {columns['x'].shape[1]} columns, "
        f"5 outer folds, {arguments.trials} trials, limit {arguments.limit:g} s, {cores()} cores{swapped}",
        "",
        "| contender | log loss | ours minus it | seconds | CPU seconds | peak GB |",
        "|---|---|---|---|---|---|",
    ]
    costs = {TITLES[name]: row for name, row in rows.items()}
    losses = losses_by_title(arguments.out, rows)
    ours = losses.get(TITLES["ours"])
    for title, loss in losses.items():
        difference = "" if ours is None or title == TITLES["ours"] else cell(ours - loss, groups, "+")
        cost = costs.get(title)
        cost_cells = [f"{cost['seconds']:,.0f}", f"{cost['cpu_seconds']:,.0f}"] if cost else ["", ""]
        cost_cells.append(f"{cost['peak_bytes'] / 1e9:.2f}" if cost else "")
        lines.append(f"| {title} | {cell(loss, groups)} | {difference} | {' | '.join(cost_cells)} |")
    return lines + [f"\n{TITLES[n]} is left out: {row['failed']}." for n, row in rows.items() if "failed" in row]


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


def prepare(arguments: argparse.Namespace) -> list[int]:
    """Write the arena unless it is there already; return the settings that it depends on."""
    settings = [DATA_VERSION, arguments.battles, arguments.seed]
    path = arguments.out / "data.json"
    if not path.is_file() or read_json(path)["settings"] != settings:
        save_arena(make_arena(arguments.battles, arguments.seed), arguments.out)
        write_json(path, {"settings": settings})
    return settings


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--battles", type=int, default=57_477)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--limit", type=float, default=1200, help="seconds of the tuner and of AutoGluon; 0 = none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=TITLES, default=list(TITLES))
    parser.add_argument("--swap", action="store_true", help="train the others on both orders, as ours")
    parser.add_argument("--autogluon-python", default="", help="of an environment that has AutoGluon already")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-stack"))
    parser.add_argument("--report", type=Path, help="the page, e.g. docs/evidence/stack-peers.md (default: in --out)")
    parser.add_argument("--run-ours", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run_ours:
        run_ours(arguments.out, arguments.trials, arguments.seed)
        return
    data_settings = prepare(arguments)
    settings = {"ours": [arguments.trials], "sklearn": [arguments.swap]}
    saved, rows = ResumableRows(arguments.out / "rows.json"), {}
    for name in TITLES:
        key = [*data_settings, *settings.get(name, [arguments.limit, arguments.swap])]
        row = saved.get(name, key)
        if name in arguments.only and (row is None or "failed" in row):
            row = contend(name, arguments)
            saved.put(name, key, row)
            print(f"{name}: {row.get('failed', row.get('seconds'))}", file=sys.stderr, flush=True)
        if row is not None:
            rows[name] = row
    page = arguments.report or arguments.out / "table.md"
    print(write_page(page, "Stage two against other tools", table(arguments, rows)))


if __name__ == "__main__":
    run_script(main)
