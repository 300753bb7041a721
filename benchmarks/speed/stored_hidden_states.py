"""What ``frozen: stored`` saves: the same fold jobs, their frozen lower half computed each time or once per text.

    python -m benchmarks.speed.stored_hidden_states --checkpoint models/gemma3-270m [--battles 240] [--folds 3] [--epochs 2]

Synthetic battles; each job trains adapters in the upper half of the layers and scores its fold in both orders. The two
ways take turns, fold by fold, so that a machine which slows down slows both. The first job of ``stored`` also computes
and stores what the later ones read.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.common import made
from oof import config as configuration
from oof.common.atomic_files import read_parquet
from oof.common.logging_setup import quiet_libraries
from oof.common.logits_format import logits_of
from oof.jobs.dataset import load_battles, prepare
from oof.jobs.fold_job import FoldJob, fold_jobs
from oof.jobs.run_fold_job import Texts, run_job

WAYS = ("recompute", "stored")


def jobs_of(way: str, arguments: argparse.Namespace) -> list[FoldJob]:
    """Return the fold jobs of a fresh run."""
    run = arguments.out / way
    shutil.rmtree(run, ignore_errors=True)
    train = {"epochs": arguments.epochs, "lr": 5e-4, "head_lr": 2e-3, "batch_battles": 8, "swap": "random"}
    lora = {"rank": 16, "alpha": 32, "layers": "upper_half"}
    member = {"checkpoint": str(arguments.checkpoint), "dtype": "auto", "lora": lora, "train": train, "frozen": way}
    data = {"synth": {"battles": arguments.battles}}
    tree = {"run": str(run), "data": data, "folds": {"k": arguments.folds}, "members": {"member": member}}
    path = arguments.out / f"{way}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree), encoding="utf-8")
    config = configuration.load(str(path), [])
    return fold_jobs(config, prepare(config))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--checkpoint", type=Path, default=Path("configs/bases/tiny-gemma2"))
    parser.add_argument("--battles", type=int, default=240)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--out", type=Path, default=Path("runs/frozen"))
    arguments = parser.parse_args()
    quiet_libraries()
    jobs = {way: jobs_of(way, arguments) for way in WAYS}
    texts = {way: Texts(j[0].member, load_battles(Path(j[0].config.run)), j[0].config) for way, j in jobs.items()}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for fold in range(arguments.folds):
        for way in WAYS if fold % 2 else WAYS[::-1]:
            begun = time.perf_counter()
            run_job(jobs[way][fold], texts[way])
            seconds[way].append(time.perf_counter() - begun)
    logits = [[logits_of(read_parquet(job.folder / "logits.parquet")) for job in jobs[way]] for way in WAYS]
    apart = max(float(np.abs(one - other).max()) for one, other in zip(*logits, strict=True))
    states = sum(path.stat().st_size for path in (arguments.out / "stored" / "frozen").rglob("*.safetensors"))
    folds = [f"fold {fold}" for fold in range(arguments.folds)]
    print(f"{made()} by `python -m benchmarks.speed.stored_hidden_states {' '.join(sys.argv[1:])}`.\n")
    print(f"| seconds | {' | '.join(folds)} | all |\n|---|{'---|' * (len(folds) + 1)}")
    for way in WAYS:
        cells = " | ".join(f"{s:.0f}" for s in seconds[way])
        print(f"| {way} | {cells} | {sum(seconds[way]):.0f} |")
    ratios = [one / other for one, other in zip(seconds["recompute"], seconds["stored"], strict=True)]
    total = sum(seconds["recompute"]) / sum(seconds["stored"])
    print(f"| times faster | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} | {total:.2f} |")
    print(f"\nLargest difference of a held-out logit: {apart:.1e}. Disk: {states / 1e6:,.0f} MB.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
