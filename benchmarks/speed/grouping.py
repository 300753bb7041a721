"""Growth of the time and memory of grouping near-duplicate prompts, from 50,000 to 500,000 prompts.

    python -m benchmarks.speed.grouping                      the four sizes (about two minutes on 2 cores)
    python -m benchmarks.speed.grouping --sizes 57477        the competition's size
    python -m benchmarks.speed.grouping --write docs/evidence/grouping.md

Each size runs in a fresh process. Prompts are synthetic: lengths as in the arena (mean about 350 characters, heavy
tail), words with a Zipf-like distribution, 10 % exact repeats in another case and punctuation, 10 % small edits, 10 %
under one of 20 long templates. Memory is the process's peak resident size; beside it is the part that Python, the
imports and the table take.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.common import argument_parser, paragraphs, peak_gb, run_script, timed, write_page
from oof.config import Groups
from oof.folds import assignment, groups

SIZES = (50_000, 100_000, 200_000, 500_000)
VOCABULARY = 30_000
TEMPLATES = 20


def prompts(n: int, seed: int = 0) -> list[str]:
    """Return ``n`` synthetic prompts, duplicates and near-duplicates included."""
    rng = np.random.default_rng(seed)
    letters = rng.integers(97, 123, size=(VOCABULARY, 9), dtype=np.uint8)
    lengths = rng.integers(2, 10, size=VOCABULARY)
    words = [bytes(row[:length]).decode() for row, length in zip(letters, lengths, strict=True)]

    def sentence(n_words: int) -> list[str]:
        return [words[i] for i in (VOCABULARY * rng.random(n_words) ** 3).astype(int).tolist()]

    templates = [" ".join(sentence(60)) for _ in range(TEMPLATES)]
    texts: list[str] = []
    for kind, n_words in zip(
        rng.random(n).tolist(), np.ceil(rng.lognormal(3.3, 1.1, n)).astype(int).tolist(), strict=True
    ):
        if texts and kind < 0.2:
            old = texts[int(rng.integers(len(texts)))]
            if kind < 0.1:
                texts.append(old.upper() + "!")
            else:
                edited = old.split()
                edited[int(rng.integers(len(edited)))] = "edited"
                texts.append(" ".join(edited))
        elif kind < 0.3:
            texts.append(f"{templates[int(rng.integers(TEMPLATES))]}: {' '.join(sentence(min(n_words, 40)))}")
        else:
            texts.append(" ".join(sentence(min(n_words, 3000))))
    return texts


def table_of(texts: list[str], seed: int = 0) -> pl.DataFrame:
    """Return a canonical table of train battles with these prompts and short responses."""
    n = len(texts)
    labels = np.random.default_rng(seed).integers(0, 3, n)
    return pl.DataFrame(
        {
            "id": [str(i) for i in range(n)],
            "role": pl.repeat("train", n, eager=True),
            "label": pl.Series(labels, dtype=pl.Int8),
            "prompt": pl.Series(texts).reshape((n, 1)).arr.to_list(),
            "response_a": pl.Series([f"a{i}" for i in range(n)]).reshape((n, 1)).arr.to_list(),
            "response_b": pl.Series([f"b{i}" for i in range(n)]).reshape((n, 1)).arr.to_list(),
            "group_key": pl.repeat(None, n, dtype=pl.String, eager=True),
            "fold": pl.repeat(None, n, dtype=pl.Int32, eager=True),
            "file": pl.repeat("synthetic", n, eager=True),
            "row": np.arange(1, n + 1),
        }
    )


def measure(n: int) -> dict[str, Any]:
    """Group and fold ``n`` prompts in this process; return seconds and gigabytes."""
    texts = prompts(n)
    characters = sum(map(len, texts)) / n
    table = table_of(texts)
    del texts
    before = peak_gb()
    group_ids, group_seconds = timed(lambda: groups.group_battles(table, Groups()))
    peak = peak_gb()
    folds, fold_seconds = timed(lambda: assignment.assign_folds(table, group_ids, 5, seed=0))
    return {
        "prompts": n,
        "characters": round(characters),
        "groups": int(group_ids.max()) + 1,
        "group_seconds": round(group_seconds, 2),
        "fold_seconds": round(fold_seconds, 2),
        "table_gb": round(before, 3),
        "peak_gb": round(peak, 3),
        "fold_sizes": np.bincount(folds).tolist(),
    }


def main() -> None:
    """Run each size in a fresh process and print the growth from size to size."""
    parser = argument_parser(__doc__, whole_text=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--write", type=Path, help="the page; default: runs/grouping.md")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return
    before: dict[str, Any] = {}
    lines = [paragraphs(__doc__, 2), ""]
    lines += [
        "| prompts | groups | grouping, s | folds, s | table, GB | peak, GB | times the row above: prompts | s | GB |"
    ]
    lines.append("|---" * 9 + "|")
    for size in arguments.sizes:
        command = [sys.executable, "-m", "benchmarks.speed.grouping", "--one", str(size)]
        row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        growth = [f"{row[key] / before[key]:.2f}" if before else "" for key in ("prompts", "group_seconds", "peak_gb")]
        cells = [
            f"{row['prompts']:,}",
            f"{row['groups']:,}",
            f"{row['group_seconds']:.1f}",
            f"{row['fold_seconds']:.1f}",
        ]
        cells += [f"{row['table_gb']:.2f}", f"{row['peak_gb']:.2f}", *growth]
        lines.append(f"| {' | '.join(cells)} |")
        before = row
    print(write_page(arguments.write or Path("runs/grouping.md"), "Near-duplicate prompts, growth", lines))


if __name__ == "__main__":
    run_script(main)
