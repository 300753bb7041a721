"""Stage two at the competition's size beside what others would use: log loss, seconds and memory.

    python -m benchmarks.speed.stack_peers                                   # about an hour and a half on 2 cores
    python -m benchmarks.speed.stack_peers --battles 6000 --trials 5 --limit 60 --out runs/bench-stack-small
    python -m benchmarks.speed.stack_peers --only ours sklearn               # the others later: what is done is kept

57,477 synthetic battles with texts of the arena's lengths, two members that scored both orders, every feature of
:mod:`ensemble.features.battle_features`, five outer folds, 50 trials a study (and one more study on everything, which nobody else
does). The verdicts follow the quality that both members see through noise, lengths (saturating), lists, the script
of the prompt and the side shown first. Beside ours, on the same columns and folds: LightGBMTunerCV nested in the
same way, scikit-learn's StackingClassifier and AutoGluon's TabularPredictor (``benchmarks/speed/peers.py``), each in
a process of its own; AutoGluon in an environment of its own, made below ``--out``. ``--limit`` is the time that
LightGBMTunerCV and AutoGluon may take for all folds together. Ours alone computes its features in its own time.

Memory is the largest sum of the proportional set sizes of a contender's processes, looked at twice a second.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
from scipy.special import expit

from benchmarks.common import cell, made
from benchmarks.speed.feature_rate import battles  # the benchmark beside this file
from ensemble.features import battle_features
from ensemble.features.design_matrix import build_design
from ensemble.stacking.cross_fit import cross_fit
from ensemble.stacking.parallel import cores
from oof.common.atomic_files import read_json, read_parquet, replacing, write_json, write_parquet
from oof.config import Stack
from oof.metrics import row_log_loss

ROOT = Path(__file__).resolve().parents[2]
CONTENDERS = ("ours", "tuner", "sklearn", "autogluon")
TITLES = {
    "ours": "ours (calibrated)",
    "tuner": "LightGBMTunerCV",
    "sklearn": "StackingClassifier",
    "autogluon": "AutoGluon",
}
AUTOGLUON = "autogluon.tabular[lightgbm,catboost,xgboost]==1.6.3"
RECIPE = 1  # raise when the same options would give other battles
MEMBERS = {"one": (0.6, 1.0), "two": (0.9, 0.5)}  # noise of its own, temperature of its logits


@dataclass(frozen=True)
class Arena:
    table: pl.DataFrame
    logits: dict[str, np.ndarray]
    labels: np.ndarray
    folds: np.ndarray
    groups: np.ndarray
    truth: np.ndarray


def verdicts(advantage: np.ndarray, tie: np.ndarray | float) -> np.ndarray:
    a, b = expit(advantage - tie), expit(-advantage - tie)
    return np.stack([a, b, 1 - a - b], axis=1)


def make_arena(n: int, seed: int) -> Arena:
    rng = np.random.default_rng(seed)
    table = battles(n).with_columns(id=pl.Series([f"b{i}" for i in range(n)]))
    found, _ = battle_features.text_features(table)
    length, lists, latin = (found[c].to_numpy().astype(float) for c in ("log_words_diff", "list_diff", "latin_prompt"))
    quality, shared = rng.normal(0, 1.5, n), rng.normal(0, 0.5, n)
    advantage = quality + 0.6 * np.tanh(1.5 * length) + 0.3 * np.clip(lists, -1, 1) + 0.1
    truth = verdicts(advantage, 0.8 - 0.3 * np.tanh(np.abs(length)) + 0.3 * (latin < 0.5))
    labels = (rng.random(n)[:, None] > truth.cumsum(axis=1)[:, :2]).sum(axis=1)
    logits = {}
    for name, (noise, temperature) in MEMBERS.items():
        seen = quality + shared + rng.normal(0, noise, n)
        orders = [np.log(verdicts(seen + rng.normal(0, 0.4, n), 0.8)) / temperature for _ in range(2)]
        logits[name] = np.stack(orders, axis=1).astype(np.float32)
    n_groups = max(1, int(0.7 * n))  # most prompts come once, some several times
    groups = rng.integers(n_groups, size=n)
    folds = rng.permutation(n_groups)[groups] % 5
    return Arena(table, logits, labels, folds, groups, truth)


def save_arena(arena: Arena, out: Path) -> None:
    """Write what ours reads (battles, logits) and what the others read (columns); no pickle."""
    write_parquet(out / "battles.parquet", arena.table)
    design = build_design(arena.table, arena.logits)
    parts = {"labels": arena.labels, "folds": arena.folds, "groups": arena.groups, "truth": arena.truth}
    np.savez(out / "logits.npz", **arena.logits)
    with replacing(out / "columns.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, x=design.x, x_swapped=design.x_swapped, **parts)


def run_ours(out: Path, trials: int, seed: int) -> None:
    """Features, nested studies, combiners, choice, calibration and the final stack, as ``make stack``."""
    columns, saved = np.load(out / "columns.npz"), np.load(out / "logits.npz")
    design = build_design(read_parquet(out / "battles.parquet"), {name: saved[name] for name in saved.files})
    folder = out / "ours"
    shutil.rmtree(folder, ignore_errors=True)  # a measurement begins at the beginning
    parts = columns["labels"], columns["folds"], columns["groups"], Stack(trials=trials), seed
    result = cross_fit(design, *parts, folder / "studies")
    result.save(folder / "model")
    kinds = {name.replace(":", "_"): p for name, p in result.predictions.items() if name.startswith("combiner")}
    np.savez(out / "ours.npz", probs=result.predictions["calibrated"], facts=json.dumps(result.facts()), **kinds)


def measured(command: list[str], log: Path) -> dict[str, Any]:
    """Run a contender; return its seconds, those of its processors, its peak memory and how it ended."""
    begun, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = 0
    with log.open("w") as file:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path}
        process = psutil.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        while True:
            peak = max(peak, _memory(process))
            try:
                status = process.wait(timeout=0.5)
                break
            except psutil.TimeoutExpired:
                continue
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
    facts = {"seconds": round(time.monotonic() - begun, 1), "cpu_seconds": round(cpu, 1), "peak_bytes": peak}
    return facts | ({} if status == 0 else {"failed": f"status {status}: {' '.join(last)}"})


def _memory(process: psutil.Process) -> int:
    total = 0
    for each in [process, *_children(process)]:
        try:
            total += each.memory_full_info().pss
        except psutil.Error:
            continue  # it has just ended
    return total


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def autogluon_python(out: Path, given: str) -> tuple[str, str]:
    """Return the interpreter of AutoGluon's environment, or why there is none."""
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
                said = (done.stderr or done.stdout).strip().splitlines()[-1:]
                return "", f"{AUTOGLUON} could not be installed in an environment of its own: {' '.join(said)}"
        (folder / "ready").touch()
    return str(python), ""


def contend(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    out, python = arguments.out, sys.executable
    if name == "ours":
        command = [python, "-m", "benchmarks.speed.stack_peers", "--run-ours", "--out", str(out)]
        return measured([*command, "--trials", str(arguments.trials), "--seed", str(arguments.seed)], out / "ours.txt")
    if name == "autogluon":
        python, problem = autogluon_python(out, arguments.autogluon_python)
        if problem:
            return {"failed": problem}
    command = [python, "-m", "benchmarks.speed.peers", name, str(out / "columns.npz"), str(out / f"{name}.npz")]
    command += ["--cores", str(cores()), "--limit", f"{arguments.limit:g}"]
    return measured(command + ["--mirror"] * arguments.mirror, out / f"{name}.txt")


def table(arguments: argparse.Namespace, done: dict[str, dict[str, Any]]) -> str:
    """Return the Markdown table; differences are ours minus the row, so that below 0 ours is better."""
    out = arguments.out
    columns = np.load(out / "columns.npz")
    labels, groups = columns["labels"], columns["groups"]
    probs = {TITLES[n]: np.load(out / f"{n}.npz")["probs"] for n in CONTENDERS if n in done and "failed" not in done[n]}
    if "ours" in done and "failed" not in done["ours"]:
        ours = np.load(out / "ours.npz")
        probs |= {f"  its {n.removeprefix('combiner_')}": ours[n] for n in ours.files if n.startswith("combiner")}
    probs |= {"the verdicts' own probabilities": columns["truth"]}
    losses = {name: row_log_loss(p / p.sum(axis=1, keepdims=True), labels) for name, p in probs.items()}
    mirrored = ", the others on both orders too" if arguments.mirror else ""
    lines = [
        f"{len(labels):,} battles in {len(np.unique(groups)):,} groups, {columns['x'].shape[1]} columns, "
        f"5 outer folds, {arguments.trials} trials, limit {arguments.limit:g} s, {cores()} cores{mirrored}",
        "",
        "| contender | log loss | ours minus it | seconds | of CPU | peak GB |",
        "|---|---|---|---|---|---|",
    ]
    titles = {title: name for name, title in TITLES.items()}
    for name, loss in losses.items():
        facts = done.get(titles.get(name, ""), {})
        apart = (
            ""
            if name == TITLES["ours"] or TITLES["ours"] not in losses
            else cell(losses[TITLES["ours"]] - loss, groups, "+")
        )
        spent = [f"{facts[k]:,.0f}" if facts else "" for k in ("seconds", "cpu_seconds")]
        memory = f"{facts['peak_bytes'] / 1e9:.2f}" if facts else ""
        lines.append(f"| {name} | {cell(loss, groups)} | {apart} | {spent[0]} | {spent[1]} | {memory} |")
    lines += [f"\n{TITLES[n]} is left out: {f['failed']}." for n, f in done.items() if "failed" in f]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--battles", type=int, default=57_477)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--limit", type=float, default=1200, help="seconds of the tuner and of AutoGluon; 0 = none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--mirror", action="store_true", help="let the others train on both orders, as ours does")
    parser.add_argument("--autogluon-python", default="", help="of an environment that has AutoGluon already")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-stack"))
    parser.add_argument("--report", type=Path, help="the page (default: table.md in --out)")
    parser.add_argument("--run-ours", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    out = arguments.out
    if arguments.run_ours:
        run_ours(out, arguments.trials, arguments.seed)
        return 0
    out.mkdir(parents=True, exist_ok=True)
    made = [RECIPE, arguments.battles, arguments.seed]
    data = out / "data.json"
    if not data.is_file() or read_json(data)["made"] != made:
        save_arena(make_arena(arguments.battles, arguments.seed), out)
        write_json(data, {"made": made})
    settings = {"ours": [arguments.trials], "sklearn": [arguments.mirror]}
    done: dict[str, dict[str, Any]] = {}
    for name in CONTENDERS:
        key = [*made, *settings.get(name, [arguments.limit, arguments.mirror])]
        path = out / f"{name}.json"
        kept = read_json(path) if path.is_file() else {}
        if name in arguments.only and (kept.get("key") != key or "failed" in kept):
            kept = {"key": key, **contend(name, arguments)}
            write_json(path, kept)
            print(f"{name}: {kept.get('failed', kept.get('seconds'))}", file=sys.stderr, flush=True)
        if kept.get("key") == key:
            done[name] = kept
    page = report(table(arguments, done))
    with replacing(arguments.report or out / "table.md") as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(page)
    return 0


def report(lines: str) -> str:
    command = " ".join(["python -m benchmarks.speed.stack_peers", *sys.argv[1:]])
    return f"# Stage two beside what others would use\n\n{made()} by `{command}`; its docstring says how.\n\n{lines}"


if __name__ == "__main__":
    sys.exit(main())
