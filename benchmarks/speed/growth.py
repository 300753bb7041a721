"""Tokens per second of a fold job at 1,000 to 16,000 battles: its cost must grow in proportion to the battles.

    python -m benchmarks.speed.growth [--battles 1000 4000 16000] [--config configs/demo.yaml] [--member llama3_1]
    python -m benchmarks.speed.growth --write docs/evidence/growth.md

For each size, on the synthetic arena: read, group and fold the battles, tokenise them, load the base, train one fold
job (both orders, half of the battles) and predict its held-out half, through the functions that ``make oof`` calls.
Loading costs the same for any number of battles, so it is a separate column, in milliseconds. Each size has a process
of its own, which warms up and then runs as many jobs as add up to the battles of the largest size. The processes share
one processor and enter each phase together, so that a change of the processor's speed affects all sizes alike. Rates
are thousands of tokens, those of both orders, per processor second. The ratio of the largest to the smallest rate, for
training and for prediction, has to be at most 1 + ``--tolerance``; else the exit status is 1.
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
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import argument_parser, paragraphs, run_script, write_page
from oof import config as configuration
from oof.common.logging_setup import quiet_libraries
from oof.common.process_tuning import prepare_process
from oof.encoding.batches import TrainingSteps, targets_in_both_orders
from oof.jobs.dataset import draft_battles
from oof.jobs.encoded_battles import EncodedBattles
from oof.jobs.fold_job import fold_jobs
from oof.jobs.run_fold_job import predict_and_store
from oof.model.classifier import load_trainable
from oof.model.lora import save_classifier
from oof.training.losses import cross_entropy
from oof.training.trainer import train_classifier

PHASES = ("prepare", "tokenise", "load", "train", "predict")
RATED = ("train", "predict")


class Job:
    """One fold job in a run of its own; each phase is a method that returns the number of tokens it handled."""

    def __init__(self, arguments: argparse.Namespace, battles: int, run: Path) -> None:
        others = [name for name in configuration.load(arguments.config, []).members if name != arguments.member]
        settings = [f"run={run}", f"data.synth.battles={battles}", "data.synth.test_battles=1", "folds.k=2"]
        self.config = configuration.load(arguments.config, settings)
        for name in others:
            del self.config.members[name]

    def prepare(self) -> int:
        draft = draft_battles(self.config)
        draft.write()
        self.table = draft.table
        self.job = fold_jobs(self.config, self.table)[0]
        self.texts = EncodedBattles(self.job.member, self.table, self.config)
        folds = self.table["fold"].to_numpy()
        self.train_rows, self.held_out = np.flatnonzero(folds != 0), np.flatnonzero(folds == 0)
        return 0

    def tokenise(self) -> int:
        return int(self.texts.training.lengths.sum())

    def load(self) -> int:
        self.model = load_trainable(self.job.member, None, self.texts.tokenizer, 0)
        return 0

    def train(self) -> int:
        encoded, pad = self.texts.training.take(self.train_rows), self.texts.tokenizer.pad_token_id
        labels = self.table["label"].to_numpy().astype(int)[self.train_rows]
        targets, recipe = targets_in_both_orders(np.eye(3, dtype=np.float32)[labels]), self.job.member.train
        steps = TrainingSteps(encoded, targets, np.ones(len(labels)), recipe, pad, 0)
        folder = self.job.folder
        train_classifier(self.model, self.job.member, steps, cross_entropy, folder / "checkpoints", 0, "growth")
        save_classifier(self.model, folder / "adapter", self.job.member)
        return int(encoded.lengths.sum())

    def predict(self) -> int:
        predict_and_store(self.model, self.texts, self.held_out, self.job.folder, 0, "growth")
        return int(self.texts.scoring.lengths[self.held_out].sum())


def one_size(arguments: argparse.Namespace, battles: int) -> None:
    """Warm up, run the jobs of one size, and print phase -> (tokens, processor seconds, jobs) as JSON.

    Before each phase, an empty line on standard output reports ready, and a line on standard input starts the phase.
    """
    totals = {}
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as scratch:
        first = Job(arguments, 200, Path(scratch) / "warm-up")
        prepare_process()
        for phase in PHASES:
            getattr(first, phase)()
        jobs = [Job(arguments, battles, Path(scratch) / str(i)) for i in range(max(arguments.battles) // battles)]
        for phase in PHASES:
            print(flush=True)
            sys.stdin.readline()
            begun = time.process_time()
            tokens = sum(getattr(job, phase)() for job in jobs)
            totals[phase] = tokens, time.process_time() - begun, len(jobs)
    print(json.dumps(totals), flush=True)


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--battles", type=int, nargs="+", default=[1000, 4000, 16000])
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--member", default="llama3_1")
    parser.add_argument("--tolerance", type=float, default=0.1)
    parser.add_argument("--write", type=Path, help="the page, e.g. docs/evidence/growth.md; default: none")
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    quiet_libraries()
    if arguments.size:
        one_size(arguments, arguments.size)
        return 0
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # the processes below inherit it
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = {
        n: subprocess.Popen([sys.executable, "-m", "benchmarks.speed.growth", *sys.argv[1:], "--size", str(n)], **pipes)
        for n in arguments.battles
    }
    for phase in PHASES:
        for process in processes.values():
            process.stdout.readline()
        print(phase, file=sys.stderr, flush=True)
        for process in processes.values():
            process.stdin.write("\n")
            process.stdin.flush()
    totals = {n: json.loads(process.communicate()[0]) for n, process in processes.items()}
    lines = ["| battles | prepare | tokenise | load, ms | train | predict |", "|---|---|---|---|---|---|"]
    rates = {}
    for n, row in totals.items():
        row["prepare"][0] = row["tokenise"][0]
        rates[n] = {phase: tokens / seconds / 1e3 for phase, (tokens, seconds, _) in row.items()}
        rates[n]["load"] = 1e3 * row["load"][1] / row["load"][2]
        lines.append(f"| {n:,} | " + " | ".join(f"{rates[n][phase]:.1f}" for phase in PHASES) + " |")
    ratios = {p: max(row[p] for row in rates.values()) / min(row[p] for row in rates.values()) for p in RATED}
    lines += [
        "",
        "Largest rate over smallest: " + ", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items()) + ".",
    ]
    page = [paragraphs(__doc__, 2), "", f"Tolerance: {arguments.tolerance:g}.", "", *lines]
    print("\n".join(lines))
    if arguments.write:
        write_page(arguments.write, "How a fold job's cost grows with the battles", page)
    return int(max(ratios.values()) > 1 + arguments.tolerance)


if __name__ == "__main__":
    run_script(main)
