"""Peak memory of a run with many unlabelled battles, without training: reading, scoring, the student's token ids.

    python -m benchmarks.speed.unlabelled_memory [--battles 20000 100000]

The battles are random words, about 1,000 characters each, in a JSON lines file of ``data.unlabelled`` beside a
synthetic arena of 200. Each number of battles and each step has a process of its own:

* ``read``: what ``make oof`` does before training: parse, group, fold, write ``battles.parquet``
* ``score``: hashes, token ids and kept scores of one teacher job, with logits of 0
* ``encode``: the token ids of both orders that a student of the whole table trains on

Printed are the growth of resident memory over that of the imports, in megabytes, beside the characters of the texts and
the bytes of the token ids.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.common import argument_parser, peak_gb, run_script
from ensemble.distillation.run_teacher_jobs import CHUNK
from ensemble.distillation.stored_scores import LOGITS, StoredScores
from ensemble.distillation.text_digests import battle_hashes, texts_key
from oof import config as configuration
from oof.common.atomic_files import write_parquet
from oof.common.logits_format import logits_frame
from oof.config import Config
from oof.jobs.dataset import draft_battles, load_battles
from oof.jobs.encoded_battles import EncodedBattles

TRAIN = 200
WORDS = 150  # of a battle, a third of them in each text
STEPS = ("read", "score", "encode")


def write_battles(path: Path, battles: int) -> None:
    """Write battles of random words as JSON lines."""
    rng = np.random.default_rng(0)
    vocabulary = ["".join(map(chr, rng.integers(97, 123, 3 + i % 7))) for i in range(5000)]
    with path.open("w", encoding="utf-8") as file:
        for i in range(battles):
            words = rng.choice(vocabulary, (3, WORDS // 3))
            texts = dict(zip(("prompt", "response_a", "response_b"), (" ".join(row) for row in words), strict=True))
            file.write(json.dumps({"id": f"u{i}", **texts}) + "\n")


def config_of(folder: Path) -> Config:
    data = [f"data.synth.battles={TRAIN}", "data.synth.test_battles=1", f"data.unlabelled=[{folder / 'u.jsonl'}]"]
    return configuration.load("configs/demo.yaml", [f"run={folder / 'run'}", *data])


def read(config: Config) -> dict[str, float]:
    draft_battles(config).write()
    return {}


def score(config: Config) -> dict[str, float]:
    table = load_battles(Path(config.run)).filter(pl.col("role") == "unlabelled")
    texts_key(table)
    battles, scores = battle_hashes(table), StoredScores(Path(config.run) / "scores")
    member = next(iter(config.members.values()))
    for rows, piece in scores.pieces(battles, CHUNK):
        piece.begin()
        counts = EncodedBattles(member, table[rows], config).scoring.counts
        frame = logits_frame(battles.gather(rows), np.zeros((len(rows), 2, 3)), 0, counts)
        write_parquet(piece.folder / LOGITS, frame.rename({"id": "battle"}))
        piece.finish()
    scores.of(table["id"], battles)
    return {}


def encode(config: Config) -> dict[str, float]:
    table = load_battles(Path(config.run))
    texts = EncodedBattles(config.distill.student, table, config.for_student())
    texts_of = (table[name].list.join("").str.len_bytes() for name in ("prompt", "response_a", "response_b"))
    return {"texts": sum(map(pl.Series.sum, texts_of)) / 1e6, "token ids": texts.training.ids.nbytes / 1e6}


def one_step(step: str, folder: Path) -> None:
    """Run a step and print the growth of peak memory in MB, with the sizes that the step reports, as JSON."""
    logging.disable(logging.INFO)
    config, before = config_of(folder), peak_gb()
    sizes = {"read": read, "score": score, "encode": encode}[step](config)
    print(json.dumps({step: (peak_gb() - before) * 1e3, **sizes}))


def measure(battles: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        write_battles(Path(name) / "u.jsonl", battles)
        row: dict[str, float] = {}
        for step in STEPS:
            command = [sys.executable, "-m", "benchmarks.speed.unlabelled_memory", "--step", step, "--folder", name]
            row |= json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        return row


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--battles", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        one_step(arguments.step, arguments.folder)
        return
    columns = ("texts", "token ids", *STEPS)
    print(f"{'battles':>9} " + " ".join(f"{name:>9}" for name in columns) + "  MB", flush=True)
    for battles in arguments.battles:
        row = measure(battles)
        print(f"{battles:9} " + " ".join(f"{row[name]:9.0f}" for name in columns), flush=True)


if __name__ == "__main__":
    run_script(main)
