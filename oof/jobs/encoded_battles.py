"""A table of battles encoded for one member: tokenizer, token ids and logits."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import nn

from oof.config import Config, Member
from oof.encoding.encode import Encoded, encode_battles, joined
from oof.model.classifier import load_tokenizer
from oof.model.hidden_state_cache import stored_states
from oof.training.inference import predict_logits
from oof.training.quantised_scoring import quantised_for_scoring

ROWS = 50_000  # battles whose texts are Python strings at a time; their token ids are all in memory


@dataclass(frozen=True)
class EncodedBattles:
    """A table of battles with its token ids for one member, encoded on first use.

    Attributes:
        member: whose tokenizer encodes the battles.
        table: canonical battles.
        config: the run's; its ``prompts`` set template and budgets (a student's: :meth:`Config.for_student`), its run
            folder holds the caches.
    """

    member: Member
    table: pl.DataFrame
    config: Config

    @cached_property
    def tokenizer(self):  # type: ignore[no-untyped-def]  # transformers has no public type for "any fast tokenizer"
        return load_tokenizer(self.member.checkpoint, self.config.prompts.hints, self.member.revision)

    @cached_property
    def training(self) -> Encoded:
        """Sequences of both orders within ``prompts.max_tokens``."""
        return self._encode(self.config.prompts.max_tokens)

    @cached_property
    def scoring(self) -> Encoded:
        """Sequences of both orders within ``prompts.score_max_tokens``."""
        prompts = self.config.prompts
        if prompts.score_max_tokens in (None, prompts.max_tokens):
            return self.training
        return self._encode(prompts.score_max_tokens or prompts.max_tokens)

    def scorer(
        self, model: nn.Module, rows: NDArray[np.integer], adapter: Path, label: str
    ) -> tuple[nn.Module, dict[str, object]]:
        """Return the model that scores the battles at ``rows`` after training, and facts for the job's manifest.

        See :func:`oof.training.quantised_scoring.quantised_for_scoring`.
        """
        return quantised_for_scoring(model, self.member, adapter, self.tokenizer, self.scoring.take(rows), label)

    def logits(self, model: nn.Module, rows: NDArray[np.integer], label: str, partial: Path) -> NDArray[np.float32]:
        """Return (m, 2, 3) logits of the battles at ``rows``; see :func:`oof.training.inference.predict_logits`."""
        encoded, pad_id = self.scoring.take(rows), self.tokenizer.pad_token_id
        with self.stored_states(model, encoded):
            return predict_logits(model, self.member, encoded, pad_id, label, partial)

    def stored_states(self, model: nn.Module, encoded: Encoded) -> AbstractContextManager[None]:
        """Return the context of :func:`oof.model.hidden_state_cache.stored_states` with the run's cache."""
        cache = Path(self.config.run) / "frozen"
        return stored_states(model, self.member, encoded, self.tokenizer.pad_token_id, cache)

    def _encode(self, max_tokens: int) -> Encoded:
        cache = Path(self.config.run) / "tokens"  # texts are tokenised once per tokenizer, not once per job
        starts = range(0, max(self.table.height, 1), ROWS)
        tables = (self.table[start : start + ROWS] for start in starts)
        parts = [encode_battles(t, self.tokenizer, self.config.prompts, max_tokens, cache=cache) for t in tables]
        return joined(parts)
