"""Verdicts of one file: cells to classes, votes to soft labels, and the coding in words.

A coding that can be read in two ways is never guessed. Numbers 1 and 2 without a 0 may mean "A, B" or "B, tie", and a
signed score may favour either side: such a file is refused with the possible settings, ready to paste.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from oof.classes import TIE, WINNER_COLUMNS, A, B
from oof.common.errors import UserError
from oof.config import Data
from oof.data.parse_cells import CellError, is_missing, number, one_hot, parse_json, show
from oof.data.raw_table import RawTable
from oof.data.verdict_values import (
    Meaning,
    mapping_remedy,
    meanings_of,
    own_meanings,
    refuse_ambiguous,
    value_or_none,
)

Shares = tuple[float, float, float]  # soft label in class order
SIDES = ("A", "B", "tie")  # the classes as messages name them
VOTE_COLUMNS = ("votes_a", "votes_b", "votes_tie")
PROB_COLUMNS = ("prob_a", "prob_b", "prob_tie")
FORMS = {  # form of a verdict -> the columns that it needs, most explicit first
    "one-hot": WINNER_COLUMNS,
    "winner": ("winner",),
    "label": ("label",),
    "preference_1_to_2": ("preference_1_to_2",),
    "signed_score": ("signed_score",),
    "signed_scores": ("signed_scores",),
    "votes": VOTE_COLUMNS[:2],
    "probabilities": PROB_COLUMNS[:1],
}
EXPECTED = {"winner": "model_a, model_b, tie or both_bad", "label": "0 (A wins), 1 (B wins) or 2 (tie)"}
SCORE_REMEDIES = (
    "write a number, negative or positive",
    'write a list of scores, negative or positive, such as [-1, 2] or [{"score": -1}, {"score": 2}]',
)
ROUNDING = 0.011  # by which rounded probabilities may miss a sum of 1


class Verdict(NamedTuple):
    """Verdict of one row: its class, the shares of votes or probabilities, and whether both responses were bad."""

    label: int | None
    soft: Shares | None = None
    both_bad: bool = False


@dataclass
class Verdicts:
    """Verdicts of a file's rows.

    Attributes:
        rows: (n,) verdicts; no label where the row has a fault.
        columns: our names of the columns that were read.
        coding: the coding in words.
        faults: (row position, column, reason, remedy).
    """

    rows: list[Verdict]
    columns: tuple[str, ...] = ()
    coding: str = ""
    faults: list[tuple[int, str, str, str]] = field(default_factory=list)


def form_of(names: Sequence[str] | set[str], mapped: Sequence[str] = ()) -> str | None:
    """Return the form of the verdict of a file with these columns; columns that ``data.columns`` maps come first."""
    present = [form for form, columns in FORMS.items() if set(columns) <= set(names)]
    chosen = [form for form in present if set(FORMS[form]) & set(mapped)]
    return next(iter([*chosen, *present]), None)


def read_verdicts(raw: RawTable, form: str, data: Data, positive: str | None = None) -> Verdicts:
    """Return the verdicts of a file's rows.

    Args:
        raw: its cells, with our column names.
        form: of :data:`FORMS`.
        data: ``verdicts``, ``positive_score`` and ``tie_band``.
        positive: the side that a positive score favours in this format, where that is known.

    Raises:
        UserError: the coding can be read in two ways, or ``data.verdicts`` has an unknown class.
    """
    own = own_meanings(data.verdicts)
    if form == "one-hot":
        winners = zip(WINNER_COLUMNS, SIDES, strict=True)
        coding = ", ".join(f"{raw.own_name(name)}=1 → {side}" for name, side in winners)
        return _each(raw, WINNER_COLUMNS, lambda *cells: Verdict(one_hot(*cells)), coding)
    if form in ("winner", "label"):
        return _coded(raw, form, own)
    if form == "preference_1_to_2":
        return _preferences(raw)
    if form in ("signed_score", "signed_scores"):
        return _scores(raw, data, positive)
    if form == "votes":
        return _shared(raw, VOTE_COLUMNS, _votes, "most votes win", "write numbers of votes, at least one above 0")
    parse = _probabilities if "prob_b" in raw.columns else _probabilities_without_b
    remedy = "write probabilities from 0 to 1 that sum to 1"
    return _shared(raw, PROB_COLUMNS, parse, "the largest probability wins", remedy)


def cells_in_words(raw: RawTable, columns: Sequence[str], row: int) -> str:
    """Return the cells of a row, by its position, with the file's own names of their columns."""
    return ", ".join(f"{raw.own_name(name)} {show(raw.columns[name][row])}" for name in columns)


def _each(
    raw: RawTable, columns: tuple[str, ...], parse: Callable[..., Verdict], coding: str, remedy: str = ""
) -> Verdicts:
    """Return ``parse`` of the cells of each row; a cell that it refuses is a fault of the first column."""
    place = columns[0] if len(columns) == 1 else f"{columns[0]}..{columns[-1]}"
    verdicts = Verdicts([], columns, coding)
    for i, cells in enumerate(zip(*(raw.columns[name] for name in columns), strict=True)):
        try:
            verdicts.rows.append(parse(*cells))
        except CellError as error:
            verdicts.faults.append((i, place, str(error), remedy))
            verdicts.rows.append(Verdict(None))
    return verdicts


def _coded(raw: RawTable, column: str, own: Mapping[str, Meaning]) -> Verdicts:
    """Return verdicts of words and numbers."""
    meanings = meanings_of(column, own)
    values = sorted({value for value in map(value_or_none, raw.columns[column]) if value is not None})
    if column == "label" and not own:
        refuse_ambiguous(raw, column, values)
    kind = "verdict" if column == "winner" else "label"
    expected = "a value of data.verdicts" if own else EXPECTED[column]

    def parse(cell: Any) -> Verdict:
        value = value_or_none(cell)
        if value is None or value not in meanings:
            raise CellError(f"{show(cell)} is not a {kind}; expected {expected}")
        label, both_bad = meanings[value]
        return Verdict(label, both_bad=both_bad)

    used = sorted((meanings[value], value) for value in values if value in meanings)
    shown = [f"{value} → {SIDES[label]}{' (both bad)' if both_bad else ''}" for (label, both_bad), value in used]
    unknown = [value for value in values if value not in meanings]
    remedy = mapping_remedy(column, unknown, own) if unknown else ""
    return _each(raw, (column,), parse, f"{raw.own_name(column)}: {', '.join(shown)}", remedy)


# --- numbers ---------------------------------------------------------------------------------------------


def _scores(raw: RawTable, data: Data, positive: str | None) -> Verdicts:
    """Return verdicts of signed scores: of a battle, of each annotator (soft labels), or of both."""
    columns = tuple(name for name in ("signed_score", "signed_scores") if name in raw.columns)
    one, several = columns[0] == "signed_score", columns[-1] == "signed_scores"
    own_name = raw.own_name(columns[0])
    side = data.positive_score if data.positive_score != "unset" else positive
    if side is None:
        raise UserError(
            f"{raw.name}: column {own_name} has signed scores, and either sign can favour A; set "
            f"data.positive_score=a or data.positive_score=b (the side that a positive score favours)"
        )
    band = data.tie_band
    if_positive, if_negative = (A, B) if side == "a" else (B, A)

    def label(cell: Any) -> int:
        score = number(cell)
        return TIE if abs(score) <= band else if_positive if score > 0 else if_negative

    def parse(*cells: Any) -> Verdict:
        scores = _annotators_scores(cells[-1]) if several else []
        if not one and not scores:
            raise CellError(f"{show(cells[-1])} has no scores; expected a list of at least one")
        votes = [label(score) for score in scores]
        most = majority([votes.count(k) for k in range(len(SIDES))]) if votes else Verdict(None)
        return Verdict(label(cells[0]), most.soft) if one else most

    low, high = SIDES[if_negative], SIDES[if_positive]
    bounds = ("negative", "positive", "0") if not band else (f"below -{band:g}", f"above {band:g}", "between")
    coding = f"{own_name}: {bounds[0]} → {low}, {bounds[1]} → {high}, {bounds[2]} → tie"
    if several:
        votes = f"each annotator's score in {raw.own_name('signed_scores')} is a vote, their shares the soft label"
        coding += f"; {votes}" if one else f"; {votes}; most votes win, equal → tie"
    return _each(raw, columns, parse, coding, SCORE_REMEDIES[several])


def _annotators_scores(cell: Any) -> list[Any]:
    """Return the scores of a list of numbers, or of objects with a ``score``, given as such or as JSON text."""
    if is_missing(cell):
        return []
    items = parse_json(cell, "scores") if isinstance(cell, str) else cell
    if not isinstance(items, list):
        raise CellError(f"{show(cell)} is not a list of scores")
    return [item.get("score") if isinstance(item, dict) else item for item in items]


def _preferences(raw: RawTable) -> Verdicts:
    """Return verdicts from 1 (A) to 2 (B) with 1.5 or 0 for a tie; other values are the probability of B plus 1."""
    column = "preference_1_to_2"
    weighted = any(value_or_none(cell) not in (None, "0", "1", "1.5", "2") for cell in raw.columns[column])

    def parse(cell: Any) -> Verdict:
        preference = number(cell)
        if preference == 0:
            return Verdict(TIE)
        if not 1 <= preference <= 2:
            raise CellError(f"{show(cell)} is not a preference; expected 1 (A wins) to 2 (B wins)")
        label = TIE if preference == 1.5 else A if preference < 1.5 else B
        return Verdict(label, (2 - preference, preference - 1, 0.0) if weighted else None)

    ends = "1 → A, 2 → B, 1.5 and 0 → tie"
    between = "; between them the probability of B plus 1, as soft labels" if weighted else ""
    return _each(raw, (column,), parse, f"{raw.own_name(column)}: {ends}{between}", "write numbers from 1 to 2, or 0")


def _shared(
    raw: RawTable, possible: Sequence[str], parse: Callable[..., Verdict], winner: str, remedy: str
) -> Verdicts:
    columns = tuple(name for name in possible if name in raw.columns)
    names = ", ".join(map(raw.own_name, columns))
    return _each(raw, columns, parse, f"{names}: {winner}, equal → tie; their shares are the soft label", remedy)


def _votes(*cells: Any) -> Verdict:
    votes = [0.0 if is_missing(cell) else number(cell) for cell in cells]
    if min(votes) < 0 or sum(votes) <= 0:
        raise CellError(f"the votes are {', '.join(map(show, cells))}; expected numbers, and at least one vote")
    return majority(votes)


def _probabilities_without_b(prob_a: Any, prob_tie: Any = 0.0) -> Verdict:
    rest = 1 - number(prob_a) - number(prob_tie)
    return _probabilities(prob_a, 0.0 if -1e-9 < rest < 0 else rest, prob_tie)  # 1 - 0.8 - 0.2 is below 0


def _probabilities(*cells: Any) -> Verdict:
    probs = [number(cell) for cell in cells]
    if min(probs) < 0 or abs(sum(probs) - 1) > ROUNDING:
        raise CellError(f"the probabilities are {', '.join(map(show, cells))}; expected numbers that sum to 1")
    return majority(probs)


def majority(weights: Sequence[float]) -> Verdict:
    """Return the class with the largest share, a tie where several have it, and all shares as the soft label."""
    total = sum(weights)
    a, b, tie = shares = tuple(weight / total for weight in (*weights, 0.0)[:3])
    most = max(shares)
    return Verdict(shares.index(most) if shares.count(most) == 1 else TIE, (a, b, tie))
