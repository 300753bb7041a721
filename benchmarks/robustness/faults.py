"""Fault injection into a reduced demo: after any fault it ends with the same bytes or one clear error.

    python -m benchmarks.robustness.faults [--write docs/evidence/faults.md]       # about two hours on two cores
    python -m benchmarks.robustness.faults --stage oof --kills 40                  # stage one alone, kills alone

One uninterrupted run gives the reference. Then, each from the beginning: kill -9 at random instants (in turn with all
workers and of the subcommand's process alone), a disk that fills, a read-only run folder, two starts at once, a clock
that jumps, an interrupted export and, on copies of the finished run, damage to one file of every kind. Seeded and
resumable: ``faults.jsonl`` keeps finished cases, for one commit and one set of settings. Exit status 1 if a result
differs or a file is half-written.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.common import argument_parser, commit, run_script
from benchmarks.robustness import corruptions
from benchmarks.robustness import fault_conditions as conditions
from benchmarks.robustness import fault_processes as processes
from benchmarks.robustness import fault_runs as runs
from benchmarks.robustness.fault_table import summary, write_fault_page

Case = Callable[[], dict]


def reference_run(out: Path, run: Path, stage: str, overrides: list[str]) -> dict:
    """Return cost and checksums of an uninterrupted run, made once for a commit and settings.

    Its files stay in ``out/whole``.
    """
    path = out / "reference.json"
    calls = runs.commands(run, stage, overrides)
    key = {"commit": commit(), "calls": calls}
    if path.is_file():
        saved = json.loads(path.read_text())
        if {name: saved.get(name) for name in key} == key:
            return saved
    for name in ("whole", "run"):
        runs.clear(out / name)
    (out / "faults.jsonl").unlink(missing_ok=True)
    first = runs.run_chain(calls)
    if first.status:
        sys.exit(f"the uninterrupted run failed (status {first.status}): {first.last_line}")
    shutil.copytree(run, out / "whole")
    runs.clear(run)
    second = runs.run_chain(calls)  # the first run warmed the machine's caches; kills are due within this one's time
    sizes = [file.stat().st_size for file in run.rglob("*") if file.is_file()]
    idle = runs.run_chain(calls)
    files = runs.fingerprint(out / "whole")
    if second.status or runs.differences(run, files) or runs.half_written(run):
        sys.exit("two uninterrupted runs differ, or one left files that differ from its manifests")
    cost = {"seconds": second.seconds, "busy": second.busy, "idle": idle.busy}
    path.write_text(json.dumps({**key, **cost, "files": files, "bytes": sum(sizes), "largest": max(sizes)}))
    return json.loads(path.read_text())


def cases(arguments: argparse.Namespace, run: Path, reference: dict, done: dict) -> Iterator[tuple[str, str, Case]]:
    """Yield (fault, name of the case, call) in a fixed order.

    Kills go on until the wanted number has hit a running command.
    """
    seed, seconds, calls = arguments.seed, reference["seconds"], reference["calls"]
    if arguments.stage == "all":
        yield from _conditions(seed, run, reference, arguments)
    # Drawn one after the other, so that a larger number of kills begins with the same ones.
    rng, hits = np.random.default_rng(seed), 0
    for i in range(2 * arguments.kills):
        if hits == arguments.kills:
            break
        at = float(rng.uniform(0.02, 1.0) * seconds)
        whole_group = i % 2 == 0
        case = {"at": round(at, 1), "whole_group": whole_group}
        yield (
            "kill",
            str(i),
            lambda at=at, g=whole_group, c=case: c | conditions.kill(run, calls, reference, conditions.after(at), g),
        )
        hits += done.get(("kill", str(i)), {"killed": True})["killed"]


def _conditions(
    seed: int, run: Path, reference: dict, arguments: argparse.Namespace
) -> Iterator[tuple[str, str, Case]]:
    calls, overrides = reference["calls"], list(arguments.set)
    out, seconds = run.parent, reference["seconds"]
    mounted = conditions.can_mount(out / "mount")
    for i, share in enumerate(conditions.shares(seed, arguments.full, 0.02, 0.9)):
        yield "full disk", str(i), lambda s=share: conditions.full_disk(run, calls, reference, s, mounted)
    if mounted:
        at = seconds / 3
        yield "read-only folder", "0", lambda: conditions.read_only(run, calls, reference, out / "whole", at)
    for i, later in enumerate([0.0, *conditions.shares(seed, arguments.starts - 1, 1.0, seconds * 0.8)]):
        yield "two starts", str(i), lambda s=later: conditions.two_starts(run, calls, reference, s)
    for i in range(arguments.clocks):
        yield "jumping clock", str(i), lambda i=i: conditions.jumping_clock(run, calls, reference, seed + i)
    for i, delay in enumerate(conditions.shares(seed, arguments.exports, 0.0, 8.0)):
        yield "interrupted export", str(i), lambda d=delay: conditions.interrupted_export(run, calls, reference, d)
    for how in corruptions.DAMAGES:
        for name in corruptions.BATCHES:
            yield f"damage: {how}", name, lambda h=how, n=name: _corrupt(run, n, h, seed, overrides)


def _corrupt(run: Path, name: str, how: str, seed: int, overrides: list[str]) -> dict:
    runs.clear(run)
    shutil.copytree(run.parent / "whole", run)
    return corruptions.corrupt(run, name, how, seed, "all", overrides)


def read_log(path: Path) -> dict[tuple[str, str], dict]:
    """Return the finished cases by fault and name."""
    entries = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return {(entry["fault"], entry["case"]): entry for entry in entries}


def full_command(arguments: argparse.Namespace) -> str:
    """Return the command with every option that the results depend on."""
    all_stages = arguments.stage == "all"
    numbers = ["kills", *(["full", "starts", "clocks", "exports"] if all_stages else []), "seed"]
    words = [] if all_stages else ["--stage oof"]
    words += [f"--{name} {getattr(arguments, name)}" for name in numbers]
    words += ["--preloaded"] if arguments.preloaded else []
    words += [f"--set {shlex.join(arguments.set)}"] if arguments.set else []
    return f"python -m benchmarks.robustness.faults {' '.join(words)}"


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--stage", choices=["all", "oof"], default="all")
    parser.add_argument("--kills", type=int, help="default: 60; with --stage oof 40")
    parser.add_argument("--full", type=int, default=6, help="disks that fill")
    parser.add_argument("--starts", type=int, default=3, help="pairs of starts")
    parser.add_argument("--clocks", type=int, default=2, help="runs under a clock that jumps")
    parser.add_argument("--exports", type=int, default=3, help="interrupted exports")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/faults"))
    parser.add_argument("--set", nargs="*", default=[], metavar="key.sub=value", help="overrides of the reduced demo")
    parser.add_argument("--preloaded", action="store_true", help="fork commands from a process with loaded libraries")
    parser.add_argument("--only", nargs="*", default=[], help="faults by name (kill, 'full disk', damage …)")
    parser.add_argument("--write", type=Path, help="the page, for example docs/evidence/faults.md")
    arguments = parser.parse_args()
    if arguments.kills is None:
        arguments.kills = 60 if arguments.stage == "all" else 40
    out = arguments.out.resolve() / arguments.stage
    out.mkdir(parents=True, exist_ok=True)
    processes.adopt_orphans()
    if arguments.preloaded:
        processes.preload()
    run, log = out / "run", out / "faults.jsonl"
    reference = reference_run(out, run, arguments.stage, list(arguments.set))
    done = read_log(log)
    for fault, case, call in cases(arguments, run, reference, done):
        if (fault, case) in done or (arguments.only and not any(fault.startswith(name) for name in arguments.only)):
            continue
        entry = {"fault": fault, "case": case, **call()}
        done[fault, case] = entry
        with log.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        result = "identical" if entry["identical"] else "DIFFERENT"
        print(f"{fault} {case}: {result}, {entry['lost_seconds']:.1f} s lost {entry.get('subcommand', '')}", flush=True)
    lines, failures = summary(list(done.values()), reference)
    planned = sum(1 for _ in cases(arguments, run, reference, done))
    if len(done) < planned:
        lines += ["", f"{len(done)} of {planned} planned cases are finished; rerunning the command does the others."]
    print("\n".join(lines))
    if arguments.write:
        all_stages = arguments.stage == "all"
        command, entries = full_command(arguments), list(done.values())
        write_fault_page(arguments.write, command, lines, entries, reference, all_stages)
    return int(bool(failures))


if __name__ == "__main__":
    run_script(main)
