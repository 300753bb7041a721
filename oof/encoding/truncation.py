"""Pair-aware truncation of battles to a token budget, in token counts.

Early rounds are dropped first (worth 0.005 nats in a published ladder), then the oldest kept round is trimmed: its
prompt is capped, the shorter response is kept whole and the longer one is shortened. A trimmed text keeps its head
and its tail around a marker. Every rule is monotone: a larger budget never keeps less of any text. All battles
are planned at once, on arrays with one row per round.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST = 4  # tokens that a trimmed text of the newest round keeps at least, beside the marker
STUB = 16  # the same for an earlier round, which is dropped where it would keep less
MILLION = 1_000_000

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class TruncationPlan:
    """The tokens that each text of each round keeps.

    Attributes:
        kept: (r, 3) tokens of prompt, A and B of each round, markers included; 0 where the round is dropped.
        dropped: (r,) bool.
        oldest: (n,) row of each battle's oldest kept round; newer ones are whole.
        fits: (n,) bool: nothing is cut.
    """

    kept: Counts
    dropped: NDArray[np.bool_]
    oldest: Counts
    fits: NDArray[np.bool_]


@dataclass(frozen=True)
class TemplateCosts:
    """Tokens of the template around the texts.

    Attributes:
        whole: (r,) of a round whose texts are kept whole.
        oldest: (r,) of a round as the oldest kept one of a truncated battle.
        marker: (r, 3) of the largest marker that each text can get; a function of that text's length alone.
    """

    whole: Counts
    oldest: Counts
    marker: Counts


def least_budget(costs: TemplateCosts, last: Counts) -> int:
    """Return the smallest budget in which every text keeps some tokens, given the rows of the battles' last rounds."""
    return int((costs.oldest[last] + (costs.marker[last] + LEAST).sum(axis=1)).max(initial=0))


def plan_rounds(
    lengths: Counts, offsets: Counts, costs: TemplateCosts, budget: int, prompt_share: float
) -> TruncationPlan:
    """Decide how many tokens each text keeps.

    Args:
        lengths: (r, 3) tokens of the texts, the rounds of a battle one after the other, oldest first.
        offsets: (n + 1,) battle i has the rounds ``offsets[i]:offsets[i + 1]``, at least one.
        costs: template tokens of the rounds.
        budget: tokens for texts, markers and the rounds' template together.
        prompt_share: the prompt's cap as a share of a trimmed round's text, where the responses need the rest.

    Raises:
        ValueError: a battle's newest round does not fit even when trimmed (budget below :func:`least_budget`).
    """
    rows = np.arange(len(lengths))
    battle = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    spent = np.cumsum(lengths.sum(axis=1) + costs.whole)
    newer = spent[offsets[1:] - 1][battle] - spent  # tokens of the whole rounds after this one
    total = spent[offsets[1:] - 1] - np.concatenate([[0], spent])[offsets[:-1]]
    least = np.full((len(lengths), 1), STUB)
    least[offsets[1:] - 1] = LEAST
    floor = np.minimum(lengths, costs.marker + least)
    possible = newer + costs.oldest + floor.sum(axis=1) <= budget
    oldest = np.minimum.reduceat(np.where(possible, rows, len(rows)), offsets[:-1])
    fits = total <= budget
    oldest[fits] = offsets[:-1][fits]
    if (oldest == len(rows)).any():
        raise ValueError(f"{budget} tokens are too few for battle {int(np.argmax(oldest == len(rows)))}")
    dropped = rows < oldest[battle]
    kept = np.where(dropped[:, None], 0, lengths)
    cut = oldest[~fits]
    kept[cut] = share_room(lengths[cut], budget - newer[cut] - costs.oldest[cut], floor[cut], prompt_share)
    return TruncationPlan(kept, dropped, oldest, fits)


def share_room(texts: Counts, room: Counts, floor: Counts, prompt_share: float) -> Counts:
    """Divide each round's room among its texts: the prompt is capped, the responses are filled to a common level.

    Args:
        texts: (m, 3) tokens of prompt, A and B.
        room: (m,) tokens to divide, at least ``floor.sum(axis=1)``.
        floor: (m, 3) tokens that each text gets at least, at most its own.
        prompt_share: the prompt may take more than this share of the room only where the responses leave it free.

    Returns:
        (m, 3) tokens, at most ``texts``. One more token of room gives each text at most one more token, and never less.
    """
    # Whole numbers: a rounded product of floats could step by two, and a response would shrink.
    cap = room * round(prompt_share * MILLION) // MILLION
    p, a, b = texts.T
    prompt = np.maximum.reduce([cap, room - a - b, floor[:, 0]])
    prompt = np.minimum.reduce([prompt, room - floor[:, 1] - floor[:, 2], p])
    rest = room - prompt
    half, floor_a, floor_b = rest // 2, floor[:, 1], floor[:, 2]
    # The floors differ where the markers do: that of a longer text may have more tokens.
    kept_a = np.clip(np.minimum(a, np.maximum(half, rest - b)), floor_a, rest - floor_b)
    kept_b = np.clip(np.minimum(b, np.maximum(half, rest - a)), floor_b, rest - floor_a)
    return np.stack([prompt, kept_a, kept_b], axis=1)


def head_and_tail(lengths: Counts, kept: Counts, marker: Counts) -> tuple[Counts, Counts]:
    """Return the tokens of the head and of the tail that are kept when ``lengths`` are trimmed to ``kept``.

    ``marker`` tokens of ``kept`` are left to the marker, which may turn out to have fewer.
    """
    whole = kept >= lengths
    body = np.maximum(kept - marker, 0)
    return np.where(whole, lengths, body - body // 2), np.where(whole, 0, body // 2)
