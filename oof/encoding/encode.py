"""Encoding of battles as token ids: template, pair-aware truncation, both orders.

Every sequence is a list of spans into one pool of ids, which holds every distinct text once and the template's pieces.
numpy gathers the spans, without a Python loop over tokens or battles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from oof.classes import ORDERS
from oof.common.errors import UserError
from oof.config import Prompts
from oof.data.schemas import TEXTS
from oof.encoding.markers import Markers
from oof.encoding.templates import TemplatePieces, bos_of, chat_template, family_of, length_hint
from oof.encoding.tokenization import TokenPool, gather, offsets_of, tokenize
from oof.encoding.truncation import TemplateCosts, TruncationPlan, head_and_tail, least_budget, plan_rounds

PRESENTED = {"ab": (0, 1, 2), "ba": (0, 2, 1)}  # order -> parts presented as Prompt, Response A, Response B
SPANS = 4  # of one segment: lead (template before the text), head of the text, marker, tail of the text


@dataclass(frozen=True)
class Encoded:
    """Concatenated token ids of battles x orders.

    Attributes:
        ids: all sequences, int32.
        offsets: (n * n_orders + 1,) int64; battle i in order o is sequence ``i * n_orders + o``.
        n_orders: orders per battle.
        n_tokens: (n, 3) int32 tokens of prompt, A and B before truncation, over all rounds.
        n_kept: (n, 3) int32 tokens of them after truncation, markers not counted.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    n_orders: int
    n_tokens: NDArray[np.int32]
    n_kept: NDArray[np.int32]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n, n_orders) tokens of each sequence."""
        return np.diff(self.offsets).reshape(-1, self.n_orders)

    @property
    def counts(self) -> NDArray[np.int32]:
        """(n, 6): ``n_tokens`` beside ``n_kept``, the columns of :func:`oof.common.logits_format.logits_frame`."""
        return np.concatenate([self.n_tokens, self.n_kept], axis=1)

    def sequence(self, battle: int, order: int) -> NDArray[np.int32]:
        """Return the token ids of one battle in one order (its number among the encoded orders)."""
        index = battle * self.n_orders + order
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def take(self, rows: NDArray[np.integer]) -> Encoded:
        """Return the battles at positions ``rows``, in that order."""
        index = (np.asarray(rows, dtype=np.int64)[:, None] * self.n_orders + np.arange(self.n_orders)).reshape(-1)
        pool = TokenPool(self.ids, self.offsets).take(index)
        return Encoded(pool.ids, pool.offsets, self.n_orders, self.n_tokens[rows], self.n_kept[rows])


def encode_battles(
    table: pl.DataFrame,
    tokenizer: Any,
    config: Prompts,
    max_tokens: int,
    orders: tuple[str, ...] = ORDERS,
    cache: Path | None = None,
) -> Encoded:
    """Return the token ids of every battle in each order, each within ``max_tokens``.

    Both orders of a battle keep the same tokens of each text. A text that is cut inside a character's bytes decodes to
    a replacement character there.

    Args:
        table: canonical battles; ``prompt``, ``response_a`` and ``response_b`` are lists of turns.
        tokenizer: a fast tokenizer, prepared by :func:`oof.encoding.templates.prepare_tokenizer` with ``config.hints``.
        config: layout, hints, marker and the prompt's share are read.
        max_tokens: the budget of one sequence, template included.
        orders: a subset of ("ab", "ba").
        cache: folder that keeps ids of texts between calls (see :mod:`oof.encoding.tokenization`).

    Raises:
        UserError: ``max_tokens`` has no room for one round.
        ValueError: the tokenizer was not prepared, or a battle's turn counts differ.
    """
    family = family_of(tokenizer)
    if tokenizer.chat_template != chat_template(family, bos_of(tokenizer, family), config.hints):
        raise ValueError(f"the tokenizer was not prepared: call prepare_tokenizer(tokenizer, {config.hints!r}) first")
    battles = _Battles(table, tokenizer, config, cache)
    plan = battles.plan(max_tokens, config.prompt_share)
    return battles.assemble(plan, orders, config.layout)


def joined(parts: Sequence[Encoded]) -> Encoded:
    """Return the battles of at least one part, in the order of the parts; their orders are the same."""
    if len(parts) == 1:
        return parts[0]
    n_orders, *_ = {part.n_orders for part in parts}
    return Encoded(
        np.concatenate([part.ids for part in parts]),
        offsets_of(np.concatenate([np.diff(part.offsets) for part in parts])),
        n_orders,
        np.concatenate([part.n_tokens for part in parts]),
        np.concatenate([part.n_kept for part in parts]),
    )


def _distinct_texts(table: pl.DataFrame) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """Return every text of a table once, (r, 3) the position of each round's prompt, A and B, and (n + 1,) offsets.

    Battle i has the rounds ``offsets[i]:offsets[i + 1]``.
    """
    turns = table.select(pl.col(text).list.len() for text in TEXTS).to_numpy().astype(np.int64)
    if len(turns) and not ((turns == turns[:, :1]).all() and turns.min() > 0):
        raise ValueError("every battle needs as many turns in each response as in its prompt, at least one")
    distinct: dict[str, int] = {}
    columns = [
        [distinct.setdefault(text.strip(), len(distinct)) for text in table[name].explode()] if len(turns) else []
        for name in TEXTS
    ]
    return list(distinct), np.array(columns, dtype=np.int64).reshape(3, -1).T, offsets_of(turns[:, 0])


class _Battles:
    """Tokenised battles, with methods that plan the truncation and assemble the sequences."""

    def __init__(self, table: pl.DataFrame, tokenizer: Any, config: Prompts, cache: Path | None) -> None:
        texts, self.index, self.offsets = _distinct_texts(table)
        self.pool = tokenize(texts, tokenizer, cache)
        self.battle = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        self.lengths = self.pool.lengths[self.index]
        self.n_tokens = np.add.reduceat(self.lengths, self.offsets[:-1])
        characters = np.zeros_like(self.index)
        if config.hints == "lengths":
            characters = np.array([len(text) for text in texts], dtype=np.int64)[self.index]
        # Hints of the oldest kept round count its own texts and those of the rounds dropped before it.
        own, so_far = length_hint(characters), length_hint(_running(characters, self.offsets))
        self.pieces = TemplatePieces(tokenizer, config.hints, np.unique(np.concatenate([own, so_far])))
        self.own, self.so_far = self.pieces.code(own), self.pieces.code(so_far)
        self.markers = Markers(tokenizer, config.marker)
        self.tokens_so_far = _running(self.lengths, self.offsets)
        self.costs = self._costs()

    def _costs(self) -> TemplateCosts:
        sizes = self.pieces.pool.lengths[self.pieces.lead]

        def responses(table: NDArray[np.int64], codes: NDArray[np.int64]) -> NDArray[np.int64]:
            # The order that costs more, so that both keep the same tokens.
            a, b = codes[:, 1], codes[:, 2]
            return np.asarray(np.maximum(table[2][a] + table[3][b], table[2][b] + table[3][a]))

        whole, most = sizes[:, :, 0], sizes.max(axis=2)
        first = np.zeros(len(self.index), dtype=np.bool_)
        first[self.offsets[:-1]] = True
        prompts = np.where(first, whole[0][self.own[:, 0]], whole[1][self.own[:, 0]])
        return TemplateCosts(
            prompts + responses(whole, self.own),
            most[0][self.so_far[:, 0]] + responses(most, self.so_far),
            self.markers.largest(self.lengths),
        )

    def plan(self, max_tokens: int, prompt_share: float) -> TruncationPlan:
        smallest = least_budget(self.costs, self.offsets[1:] - 1) + self.pieces.n_closing
        if max_tokens < smallest:
            raise UserError(
                f"a limit of {max_tokens} tokens (prompts.max_tokens or score_max_tokens; a student's own: "
                f"distill.prompts.max_tokens) is too small for this tokenizer's template; use at least {smallest}"
            )
        budget = max_tokens - self.pieces.n_closing
        return plan_rounds(self.lengths, self.offsets, self.costs, budget, prompt_share)

    def assemble(self, plan: TruncationPlan, orders: tuple[str, ...], layout: str) -> Encoded:
        head, tail = head_and_tail(self.lengths, plan.kept, self.costs.marker)
        n_kept = np.add.reduceat(np.where(plan.dropped[:, None], 0, head + tail), self.offsets[:-1])
        rows = np.flatnonzero(~plan.dropped)
        rounds = np.bincount(self.battle[rows], minlength=len(self.offsets) - 1)
        size = SPANS * 3 * rounds + 1  # spans of one sequence, the closing header last
        begin = offsets_of(np.repeat(size, len(orders)))
        spans = np.empty((int(begin[-1]), 2), dtype=np.int64)
        trimmed = tail > 0
        markers, marker = self.markers.of((self.lengths - head - tail)[trimmed])
        ids = np.concatenate([self.pool.ids, self.pieces.pool.ids, markers.ids])
        piece_spans = _spans(self.pieces.pool, len(self.pool.ids))
        marker_spans = np.zeros((*trimmed.shape, 2), dtype=np.int64)
        marker_spans[trimmed] = _spans(markers, len(ids) - len(markers.ids))[marker]
        rank = np.arange(3 * len(rows)) - 3 * np.repeat(offsets_of(rounds)[:-1], 3 * rounds)
        for o, order in enumerate(orders):
            segments = self._segments(plan, rows, head, tail, PRESENTED[order], piece_spans, marker_spans)
            if layout == "responses":  # all prompts, all As, all Bs: a stable sort by battle and part
                part = (self.battle[rows][:, None] * 3 + np.arange(3)).reshape(-1)
                segments = segments[np.argsort(part, kind="stable")]
            start = begin[:-1].reshape(-1, len(orders))[:, o]
            first_span = np.repeat(start, 3 * rounds) + SPANS * rank
            spans[first_span[:, None] + np.arange(SPANS)] = segments
            spans[start + size - 1] = piece_spans[self.pieces.closing]
        sequences, offsets = gather(ids, spans[:, 0], spans[:, 1]), offsets_of(spans[:, 1])[begin]
        return Encoded(sequences, offsets, len(orders), self.n_tokens.astype(np.int32), n_kept.astype(np.int32))

    def _segments(
        self,
        plan: TruncationPlan,
        rows: NDArray[np.int64],
        head: NDArray[np.int64],
        tail: NDArray[np.int64],
        presented: tuple[int, ...],
        piece_spans: NDArray[np.int64],
        marker_spans: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Return (3 * rows, SPANS, 2) start and length of lead, head, marker and tail of each segment."""
        columns = list(presented)
        oldest = np.zeros(len(self.index), dtype=np.bool_)
        oldest[plan.oldest] = True
        slots = np.broadcast_to(np.array([1, 2, 3]), (len(rows), 3)).copy()
        slots[oldest[rows], 0] = 0
        code = np.where(oldest[:, None], self.so_far, self.own)[rows][:, columns]
        text, length = self.pool.offsets[self.index[rows]][:, columns], self.lengths[rows][:, columns]
        head, tail = head[rows][:, columns], tail[rows][:, columns]
        share = np.zeros_like(code)
        if self.pieces.lead.shape[2] > 1:
            reach = np.where(oldest[:, None], self.tokens_so_far, self.lengths)[rows][:, columns]
            tenths = np.clip(10 * (head + tail) // np.maximum(reach, 1), 1, 9)
            share = np.where(head + tail < reach, tenths, 0)
        segments = np.empty((len(rows), 3, SPANS, 2), dtype=np.int64)
        segments[:, :, 0] = piece_spans[self.pieces.lead[slots, code, share]]
        segments[:, :, 1] = np.stack([text, head], axis=2)
        segments[:, :, 2] = marker_spans[rows][:, columns]
        segments[:, :, 3] = np.stack([text + length - tail, tail], axis=2)
        return segments.reshape(-1, SPANS, 2)


def _spans(pool: TokenPool, start: int) -> NDArray[np.int64]:
    """Return (texts, 2) start and length of each text of a pool whose ids begin at ``start``."""
    return np.stack([pool.offsets[:-1] + start, pool.lengths], axis=1)


def _running(values: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the running sums of (r, 3) values inside each battle."""
    sums = np.concatenate([np.zeros((1, 3), dtype=np.int64), np.cumsum(values, axis=0)])
    return np.asarray(sums[1:] - np.repeat(sums[offsets[:-1]], np.diff(offsets), axis=0))
