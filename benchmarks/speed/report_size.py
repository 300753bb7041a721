"""Time and memory of the report and of the contamination check at the competition's size.

    python -m benchmarks.speed.report_size --write docs/evidence/report-size.md
    python -m benchmarks.speed.report_size --battles 10000 --corpus 0        # fewer, without the check

Battles are synthetic: prompts as in benchmarks/speed/grouping.py (mean about 350 characters), responses of about 1,300
characters with a heavy tail, logits from noisy latents. Each step runs in a fresh process on OMP_NUM_THREADS threads;
memory is its peak resident size. Limits: 2 minutes and 2 GB for the report, 3 GB for the corpus.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.common import Usage, argument_parser, measured, paragraphs, run_script, write_page
from benchmarks.speed.grouping import VOCABULARY, prompts
from ensemble.stacking.stage import predictions_frame
from oof.common.atomic_files import read_parquet, write_json, write_parquet
from oof.common.digests import file_digest
from oof.common.logits_format import logits_frame
from oof.config import Groups
from oof.folds.groups import group_battles
from oof.metrics import softmax_mean

HEADER = "| step | seconds | peak memory, GB | at most | result |\n|---|---|---|---|---|"


def write_run(folder: Path, n: int, seed: int = 0) -> None:
    """Write a run folder of n battles and two members, stages one to three."""
    rng = np.random.default_rng(seed)
    texts = prompts(n, seed)
    words = np.array([f"w{i:05d}"[: int(k)] for i, k in enumerate(rng.integers(3, 7, VOCABULARY))])
    stream = words[(VOCABULARY * rng.random(400_000) ** 3).astype(int)]

    def response() -> list[str]:
        size = min(int(np.ceil(rng.lognormal(5.1, 0.8))), 5000)
        start = int(rng.integers(len(stream) - size))
        return [" ".join(stream[start : start + size])]

    truth = rng.normal(0, 1, (n, 3))
    labels = (truth + rng.gumbel(size=(n, 3))).argmax(axis=1)
    table = pl.DataFrame(
        {
            "id": [str(i) for i in range(n)],
            "role": ["train"] * n,
            "weight": np.ones(n),
            "label": pl.Series(labels, dtype=pl.Int8),
            "prompt": pl.Series([[text] for text in texts]),
            "response_a": [response() for _ in range(n)],
            "response_b": [response() for _ in range(n)],
            "language": pl.Series([None] * n, dtype=pl.String),
            "group_key": pl.Series([None] * n, dtype=pl.String),
        }
    )
    groups = group_battles(table, Groups())
    table = table.with_columns(group=pl.Series(groups), fold=pl.Series(groups % 5, dtype=pl.Int32))
    folder.mkdir(parents=True, exist_ok=True)
    write_parquet(folder / "battles.parquet", table)
    write_parquet(folder / "folds.parquet", table.select("id", "role", "group", "fold"))
    files = {name: file_digest(folder / name) for name in ("battles.parquet", "folds.parquet")}
    write_json(folder / "battles.json", {"key": "", "files": files})
    members = {"gemma2": {}, "llama3_1": {}}
    config = {"seed": 0, "folds": {"k": 5}, "groups": {"threshold": 0.7}, "members": members}
    write_json(folder / "run.json", {"config": config})
    ids, fold = table["id"], table["fold"].to_numpy()
    logits = {name: (truth[:, None] + rng.normal(0, 0.7, (n, 2, 3))).astype(np.float32) for name in members}
    for name, z in logits.items():
        write_parquet(folder / "oof" / name / "logits.parquet", logits_frame(ids, z, fold))
    mean = softmax_mean(np.mean(list(logits.values()), axis=0))
    probs = {name: mean for name in ("mean", "stack", "calibrated")}
    write_parquet(folder / "stack" / "predictions.parquet", predictions_frame(ids, probs))
    student = logits["gemma2"]
    write_parquet(folder / "distill" / "logits.parquet", logits_frame(ids, student, fold))
    frame = predictions_frame(ids, {"student": softmax_mean(student)})
    write_parquet(folder / "distill" / "predictions.parquet", frame)


def write_corpus(path: Path, n: int, run: Path) -> None:
    """Write n conversations as JSONL; every tenth is a prompt from the first third of the run's battles."""
    leaked = read_parquet(run / "battles.parquet")["prompt"].list.first().to_list()
    leaked = leaked[: len(leaked) // 3]
    with path.open("w", encoding="utf-8") as file:
        for part in range(0, n, 100_000):
            for i, text in enumerate(prompts(min(100_000, n - part), seed=part + 1)):
                content = leaked[(part + i) % len(leaked)] if i % 10 == 0 else text
                file.write(json.dumps({"conversation": [{"role": "user", "content": content}]}) + "\n")


def measure(*arguments: str) -> tuple[Usage, str]:
    """Run one subcommand of ensemble in a fresh process; return its cost and its first line of output."""
    with tempfile.TemporaryFile("w+") as output:
        usage = measured([sys.executable, "-m", "ensemble", *arguments], stdout=output)
        if usage.status:
            sys.exit(f"ensemble {arguments[0]} failed with status {usage.status}")
        output.seek(0)
        return usage, output.readline().strip()


def main() -> None:
    parser = argument_parser(__doc__, whole_text=True)
    parser.add_argument("--battles", type=int, default=57_477)
    parser.add_argument("--corpus", type=int, default=1_000_000, help="prompts (JSONL); 0: no check")
    parser.add_argument("--write", type=Path, metavar="PAGE")
    parser.add_argument("--keep", type=Path, help="folder of the run and the corpus; reused if they exist")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        run, corpus = folder / f"run-{arguments.battles}", folder / f"corpus-{arguments.corpus}.jsonl"
        if not (run / "run.json").is_file():
            write_run(run, arguments.battles)
        if arguments.corpus:
            if not corpus.is_file():
                write_corpus(corpus, arguments.corpus, run)
            cost, line = measure("seen", str(run), "--corpus", str(corpus))
            rows.append(_row(f"contamination check of {arguments.corpus:,} prompts", cost, "3 GB", line.split(" (")[0]))
        cost, _ = measure("report", str(run))
        size = (run / "report" / "index.html").stat().st_size / 1e6
        rows.append(_row("report", cost, "120 s, 2 GB", f"page of {size:.2f} MB"))
    lines = [f"{arguments.battles:,} battles, two members.", "", HEADER, *rows]
    print("\n".join(lines))
    if arguments.write:
        write_page(arguments.write, "Report and contamination check at size", [paragraphs(__doc__, 2), "", *lines])


def _row(name: str, cost: Usage, limits: str, result: str) -> str:
    return f"| {name} | {cost.seconds:.1f} | {cost.peak_gb:.2f} | {limits} | {result} |"


if __name__ == "__main__":
    run_script(main)
