"""Finished runs in a Python shell: ``from ensemble import open_run``. Nothing is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import polars as pl

from ensemble.evaluation.run_table import compute_metrics
from oof.common.atomic_files import read_parquet, verified
from oof.common.errors import UserError
from oof.config import Config
from oof.config.stored import load_for_run
from oof.jobs.dataset import load_battles


def open_run(folder: str | Path) -> Run:
    """Return a run whose three stages are done, or some of them.

    Args:
        folder: of the run, such as ``runs/demo``.

    Raises:
        UserError: no run is there.
    """
    run = Run(Path(folder).absolute())
    with run.config():
        return run


COLUMNS = {"log_loss": "value", "low": "low", "high": "high"}  # of the table -> of metrics.json


@dataclass(frozen=True)
class Run:
    """A run folder that is only read."""

    folder: Path

    def table(self) -> pl.DataFrame:
        """Return the log loss of every predictor, in nats and out of fold, as ``arena-distill table`` prints it.

        Returns:
            Columns predictor, log_loss, low and high (a 95 % interval by groups; null for too few of them), best first:
            baselines, members, combiners, the calibrated stack, the student, and for synthetic battles "bayes", the
            best possible loss.

        Raises:
            UserError: a stage is missing or out of date.
        """
        with self.config() as config:
            losses = cast(dict[str, Any], compute_metrics(config)["log_loss"])
        rows = {**losses.pop("members"), **losses}
        table = pl.DataFrame(
            {"predictor": list(rows)} | {name: [row[key] for row in rows.values()] for name, key in COLUMNS.items()}
        )
        return table.sort("log_loss")

    def battles(self) -> pl.DataFrame:
        """Return the canonical table of the run's battles with ``group`` and ``fold``.

        Raises:
            UserError: stage one has not begun.
        """
        return load_battles(self.folder)

    def predictions(self) -> pl.DataFrame:
        """Return one row per scored battle: id and, for each predictor, ``NAME|a``, ``NAME|b`` and ``NAME|tie``.

        All are cross-fitted probabilities: of members (``member:NAME|a``), combiners, the calibrated stack
        (``calibrated|a``) and the student, if there is one.

        Raises:
            UserError: stage two is missing.
        """
        stack, student = self.folder / "stack" / "predictions.parquet", self.folder / "distill" / "predictions.parquet"
        if not stack.is_file():
            raise UserError(f"{stack}: missing; run 'make stack' with this RUN first")
        frame = read_parquet(verified(stack, "manifest.json", "make stack"))
        if not student.is_file():
            return frame
        more = read_parquet(verified(student, "manifest.json", "make distill"))
        return frame.join(more, on="id", how="left", validate="1:1", maintain_order="left")

    @contextmanager
    def config(self) -> Iterator[Config]:
        """Yield the settings that the run remembers, in the working folder where their relative paths start."""
        with chdir("."):  # back to this folder at the end
            yield load_for_run(None, [f"run={json.dumps(str(self.folder), ensure_ascii=False)}"])
