"""One fold job of ours with its cost: training, and scoring of its held-out battles from their texts.

    python -m benchmarks.quality.our_fold_job facts.json configs/mine.yaml --member NAME --fold 0 [key=value …]

``benchmarks/quality/peers.py`` starts it, so that its memory is counted alone. The fold job is ``python -m oof job``.
Then the held-out battles are scored once more, as battles that were never seen: tokens and stored hidden states of the
run are not reused.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.common import run_script, timed
from oof import config as configuration
from oof.__main__ import main as oof_main
from oof.common.atomic_files import read_json, read_parquet, write_json
from oof.common.logits_format import logits_of
from oof.jobs.dataset import load_battles
from oof.jobs.encoded_battles import EncodedBattles
from oof.model.classifier import load_classifier


def scoring(config: configuration.Config, name: str, fold: int) -> dict[str, float]:
    """Return the seconds of scoring a fold job's held-out battles, and the largest difference from its own logits."""
    folder = Path(config.run) / "oof" / name / f"fold-{fold}"
    stored = read_parquet(folder / "logits.parquet")
    battles = pl.DataFrame({"id": stored["id"]}).join(
        load_battles(Path(config.run)).filter(pl.col("role") == "train"), on="id", how="left", maintain_order="left"
    )
    member = replace(config.members[name], frozen="recompute")
    with tempfile.TemporaryDirectory() as scratch:
        encoded = EncodedBattles(member, battles, replace(config, run=scratch))
        model = load_classifier(member, folder / "adapter", encoded.tokenizer, config.seed)
        rows = np.arange(battles.height)
        logits, seconds = timed(lambda: encoded.logits(model, rows, f"{name} fold {fold}", Path(scratch) / "partial"))
    return {"score_seconds": seconds, "difference": float(np.abs(logits - logits_of(stored)).max())}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("config")
    parser.add_argument("--member", required=True)
    parser.add_argument("--fold", type=int, required=True)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    given = [arguments.config, *arguments.overrides]
    status = oof_main(["job", *given, "--member", arguments.member, "--fold", str(arguments.fold)])
    if status:
        return status
    config = configuration.load(arguments.config, arguments.overrides)
    folder = Path(config.run) / "oof" / arguments.member / f"fold-{arguments.fold}"
    job = read_json(folder / "job.json")
    train = config.members[arguments.member].train
    steps = math.ceil(train.epochs * math.ceil(job["n_trained"] / train.batch_battles))
    facts = {"train_seconds": job["seconds"], "trained": job["n_trained"], "steps": max(1, steps)}
    write_json(arguments.out, facts | scoring(config, arguments.member, arguments.fold))
    return 0


if __name__ == "__main__":
    run_script(main)
