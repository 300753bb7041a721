"""Prediction by a stack of logits that were made elsewhere: its test battles, and their probabilities.

The test battles are those of ``stack.test_logits``. Where the stack learned from texts, ``data.test`` has the texts of
the same battles, and its order is that of the submission.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble.features.battle_features import has_text
from ensemble.serving.chunks import chunks
from ensemble.stacking.inputs import Inputs
from ensemble.stacking.prediction_inputs import MemberLogits, read_test_logits, refuse_other_ids
from oof.common.errors import UserError
from oof.config import Config
from oof.data.schemas import TEXTS

if TYPE_CHECKING:
    from ensemble.stacking.stack_result import StackResult


@dataclass(frozen=True)
class OwnLogitsTest:
    """The test battles of ``stack.test_logits``.

    Attributes:
        config: of the command.
        inputs: what the stack is fitted on.
        members: the logits of every test battle.
    """

    config: Config
    inputs: Inputs
    members: MemberLogits

    @property
    def text(self) -> bool:
        """Whether the stack learned from texts."""
        return has_text(self.inputs.table)

    @classmethod
    def read(cls, config: Config, inputs: Inputs) -> OwnLogitsTest:
        """Read the files of ``stack.test_logits`` and compare them with those of ``data.test``.

        Args:
            config: of the command.
            inputs: what the stack was or will be fitted on.

        Raises:
            UserError: as :func:`read_test_logits`; texts are missing; ``data.test`` has other battles.
        """
        battles = cls(config, inputs, read_test_logits(config, inputs))
        battles.check_texts()
        return battles

    def check_texts(self) -> None:
        """Refuse test battles without texts where the stack learned from texts, and other ids than the logits'."""
        test = self.config.data.test
        if not test:
            if self.text:
                raise UserError(
                    "the stack learns from the texts of data.train, so it needs those of the test battles, too: set "
                    "data.test (TEST=test.csv), or stack without texts: DATA with ids and verdicts alone"
                )
            return
        with tempfile.TemporaryDirectory() as folder:
            data = self.config.data
            tables = [table.select("id", text=has_text(table)) for table in chunks(self.config, data, Path(folder))]
        battles = pl.concat(tables)
        refuse_other_ids(battles["id"], self.members.ids, ", ".join(test), self.members.file)
        if self.text and not battles["text"].any():
            raise UserError(f"{', '.join(test)}: has no texts, but the stack learned from those of data.train")

    def tables(self, folder: Path) -> Iterator[pl.DataFrame]:
        """Yield tables of the test battles in the submission's order; without ``data.test``, they have no texts.

        Args:
            folder: for chunks of large files.
        """
        if self.config.data.test:
            yield from chunks(self.config, self.config.data, folder)
            return
        texts = [pl.lit([""], dtype=pl.List(pl.String)).alias(name) for name in TEXTS]
        table = pl.DataFrame({"id": self.members.ids}).with_columns(texts)
        yield from table.iter_slices(self.config.predict.chunk)

    def probabilities(self, stack: StackResult, table: pl.DataFrame) -> NDArray[np.float64]:
        """Return the (n, 3) calibrated probabilities of the battles of a table."""
        position = pl.DataFrame({"id": self.members.ids}).with_row_index("at")
        at = table.select("id").join(position, on="id", how="left", maintain_order="left")["at"].to_numpy()
        if not self.text:  # the texts of data.test have no part in this stack
            table = table.with_columns(pl.lit([""], dtype=pl.List(pl.String)).alias(name) for name in TEXTS)
        return stack.predict(stack.design(table, self.members.averaged(stack.job_scales, at)))
