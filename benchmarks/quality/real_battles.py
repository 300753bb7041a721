"""Real judgements as battles: arguments (UKPConvArg1) and chats (PandaLM's test set, Tulu 1), and splits by prompt.

Arguments: pairs of human-written arguments on one side of a debate, labelled with the more convincing one (Habernal &
Gurevych, ACL 2016). Their prompts are cut to the debate's title and stance; the rest is instructions of the site.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from oof.classes import WINNER_COLUMNS
from oof.common.atomic_files import replacing

UKP, PANDALM, TULU = "ukpconvarg1_dev.csv", "pandalm_testset.csv", "tulu_human_eval.csv"
FILES = {"arguments": [UKP], "chats": [PANDALM, TULU]}
NAMES = "^model_[ab]$"  # columns that some files have
COLUMNS = ["id", "prompt", "response_a", "response_b", *WINNER_COLUMNS]


def title_and_stance(prompt: str) -> str:
    """Return the debate's title and stance of a prompt that also holds instructions (both JSON lists of one turn)."""
    lines = json.loads(prompt)[0].split("\n")
    return json.dumps(["\n".join([lines[0], *(line for line in lines if line.startswith("Stance:"))])])


def write_csv(path: Path, table: pl.DataFrame) -> None:
    with replacing(path) as temporary:
        table.write_csv(temporary)


def in_file(path: Path) -> pl.Expr:
    """Return the expression of a file's ids, with its name before them."""
    return pl.lit(f"{path.stem}-") + pl.col("id")


def read_judgements(files: Sequence[Path]) -> pl.DataFrame:
    """Return the battles of several files with unique ids, prompts of arguments cut to title and stance.

    Tulu's file gives a pair that was judged twice the same id.
    """
    tables = [
        pl.read_csv(path, infer_schema=False).select(*COLUMNS, NAMES).with_columns(id=in_file(path)) for path in files
    ]
    occurrence = pl.int_range(pl.len()).over("id")
    suffix = pl.when(occurrence > 0).then(pl.format("-{}", occurrence)).otherwise(pl.lit(""))
    table = pl.concat(tables, how="diagonal").with_columns(pl.col("id") + suffix)
    if files[0].name == UKP:
        table = table.with_columns(pl.col("prompt").map_elements(title_and_stance, return_dtype=pl.String))
    return table


def sample_half(table: pl.DataFrame, half: str, n: int, seed: int = 0) -> pl.DataFrame:
    """Return at most n random battles of a half of the prompts (report, develop, or both), in the table's order."""
    prompts = np.random.default_rng(seed).permutation(table["prompt"].unique().sort().to_numpy())
    kept = {"report": prompts[::2], "develop": prompts[1::2], "both": prompts}[half]
    rows = np.flatnonzero(table["prompt"].is_in(list(kept)).to_numpy())
    return table[np.sort(np.random.default_rng(seed + 1).permutation(rows)[:n])]
