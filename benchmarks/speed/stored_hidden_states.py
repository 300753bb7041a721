"""Speed-up by the disk cache of frozen-layer hidden states (``frozen: stored``).

    python -m benchmarks.speed.stored_hidden_states --checkpoint models/gemma3-270m
    python -m benchmarks.speed.stored_hidden_states --battles 30 --epochs 0.5             # the demo's Gemma2, a minute

The same fold jobs run with ``frozen: recompute`` and ``frozen: stored``, on synthetic battles; each job trains adapters
in the upper half of the layers and scores its fold in both orders. The two settings take turns, fold by fold, so that
a machine that slows down slows both. The first job of ``stored`` also computes and stores what the later ones read.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

from benchmarks.common import argument_parser, cpu_recipe, origin, run_script, timed
from oof import config as configuration
from oof.common.atomic_files import read_parquet
from oof.common.logging_setup import quiet_libraries
from oof.common.logits_format import logits_of
from oof.jobs.dataset import load_battles, prepare
from oof.jobs.encoded_battles import EncodedBattles
from oof.jobs.fold_job import FoldJob, fold_jobs
from oof.jobs.run_fold_job import run_job

SETTINGS = ("recompute", "stored")  # of ``frozen``


def jobs_of(frozen: str, arguments: argparse.Namespace) -> list[FoldJob]:
    """Return the fold jobs of a fresh run."""
    run = arguments.out / frozen
    shutil.rmtree(run, ignore_errors=True)
    member = cpu_recipe(str(arguments.checkpoint), arguments.epochs, frozen=frozen)
    data = {"synth": {"battles": arguments.battles}}
    tree = {"run": str(run), "data": data, "folds": {"k": arguments.folds}, "members": {"member": member}}
    path = arguments.out / f"{frozen}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree), encoding="utf-8")
    config = configuration.load(str(path), [])
    return fold_jobs(config, prepare(config))


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path("configs/bases/tiny-gemma2"))
    parser.add_argument("--battles", type=int, default=240)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--out", type=Path, default=Path("runs/frozen"))
    arguments = parser.parse_args()
    quiet_libraries()
    jobs = {frozen: jobs_of(frozen, arguments) for frozen in SETTINGS}
    texts = {f: EncodedBattles(j[0].member, load_battles(Path(j[0].config.run)), j[0].config) for f, j in jobs.items()}
    seconds: dict[str, list[float]] = {frozen: [] for frozen in SETTINGS}
    for fold in range(arguments.folds):
        for frozen in SETTINGS if fold % 2 else SETTINGS[::-1]:
            seconds[frozen].append(timed(lambda f=frozen, k=fold: run_job(jobs[f][k], texts[f]))[1])
    logits = [[logits_of(read_parquet(job.folder / "logits.parquet")) for job in jobs[f]] for f in SETTINGS]
    largest = max(float(np.abs(one - other).max()) for one, other in zip(*logits, strict=True))
    stored = sum(path.stat().st_size for path in (arguments.out / "stored" / "frozen").rglob("*.safetensors"))
    folds = [f"fold {fold}" for fold in range(arguments.folds)]
    print(f"{origin()}\n")
    print(f"| seconds | {' | '.join(folds)} | all |\n|---|{'---|' * (len(folds) + 1)}")
    for frozen in SETTINGS:
        cells = " | ".join(f"{s:.0f}" for s in seconds[frozen])
        print(f"| {frozen} | {cells} | {sum(seconds[frozen]):.0f} |")
    ratios = [one / other for one, other in zip(seconds["recompute"], seconds["stored"], strict=True)]
    total = sum(seconds["recompute"]) / sum(seconds["stored"])
    print(f"| times faster | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} | {total:.2f} |")
    print(f"\nLargest difference of a held-out logit: {largest:.1e}. Disk: {stored / 1e6:,.0f} MB.")


if __name__ == "__main__":
    run_script(main)
