"""Stress test in the model card: the exported student's accuracy on judged battles that its run has not read.

Made for LLMBar (Zeng et al., ICLR 2024), in most of whose battles the worse response has the better style: a judge that
goes by style is right in less than half of them. Any file of judged battles will do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble.distillation.card_section import finished_student, put_section
from ensemble.distillation.student import Student
from ensemble.statistics.bootstrap import Interval, group_interval
from ensemble.statistics.interval_words import in_words
from oof.classes import TIE, A, B
from oof.common.errors import UserError
from oof.common.steps import locked
from oof.data.battles import read_file
from oof.data.text_columns import prompt_texts
from oof.folds.groups import normalise
from oof.jobs.dataset import load_battles

HEADING = "## Stress test"
CHUNK = 512  # battles scored at a time


@dataclass(frozen=True)
class StressRow:
    """Share of right verdicts on the battles of one category.

    Attributes:
        name: of the category; "all" of them together.
        n: battles.
        student: share of battles in which the better response has the student's greater probability; equal ones count
            one half. With its 95 % interval over prompts.
        longer: the same of a judge that takes the response of more characters.
    """

    name: str
    n: int
    student: Interval
    longer: Interval


def add_stress_section(run: Path, path: Path) -> list[StressRow]:
    """Score a file of judged battles with a run's student and write the section of its card.

    Ties are left out, and so are battles whose prompt the run has read. Where both models' names are equal they are the
    category of the battle, as in LLMBar.

    Args:
        run: with a finished student.
        path: of the battles, in any layout that ``data.train`` takes.

    Raises:
        UserError: the run has no student, the file cannot be read, or no battle is left.
    """
    step = finished_student(run)
    judged = read_file(path, "train").table
    with locked(run):
        decided = judged.filter(pl.col("label") != TIE)
        read = normalise(prompt_texts(load_battles(run))).unique()
        new = decided.filter(~normalise(prompt_texts(decided)).is_in(read.to_list()))
        if new.is_empty():
            raise UserError(f"{path}: no battle with a verdict for one side and a prompt that {run} has not read")
        student = Student.from_pretrained(step.folder / "student")
        parts = [student.logits(part).mean(axis=1) for part in new.iter_slices(CHUNK)]
        rows = stress_rows(new, np.concatenate(parts))
        left_out = judged.height - decided.height, decided.height - new.height
        put_section(step, HEADING, _section(path.name, left_out, rows))
    return rows


def stress_rows(table: pl.DataFrame, logits: NDArray[np.float64]) -> list[StressRow]:
    """Return the row of all battles and those of the categories.

    Args:
        table: n battles, none of them a tie.
        logits: (n, 3) of the student, both orders averaged.
    """
    labels = table["label"].to_numpy()
    groups = normalise(prompt_texts(table)).rank("dense").to_numpy()
    of_student = _credit(logits[:, A] - logits[:, B], labels)
    lengths = [table[f"response_{side}"].list.join("", ignore_nulls=True).str.len_chars() for side in "ab"]
    of_longer = _credit((lengths[0].cast(pl.Int64) - lengths[1].cast(pl.Int64)).to_numpy(), labels)

    def row(name: str, which: NDArray[np.bool_]) -> StressRow:
        shares = [group_interval(credit[which], groups[which], 0) for credit in (of_student, of_longer)]
        return StressRow(name, int(which.sum()), *shares)

    category = table.select(pl.when(pl.col("model_a") == pl.col("model_b")).then("model_a"))["model_a"]
    names = category.drop_nulls().unique().sort().to_list()
    of_names = [row(name, category.eq_missing(name).to_numpy()) for name in names]
    return [row("all", np.ones(table.height, dtype=bool)), *of_names]


def _credit(a_minus_b: NDArray[np.float64], labels: NDArray[np.int8]) -> NDArray[np.float64]:
    """Return (n,) 1 where the better response has the greater value, 0 where the smaller one, 0.5 at equal ones."""
    return (1 + np.sign(a_minus_b) * np.where(labels == A, 1, -1)) / 2


def _section(name: str, left_out: tuple[int, int], rows: list[StressRow]) -> str:
    cells = [
        f"| {row.name} | {row.n:,} | {in_words(row.student, '.3f')} | {in_words(row.longer, '.3f')} |" for row in rows
    ]
    head = (
        f"Share of right verdicts on `{name}`, whose battles the student was not trained on. Chance is 0.5; a judge "
        "that goes by style is below it where the worse response has the better style. Left out: ties "
        f"({left_out[0]:,}) and battles whose prompt the run has read ({left_out[1]:,}). *Longer* takes the response "
        "of more characters. Intervals: 95 %, over prompts."
    )
    return "\n".join([head, "", "| battles | number | student | longer |", "|---|---|---|---|", *cells])
