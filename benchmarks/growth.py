"""Does the cost of a fold job grow in proportion to its battles? Tokens per second at 1,000 to 16,000 battles.

    python benchmarks/growth.py [--battles 1000 4000 16000] [--config configs/demo.yaml] [--member llama3_1]

For each size, on the synthetic arena: read, group and fold the battles, tokenise them, load the base, train one fold
job (both orders, half of the battles) and predict its held-out half, through the functions that ``make oof`` calls.
Loading costs the same whatever the number of battles, so it is a column of its own, in milliseconds. Each size has a
process of its own, which warms up and then does its job as often as it takes to do as many battles as the largest does
at once. All processes share one processor at the same time: its speed moves by half from minute to minute, and so it
does so to all of them alike. Rates are all tokens over all processor seconds. The last line says how far the rate of
training and prediction moves between the sizes; status 1 if it is by more than ``--tolerance``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from oof import config as configuration
from oof.adapters import save_classifier
from oof.batches import TrainingSteps
from oof.dataset import prepare
from oof.fold_jobs import fold_jobs
from oof.jobs import Texts, both_orders, predict_stored
from oof.log import quiet_libraries
from oof.losses import cross_entropy
from oof.models import load_trainable
from oof.train import train_classifier

PHASES = ("prepare", "tokenise", "train", "predict")
LOAD = "load"


def measure(arguments: argparse.Namespace, battles: int, run: Path) -> dict[str, tuple[int, float]]:
    """Return phase -> (tokens of both orders, processor seconds)."""
    others = [name for name in configuration.load(arguments.config, []).members if name != arguments.member]
    settings = [f"run={run}", f"data.synth.battles={battles}", "data.synth.test_battles=1", "folds.k=2"]
    config = configuration.load(arguments.config, settings)
    for name in others:
        del config.members[name]
    out: dict[str, tuple[int, float]] = {}

    def timed(name: str, call: Callable[[], object], tokens: Callable[[], int]) -> None:
        begun = time.process_time()
        call()
        spent = time.process_time() - begun
        out[name] = tokens(), spent

    tables: list = []
    timed("prepare", lambda: tables.append(prepare(config)), lambda: 0)
    job, table = fold_jobs(config, tables[0])[0], tables[0]
    texts = Texts(job.member, table, config)
    timed("tokenise", lambda: texts.training, lambda: int(texts.training.lengths.sum()))
    out["prepare"] = out["tokenise"][0], out["prepare"][1]
    folds, labels = table["fold"].to_numpy(), table["label"].to_numpy().astype(int)
    trained, held = np.flatnonzero(folds != 0), np.flatnonzero(folds == 0)
    model: list = []

    texts_of, pad = texts.training.take(trained), texts.tokenizer.pad_token_id
    timed(LOAD, lambda: model.append(load_trainable(job.member, None, texts.tokenizer, 0, 1)), lambda: 1)

    def train() -> None:
        targets = both_orders(np.eye(3, dtype=np.float32)[labels[trained]])
        steps = TrainingSteps(texts_of, targets, np.ones(len(trained)), job.member.train, pad, 0)
        train_classifier(model[0], job.member, steps, cross_entropy, job.folder / "checkpoints", 0, "growth")
        save_classifier(model[0], job.folder / "adapter", job.member)

    timed("train", train, lambda: int(texts_of.lengths.sum()))
    timed(
        "predict",
        lambda: predict_stored(model[0], texts, held, job.folder, 0, "growth"),
        lambda: int(texts.scoring.lengths[held].sum()),
    )
    return out


@contextmanager
def silence():
    logging.disable(logging.INFO)
    yield
    logging.disable(logging.NOTSET)


def one_size(arguments: argparse.Namespace, battles: int) -> None:
    """Warm up, say so, wait for the others, and print phase -> (tokens, processor seconds) as JSON."""
    totals = {phase: (0, 0.0) for phase in (*PHASES, LOAD)}
    with silence(), tempfile.TemporaryDirectory() as scratch:
        measure(arguments, 200, Path(scratch) / "warm-up")
        print(flush=True)
        sys.stdin.readline()
        for i in range(max(arguments.battles) // battles):
            for phase, (tokens, seconds) in measure(arguments, battles, Path(scratch) / str(i)).items():
                totals[phase] = totals[phase][0] + tokens, totals[phase][1] + seconds
    print(json.dumps(totals), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--battles", type=int, nargs="+", default=[1000, 4000, 16000])
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--member", default="llama3_1")
    parser.add_argument("--tolerance", type=float, default=0.1)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    quiet_libraries()
    if arguments.size:
        one_size(arguments, arguments.size)
        return 0
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # the processes below inherit it
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = {
        n: subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--size", str(n)], **pipes)
        for n in arguments.battles
    }
    for process in processes.values():
        process.stdout.readline()
    for process in processes.values():
        process.stdin.write("\n")
        process.stdin.flush()
    totals = {n: json.loads(process.communicate()[0]) for n, process in processes.items()}
    rates = {n: {phase: row[phase][0] / row[phase][1] for phase in PHASES} for n, row in totals.items()}
    print("thousand tokens of both orders per second of processor")
    print(f"{'battles':>8} " + " ".join(f"{phase:>9}" for phase in PHASES) + f"{'load, ms':>10}")
    for n, row in rates.items():
        cells = " ".join(f"{row[phase] / 1e3:9.1f}" for phase in PHASES)
        print(f"{n:8} {cells}{1e3 * totals[n][LOAD][1] / totals[n][LOAD][0]:10.0f}")
    moved = {
        phase: max(r[phase] for r in rates.values()) / min(r[phase] for r in rates.values()) for phase in PHASES[2:]
    }
    print("largest rate over smallest: " + ", ".join(f"{phase} {by:.3f}" for phase, by in moved.items()))
    return int(max(moved.values()) > 1 + arguments.tolerance)


if __name__ == "__main__":
    sys.exit(main())
