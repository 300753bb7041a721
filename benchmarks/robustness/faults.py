"""A reduced demo under faults: whatever happens, it ends with the same bytes, or says in one sentence why it cannot.

    python -m benchmarks.robustness.faults [--kills 60] [--write docs/results-faults.md]     (about two hours on two cores)
    python -m benchmarks.robustness.faults --stage oof --kills 40                            (stage one alone, kills alone)

One uninterrupted run gives the reference. Then, each from the beginning: kill -9 at random instants (with all workers,
or the verb's process alone, in turn), a disk that fills, a read-only run folder, two starts at once, a clock that
jumps, an interrupted export, and on copies of the finished run damage to one file of every kind. Seeded; resumable:
``faults.jsonl`` keeps what is done, for one commit and one set of settings. Exit status 1 if a result differs or an
artifact is half-written.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.common import commit
from benchmarks.robustness import corruptions
from benchmarks.robustness import fault_conditions as conditions
from benchmarks.robustness import fault_runs as runs
from benchmarks.robustness.fault_table import summary, write_page

Case = Callable[[], dict]


def reference(out: Path, run: Path, stage: str, more: list[str]) -> dict:
    """Return facts of an uninterrupted run, whose files stay in ``out/whole``; made once for a commit and settings."""
    path = out / "reference.json"
    calls = runs.commands(run, stage, more)
    made_of = {"commit": commit(), "calls": calls}
    if path.is_file():
        known = json.loads(path.read_text())
        if {name: known.get(name) for name in made_of} == made_of:
            return known
    for name in ("whole", "run"):
        runs.clear(out / name)
    (out / "faults.jsonl").unlink(missing_ok=True)
    done = runs.run_chain(calls)
    if done.status:
        sys.exit(f"the run failed by itself (status {done.status}): {done.last}")
    shutil.copytree(run, out / "whole")
    runs.clear(run)
    again = runs.run_chain(calls)  # the first one also warmed the machine's caches: kills are due in what this takes
    sizes = [file.stat().st_size for file in run.rglob("*") if file.is_file()]
    idle = runs.run_chain(calls)
    facts = {
        **made_of,
        "seconds": again.seconds,
        "busy": again.busy,
        "idle": idle.busy,
        "files": runs.fingerprint(out / "whole"),
    }
    if again.status or runs.differences(run, facts["files"]) or runs.half_written(run):
        sys.exit("two uninterrupted runs differ, or one does not leave what its own manifests say")
    path.write_text(json.dumps({**facts, "bytes": sum(sizes), "largest": max(sizes)}))
    return json.loads(path.read_text())


def cases(arguments: argparse.Namespace, run: Path, whole: dict, done: dict) -> Iterator[tuple[str, str, Case]]:
    """Yield (fault, name of the case, call) in a fixed order; kills until as many as wanted have met the run."""
    seed, seconds, calls = arguments.seed, whole["seconds"], whole["calls"]
    if arguments.stage == "all":
        yield from _conditions(seed, run, whole, arguments)
    # Drawn one after the other, so that more kills begin with the same ones.
    rng, met = conditions.np.random.default_rng(seed), 0
    for i in range(2 * arguments.kills):
        if met == arguments.kills:
            break
        at = float(rng.uniform(0.02, 1.0) * seconds)
        everybody = i % 2 == 0
        facts = {"at": round(at, 1), "everybody": everybody}
        yield (
            "kill",
            str(i),
            lambda at=at, e=everybody, f=facts: f | conditions.kill(run, calls, whole, conditions.after(at), e),
        )
        met += done.get(("kill", str(i)), {"killed": True})["killed"]


def _conditions(seed: int, run: Path, whole: dict, arguments: argparse.Namespace) -> Iterator[tuple[str, str, Case]]:
    calls, more = whole["calls"], list(arguments.set)
    out, seconds = run.parent, whole["seconds"]
    mounted = conditions.can_mount(out / "mount")
    for i, share in enumerate(conditions.shares(seed, arguments.full, 0.02, 0.9)):
        yield "full disk", str(i), lambda s=share: conditions.full_disk(run, calls, whole, s, mounted)
    if mounted:
        at = seconds / 3
        yield "read-only folder", "0", lambda: conditions.read_only(run, calls, whole, out / "whole", at)
    for i, later in enumerate([0.0, *conditions.shares(seed, arguments.starts - 1, 1.0, seconds * 0.8)]):
        yield "two starts", str(i), lambda s=later: conditions.two_starts(run, calls, whole, s)
    for i in range(arguments.clocks):
        yield "jumping clock", str(i), lambda i=i: conditions.jumping_clock(run, calls, whole, seed + i)
    for i, delay in enumerate(conditions.shares(seed, arguments.exports, 0.0, 8.0)):
        yield "interrupted export", str(i), lambda d=delay: conditions.interrupted_export(run, calls, whole, d)
    for how in corruptions.DAMAGES:
        for name in corruptions.BATCHES:
            yield f"damage: {how}", name, lambda h=how, n=name: _corrupt(run, n, h, seed, more)


def _corrupt(run: Path, name: str, how: str, seed: int, more: list[str]) -> dict:
    runs.clear(run)
    shutil.copytree(run.parent / "whole", run)
    return corruptions.corrupt(run, name, how, seed, "all", more)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--stage", choices=["all", "oof"], default="all")
    parser.add_argument("--kills", type=int, help="default: 60, of stage one alone 40")
    parser.add_argument("--full", type=int, default=6, help="disks that fill")
    parser.add_argument("--starts", type=int, default=3, help="pairs of starts")
    parser.add_argument("--clocks", type=int, default=2, help="runs under a clock that jumps")
    parser.add_argument("--exports", type=int, default=3, help="interrupted exports")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/faults"))
    parser.add_argument("--set", nargs="*", default=[], metavar="key.sub=value", help="laid over the reduced demo")
    parser.add_argument("--preloaded", action="store_true", help="fork verbs from a process with the libraries loaded")
    parser.add_argument("--only", nargs="*", default=[], help="faults by name (kill, 'full disk', damage …)")
    parser.add_argument("--write", type=Path, help="page for the table, for example docs/results-faults.md")
    arguments = parser.parse_args()
    if arguments.kills is None:
        arguments.kills = 60 if arguments.stage == "all" else 40
    out = arguments.out.resolve() / arguments.stage
    out.mkdir(parents=True, exist_ok=True)
    runs.adopt_orphans()
    if arguments.preloaded:
        runs.preload()
    run, log = out / "run", out / "faults.jsonl"
    whole = reference(out, run, arguments.stage, list(arguments.set))
    done = {}
    for line in log.read_text().splitlines() if log.is_file() else []:
        entry = json.loads(line)
        done[entry["fault"], entry["case"]] = entry
    for fault, case, call in cases(arguments, run, whole, done):
        if (fault, case) in done or (arguments.only and not any(fault.startswith(name) for name in arguments.only)):
            continue
        entry = {"fault": fault, "case": case, **call()}
        done[fault, case] = entry
        with log.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        said = "identical" if entry["identical"] else "DIFFERENT"
        print(f"{fault} {case}: {said}, {entry['lost_seconds']:.1f} s lost {entry.get('verb', '')}", flush=True)
    lines, failures = summary(list(done.values()), whole)
    planned = sum(1 for _ in cases(arguments, run, whole, done))
    if len(done) < planned:
        lines += ["", f"{len(done)} of {planned} planned cases are done; the same command goes on with the others."]
    print("\n".join(lines))
    if arguments.write:
        everything = arguments.stage == "all"
        given = ["kills", *(["full", "starts", "clocks", "exports"] if everything else []), "seed"]
        words = [] if everything else ["--stage oof"]
        words += [f"--{name} {getattr(arguments, name)}" for name in given]
        words += ["--preloaded"] if arguments.preloaded else []
        words += [f"--set {shlex.join(arguments.set)}"] if arguments.set else []
        command = f"python -m benchmarks.robustness.faults {' '.join(words)}"
        write_page(arguments.write, command, lines, done, whole, everything)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
