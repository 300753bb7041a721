"""Stage one killed at random instants: it always ends with the same bytes.

    python benchmarks/faults.py [--kills 40] [--seed 0] [--out runs/faults]

One uninterrupted run gives the reference. Then, for each kill: a fresh run of the same reduced demo (two members, two
folds) is started, gets kill -9 at a random instant of the reference's time (with its workers, or alone, in turn), is
started again and left to finish; its artifacts must equal the reference's byte for byte. Resumable: ``kills.jsonl``
keeps what is done. Prints the number of identical runs, the work that was lost, and how many half-written artifacts
were found (must be 0).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
REDUCED = [
    "data.synth.battles=240",
    "data.synth.test_battles=30",
    "folds.k=2",
    "jobs.workers=2",
    *(f"members.{name}.train.checkpoint_steps=2" for name in ("gemma2", "llama3_1")),
]
ARTIFACTS = ("logits.parquet", "folds.parquet", "battles.parquet", "adapter_model.safetensors")


def start(run: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "oof", "oof", "configs/demo.yaml", f"run={run}", *REDUCED]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, text=True, env=environment, start_new_session=True, **quiet)


def finish(process: subprocess.Popen[str]) -> None:
    _, said = process.communicate()
    if process.returncode:
        sys.exit(f"the run failed by itself (status {process.returncode}): {said.strip().splitlines()[-1:]}")


def fingerprint(run: Path) -> dict[str, str]:
    """Return the checksum of every artifact of a finished run."""
    paths = [path for path in run.rglob("*") if path.name in ARTIFACTS]
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)}


def half_written(run: Path) -> list[str]:
    """Return artifacts that a manifest vouches for and that are not what it says, after a kill."""
    broken = []
    for manifest in [path for path in run.rglob("*.json") if path.name in ("job.json", "member.json", "battles.json")]:
        try:
            files = json.loads(manifest.read_text())["files"]
        except (ValueError, KeyError):
            broken.append(str(manifest))
            continue
        for name, expected in files.items():
            path = manifest.parent / name
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != expected:
                broken.append(str(path))
    return broken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/faults"))
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    reference, log = out / "reference.json", out / "kills.jsonl"
    if not reference.is_file():
        shutil.rmtree(out / "whole", ignore_errors=True)
        started = time.monotonic()
        finish(start(out / "whole"))
        facts = {"seconds": time.monotonic() - started, "files": fingerprint(out / "whole")}
        reference.write_text(json.dumps(facts))
    whole = json.loads(reference.read_text())
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    instants = np.random.default_rng(arguments.seed).uniform(0.02, 1.0, arguments.kills) * whole["seconds"]
    for i in range(len(done), arguments.kills):
        done.append(one_kill(out / f"kill-{i}", float(instants[i]), whole, everybody=i % 2 == 0))
        with log.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
        print(
            f"kill {i + 1}: at {instants[i]:.1f} s, {'identical' if done[-1]['identical'] else 'DIFFERENT'}", flush=True
        )
    identical, broken = sum(d["identical"] for d in done), sum(len(d["half_written"]) for d in done)
    lost = [d["lost_seconds"] for d in done]
    print(
        f"{len(done)} kills: {identical} identical results, {broken} half-written artifacts, work lost: "
        f"median {np.median(lost):.1f} s, most {max(lost):.1f} s of a {whole['seconds']:.1f} s run"
    )
    return int(identical != len(done) or broken > 0)


def one_kill(run: Path, at: float, whole: dict, everybody: bool) -> dict:
    shutil.rmtree(run, ignore_errors=True)
    process = start(run)
    started = time.monotonic()
    while time.monotonic() - started < at and process.poll() is None:
        time.sleep(0.005)
    if process.poll() is None:
        if everybody:
            os.killpg(process.pid, signal.SIGKILL)
        else:  # its workers must end by themselves
            process.kill()
        process.wait()
    spent = time.monotonic() - started
    broken = half_written(run) if run.is_dir() else []
    started = time.monotonic()
    finish(start(run))
    total = spent + time.monotonic() - started
    facts = {"at": at, "identical": fingerprint(run) == whole["files"], "half_written": broken}
    shutil.rmtree(run)
    return {**facts, "lost_seconds": round(max(0.0, total - whole["seconds"]), 2)}


if __name__ == "__main__":
    sys.exit(main())
