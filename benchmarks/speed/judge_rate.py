"""How fast a student answers: latency of one comparison, throughput of many, and its speed beside the ensemble's.

    python -m benchmarks.speed.judge_rate runs/demo/distill/student                          # latency and throughput
    python -m benchmarks.speed.judge_rate runs/demo/distill/student --config configs/demo.yaml --run runs/demo
    python -m benchmarks.speed.judge_rate --base /models/SmolLM2-135M                        # any base, with a fresh head

``--base`` measures a checkpoint without training: a verdict's time does not depend on the weights' values. With
``--run`` the ensemble is timed on the same battles in the same process: members x folds models read every battle, then
features and stack are computed. Each model takes turns with the student, so that a machine whose speed drifts slows
both, and both are given the same ids. Medians, warm, both orders averaged; set threads with OMP_NUM_THREADS.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch

from ensemble import Judge
from ensemble.stacking.stage import load_ensemble
from oof import config as configuration
from oof.common.errors import UserError
from oof.common.logging_setup import quiet_libraries
from oof.config import Config, Member, Prompts
from oof.data.battles import read_file
from oof.data.synth import write_arena
from oof.jobs.dataset import load_battles
from oof.jobs.fold_job import fold_jobs
from oof.jobs.run_fold_job import Texts
from oof.model.classifier import device, load_base, load_classifier, load_tokenizer
from oof.training.inference import predict_logits

SHORT = (
    "What is the capital of France, and why is it famous?",
    "The capital of France is Paris. It is famous for its museums, its food and the Eiffel Tower.",
    "Paris.",
)


def seconds(call: Callable[[], object], times: int) -> float:
    """Return the median seconds of a call, after one that warms up."""
    call()
    spent = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        spent.append(time.perf_counter() - started)
    return float(np.median(spent))


def untrained(base: str, dtype: str) -> Judge:
    """Return a judge with a fresh head on any base checkpoint."""
    member, prompts = Member(checkpoint=base, dtype=dtype), Prompts()
    tokenizer = load_tokenizer(base)
    return Judge(load_base(member, tokenizer, 0).to(device()).eval(), tokenizer, member, prompts)


def battles(config: Config | None, n: int) -> pl.DataFrame:
    """Return ``n`` battles of the run, or synthetic ones."""
    if config is not None:
        table = load_battles(Path(config.run))
        return table.filter(pl.col("role") == "train").head(n)
    with tempfile.TemporaryDirectory() as folder:
        return read_file(write_arena(Path(folder), n, 0, 1)["train"], "train").table


def in_turns(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Return the median seconds of two calls that take turns, after one of each that warms up."""
    first()
    second()
    spent: list[list[float]] = [[], []]
    for _ in range(rounds):
        for call, times in zip((first, second), spent, strict=True):
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
    return float(np.median(spent[0])), float(np.median(spent[1]))


def beside_ensemble(judge: Judge, config: Config, table: pl.DataFrame, rounds: int) -> tuple[float, dict[str, float]]:
    """Return the student's seconds over the battles and, by part of the ensemble, how many times as long it takes."""
    texts = Texts(judge.member, table, config)
    student = partial(predict_logits, judge.model, judge.member, texts.scoring, judge.tokenizer.pad_token_id, "student")
    spent, parts, logits = [], {}, {}
    for job in fold_jobs(config, load_battles(Path(config.run))):
        texts = Texts(job.member, table, config)
        model = load_classifier(job.member, job.folder / "adapter", texts.tokenizer, seed=0)
        call = partial(predict_logits, model, job.member, texts.scoring, texts.tokenizer.pad_token_id, job.label)
        ours, theirs = in_turns(student, call, rounds)
        spent.append(ours)
        parts[job.label] = theirs / ours
        logits[job.name] = call()
    _, result = load_ensemble(config)
    ours, theirs = in_turns(student, lambda: result.predict(result.design(table, logits)), rounds)
    parts["features and stack"] = theirs / ours
    return float(np.median(spent)), parts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", nargs="?", help="an exported student")
    parser.add_argument("--base", help="instead of a student: a base checkpoint")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--config", help="with --run: the run's configuration")
    parser.add_argument("--run", help="compare with this run's ensemble")
    parser.add_argument("--battles", type=int, default=300)
    arguments = parser.parse_args()
    quiet_libraries()
    try:
        if bool(arguments.folder) == bool(arguments.base) or bool(arguments.run) != bool(arguments.config):
            raise UserError("give either a student's folder or --base, and --run together with --config")
        config = configuration.load(arguments.config, [f"run={arguments.run}"]) if arguments.run else None
        dtype = "float32" if arguments.dtype == "auto" else arguments.dtype
        judge = (
            untrained(arguments.base, dtype)
            if arguments.base
            else Judge.from_pretrained(arguments.folder, arguments.dtype)
        )
        report(judge, config, battles(config, arguments.battles))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def report(judge: Judge, config: Config | None, table: pl.DataFrame) -> None:
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    print(f"{judge.member.checkpoint} ({judge.member.dtype}) on {where}")
    print(f"one short comparison: {1000 * seconds(lambda: judge.compare(*SHORT), 15):.1f} ms")
    many = seconds(lambda: judge.logits(table), 3)
    print(f"{table.height} battles: {table.height / many:.1f} battles/s")
    if config is not None:
        assert judge.prompts.max_tokens == (config.prompts.score_max_tokens or config.prompts.max_tokens)
        student, parts = beside_ensemble(judge, config, table, rounds=5)
        whole, models = sum(parts.values()), len(config.members) * config.folds.k
        print("; ".join(f"{name} {ratio:.2f}" for name, ratio in parts.items()) + " times the student's time")
        print(f"ensemble of {models} models: {table.height / (student * whole):.1f} battles/s")
        print(f"one student is {whole:.2f} times as fast (members x folds x 0.8 = {0.8 * models:.1f})")


if __name__ == "__main__":
    sys.exit(main())
