"""UKPConvArg1 for the benchmarks: prompts of title and side, splits by prompt, and a recipe that a CPU can train."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from oof.common.atomic_files import replacing
from oof.common.errors import UserError


def title_and_side(prompt: str) -> str:
    """Return the debate's title and stance of a prompt that also describes it at length."""
    lines = json.loads(prompt)[0].split("\n")
    return json.dumps(["\n".join([lines[0], *(line for line in lines if line.startswith("Stance:"))])])


def recipe(checkpoint: str, epochs: float, head_lr: float = 2e-3) -> dict[str, Any]:
    """Return the settings of a member or student: adapters in the upper half, what is below computed once."""
    train = {"epochs": epochs, "lr": 5e-4, "head_lr": head_lr, "batch_battles": 8, "swap": "random"}
    train |= {"tokens_per_batch": 2048, "checkpoint_steps": 25}  # a kill costs at most so many steps
    lora = {"rank": 16, "alpha": 32, "layers": "upper_half"}
    return {"checkpoint": checkpoint, "dtype": "auto", "frozen": "stored", "lora": lora, "train": train}


@dataclass(frozen=True)
class Sizes:
    """Battles of each part, and the most characters of both responses together."""

    labelled: int = 1000
    unlabelled: int = 1000
    held_out: int = 1000
    characters: int = 540


def split(data: Path, out: Path, sizes: Sizes, number: int, seed: int = 0) -> None:
    """Write labelled.csv, unlabelled.csv and heldout.csv: no prompt of the last is in the others."""
    frame = pl.read_csv(data)
    characters = pl.col("response_a").str.len_chars() + pl.col("response_b").str.len_chars()
    frame = frame.filter(characters <= sizes.characters)
    frame = frame.with_columns(pl.col("prompt").map_elements(title_and_side, return_dtype=pl.String))
    held = held_out_prompts(dict(frame.group_by("prompt").len().iter_rows()), sizes.held_out, number, seed)
    unseen = frame.filter(pl.col("prompt").is_in(held))
    seen = frame.filter(~pl.col("prompt").is_in(held)).sample(fraction=1, shuffle=True, seed=seed)
    needed = sizes.labelled + sizes.unlabelled
    if seen.height < needed:
        raise UserError(f"{data}: {seen.height} battles of up to {sizes.characters} characters left; need {needed:,}")
    parts = {"labelled": seen[: sizes.labelled], "unlabelled": seen[sizes.labelled : needed], "heldout": unseen}
    for name, part in parts.items():
        with replacing(out / f"{name}.csv") as temporary:
            part.write_csv(temporary)


def held_out_prompts(counts: dict[str, int], needed: int, number: int, seed: int) -> list[str]:
    """Return the prompts of the split with this number: no other split's, together at least so many battles.

    No more of them than it takes: each student scores all of their battles, in both orders.
    """
    left = [str(prompt) for prompt in np.random.default_rng(seed).permutation(sorted(counts))]
    held: list[str] = []
    for _ in range(number + 1):
        held = []
        while sum(counts[p] for p in held) < needed:
            if not left:
                raise UserError(f"no split {number}: too few battles; give a smaller --split")
            held.append(left.pop(0))
        for prompt in list(held):
            if sum(counts[p] for p in held) - counts[prompt] >= needed:
                held.remove(prompt)
                left.append(prompt)
    return held
