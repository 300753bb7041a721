"""Verdicts of one file: cells to classes, votes to soft labels, and the coding in words.

A coding that can be read in two ways is never guessed. Numbers 1 and 2 without a 0 may mean "A, B" or "B, tie", and a
signed score may favour either side: such a file is refused with the possible settings, ready to paste.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from oof.classes import CLASSES, TIE, WINNER_COLUMNS, A, B
from oof.common.errors import UserError
from oof.config import Data
from oof.data.parse_cells import (
    BOTH_BAD_WORDS,
    LABEL_NUMBERS,
    VERDICT_WORDS,
    CellError,
    flow_mapping,
    is_missing,
    number,
    one_hot,
    show,
    verdict_key,
)
from oof.data.raw_table import RawTable

Shares = tuple[float, float, float]  # soft label in class order
BOTH_BAD = "both_bad"
MEANINGS = {**{name: i for i, name in enumerate(CLASSES)}, **VERDICT_WORDS}  # values of data.verdicts
SIDES = ("A", "B", "tie")  # the classes as messages name them
VOTE_COLUMNS = ("votes_a", "votes_b", "votes_tie")
PROB_COLUMNS = ("prob_a", "prob_b", "prob_tie")
FORMS = {  # form of a verdict -> the columns that it needs, most explicit first
    "one-hot": WINNER_COLUMNS,
    "winner": ("winner",),
    "label": ("label",),
    "preference_1_to_2": ("preference_1_to_2",),
    "signed_score": ("signed_score",),
    "votes": VOTE_COLUMNS[:2],
    "probabilities": PROB_COLUMNS[:1],
}
ROUNDING = 0.011  # by which rounded probabilities may miss a sum of 1


@dataclass
class Verdicts:
    """Verdicts of (n,) rows.

    Attributes:
        labels: classes 0, 1, 2 or None where the row has a fault.
        soft: shares of the votes or probabilities; None where the verdict is one class.
        both_bad: whether the judge found both responses bad; such a row is a tie.
        cells: the verdict as the file has it, for messages.
        faults: (row position, column, reason, remedy).
        coding: the coding in words.
    """

    labels: list[int | None]
    soft: list[Shares | None]
    both_bad: list[bool]
    cells: list[str]
    faults: list[tuple[int, str, str, str]] = field(default_factory=list)
    coding: str = ""


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
        coding = ", ".join(f"{_name(raw, name)}=1 → {side}" for name, side in zip(WINNER_COLUMNS, SIDES, strict=True))
        return _each(raw, WINNER_COLUMNS, lambda *cells: (one_hot(*cells), None), lambda _: coding)
    if form in ("winner", "label"):
        return _coded(raw, form, own)
    if form == "preference_1_to_2":
        return _preferences(raw)
    if form == "signed_score":
        return _scores(raw, data, positive)
    names: tuple[str, ...] = VOTE_COLUMNS if form == "votes" else PROB_COLUMNS
    names = tuple(name for name in names if name in raw.columns)
    parse = _votes if form == "votes" else _probabilities
    what = "most votes win" if form == "votes" else "the largest probability wins"
    coding = f"{', '.join(_name(raw, name) for name in names)}: {what}, equal → tie; their shares are the soft label"
    return _each(raw, names, parse, lambda _: coding)


def own_meanings(verdicts: Mapping[str, str]) -> dict[str, tuple[int, bool]]:
    """Return key of a cell -> (class, both bad) of ``data.verdicts``.

    Raises:
        UserError: a value is no class.
    """
    meanings = {}
    for cell, name in verdicts.items():
        word = str(name).strip().lower()
        if word not in MEANINGS:
            raise UserError(f"data.verdicts: {cell!r} cannot mean {name!r}; choose a, b, tie or both_bad")
        meanings[verdict_key(cell)] = (MEANINGS[word], word in BOTH_BAD_WORDS)
    return meanings


def _name(raw: RawTable, column: str) -> str:
    return raw.renamed.get(column, column)


def _each(
    raw: RawTable,
    columns: Sequence[str],
    parse: Callable[..., tuple[int, Shares | None]],
    coding: Callable[[list[int | None]], str],
    bad: Callable[..., bool] = lambda *_: False,
    remedy: str = "",
) -> Verdicts:
    """Return ``parse`` of the cells of each row; a cell that it refuses is a fault of the first column."""
    place = columns[0] if len(columns) == 1 else f"{columns[0]}..{columns[-1]}"
    verdicts = Verdicts([], [], [], [])
    for i, cells in enumerate(zip(*(raw.columns[name] for name in columns), strict=True)):
        try:
            label, soft = parse(*cells)
        except CellError as error:
            verdicts.faults.append((i, place, str(error), remedy))
            verdicts.labels.append(None)
            verdicts.soft.append(None)
            verdicts.both_bad.append(False)
        else:
            verdicts.labels.append(label)
            verdicts.soft.append(soft)
            verdicts.both_bad.append(bad(*cells))
        shown = [f"{_name(raw, name)} {show(cell)}" for name, cell in zip(columns, cells, strict=True)]
        verdicts.cells.append(", ".join(shown))
    verdicts.coding = coding(verdicts.labels)
    return verdicts


# --- words and numbers -----------------------------------------------------------------------------------


def _coded(raw: RawTable, column: str, own: Mapping[str, tuple[int, bool]]) -> Verdicts:
    words = {word: (label, word in BOTH_BAD_WORDS) for word, label in VERDICT_WORDS.items()}
    numbers = {str(label): (label, False) for label in LABEL_NUMBERS} if column == "label" and not own else {}
    meanings = {**words, **numbers, **own}
    keys = [_key_or_none(cell) for cell in raw.columns[column]]
    values = sorted({key for key in keys if key is not None})
    if column == "label" and not own:
        _refuse_ambiguous(raw, column, values)
    expected = (
        "a value of data.verdicts"
        if own
        else "model_a, model_b, tie or both_bad"
        if column == "winner"
        else "0 (A wins), 1 (B wins) or 2 (tie)"
    )
    kind = "verdict" if column == "winner" else "label"

    def parse(cell: Any) -> tuple[int, Shares | None]:
        key = _key_or_none(cell)
        if key is None or key not in meanings:
            raise CellError(f"{show(cell)} is not a {kind}; expected {expected}")
        return meanings[key][0], None

    def coding(_: list[int | None]) -> str:
        used = [(meanings[value], value) for value in values if value in meanings]
        shown = [f"{value} → {SIDES[label]}{' (both bad)' if bad else ''}" for (label, bad), value in sorted(used)]
        return f"{_name(raw, column)}: {', '.join(shown)}"

    unknown = [value for value in values if value not in meanings]
    remedy = _mapping_remedy(column, unknown, own) if unknown else ""
    return _each(raw, (column,), parse, coding, lambda cell: meanings[verdict_key(cell)][1], remedy)


def _key_or_none(cell: object) -> str | None:
    if is_missing(cell):
        return None
    try:
        return verdict_key(cell)
    except CellError:
        return None


def _refuse_ambiguous(raw: RawTable, column: str, values: Sequence[str]) -> None:
    """Refuse numbers that fit more than one coding.

    Raises:
        UserError: names the possible settings.
    """
    numbers = sorted({float(value) for value in values if _is_number(value)})
    whole = [f"{value:g}" for value in numbers]
    place = f"{raw.name}: column {_name(raw, column)}"
    if numbers and numbers[0] < 0:
        score = f"data.columns.signed_score={_name(raw, column)}"
        raise UserError(
            f"{place} has negative values ({_few(whole)}), which are not labels; set {score} with "
            f"data.positive_score=a or data.positive_score=b (the side that a positive score favours)"
        )
    if 0 not in numbers and {1.0, 2.0} <= set(numbers) and set(numbers) <= {1.0, 2.0, 3.0}:
        tie = ", 3: tie" if 3.0 in numbers else ""
        options = [f"data.verdicts={{1: a, 2: b{tie}}}", f"data.verdicts={{1: b, 2: a{tie}}}"]
        if not tie:
            options[1] = "data.verdicts={0: a, 1: b, 2: tie}"
        raise UserError(
            f"{place} has the values {' and '.join(whole)}, which can mean two things; set {' or '.join(options)}"
        )


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return value not in ("nan", "inf", "-inf", "infinity")


def _few(values: Sequence[str]) -> str:
    return ", ".join(values[:6]) + (", …" if len(values) > 6 else "")


A_VALUES = {
    "left", "first", "1", "one", "response_a", "response_1", "response1", "output_1", "output_a", "answer_1",
    "answer_a", "model_1", "model a", "assistant_a", "assistant a", "response a", "response 1", "[[a]]",
    "a>b", "a>>b", "a_wins",
}  # fmt: skip
B_VALUES = {
    "right", "second", "2", "two", "response_b", "response_2", "response2", "output_2", "output_b", "answer_2",
    "answer_b", "model_2", "model b", "assistant_b", "assistant b", "response b", "response 2", "[[b]]",
    "b>a", "b>>a", "b_wins",
}  # fmt: skip
TIE_VALUES = {"draw", "equal", "same", "both", "neither", "none", "0", "no preference", "tied", "ties", "[[c]]", "a=b"}


def guess_meaning(value: str) -> str | None:
    """Return the class that a value most probably means, as ``data.verdicts`` names it."""
    for values, name in ((A_VALUES, "a"), (B_VALUES, "b"), (TIE_VALUES, "tie")):
        if value in values:
            return name
    return None


def _mapping_remedy(column: str, unknown: Sequence[str], own: Mapping[str, tuple[int, bool]]) -> str:
    """Return the remedy for values without a meaning: a mapping to paste where their meanings can be guessed."""
    plain = "write model_a, model_b or tie" if column == "winner" else "write 0, 1 or 2"
    if len(unknown) > 8 or not all(value.isprintable() and len(value) <= 40 for value in unknown):
        return f"{plain}, or say what the file's own values mean in data.verdicts"
    known = {value: "both_bad" if bad else CLASSES[label] for value, (label, bad) in own.items()}
    guesses = known | {value: guess_meaning(value) or "?" for value in unknown}
    hint = "" if "?" not in guesses.values() else " (a, b, tie or both_bad for each ?)"
    mapping = f"data.verdicts={flow_mapping(guesses)}{hint}"
    return mapping if own else f"{plain}, or set {mapping}"


# --- numbers ---------------------------------------------------------------------------------------------


def _scores(raw: RawTable, data: Data, positive: str | None) -> Verdicts:
    column = "signed_score"
    side = data.positive_score if data.positive_score != "unset" else positive
    if side is None:
        raise UserError(
            f"{raw.name}: column {_name(raw, column)} has signed scores, and either sign can favour A; set "
            f"data.positive_score=a or data.positive_score=b (the side that a positive score favours)"
        )
    band = data.tie_band
    winner = {True: A if side == "a" else B, False: B if side == "a" else A}

    def parse(cell: Any) -> tuple[int, Shares | None]:
        score = number(cell)
        return TIE if abs(score) <= band else winner[score > 0], None

    low, high = SIDES[winner[False]], SIDES[winner[True]]
    bounds = ("negative", "positive", "0") if not band else (f"below -{band:g}", f"above {band:g}", "between")
    coding = f"{_name(raw, column)}: {bounds[0]} → {low}, {bounds[1]} → {high}, {bounds[2]} → tie"
    return _each(raw, (column,), parse, lambda _: coding, remedy="write a number, negative or positive")


def _preferences(raw: RawTable) -> Verdicts:
    """Return verdicts from 1 (A) to 2 (B) with 1.5 or 0 for a tie; other values are the probability of B plus 1."""
    column = "preference_1_to_2"
    cells = raw.columns[column]
    weighted = any(_key_or_none(cell) not in (None, "0", "1", "1.5", "2") for cell in cells)

    def parse(cell: Any) -> tuple[int, Shares | None]:
        preference = number(cell)
        if preference == 0:
            return TIE, None
        if not 1 <= preference <= 2:
            raise CellError(f"{show(cell)} is not a preference; expected 1 (A wins) to 2 (B wins)")
        label = TIE if preference == 1.5 else A if preference < 1.5 else B
        return label, (2 - preference, preference - 1, 0.0) if weighted else None

    ends = "1 → A, 2 → B, 1.5 and 0 → tie"
    between = "; between them the probability of B plus 1, as soft labels" if weighted else ""
    return _each(raw, (column,), parse, lambda _: f"{_name(raw, column)}: {ends}{between}")


def _majority(shares: Sequence[float]) -> int:
    """Return the class with the most votes; a tie where several have as many."""
    most = max(shares)
    return list(shares).index(most) if list(shares).count(most) == 1 else TIE


def _votes(*cells: Any) -> tuple[int, Shares | None]:
    votes = [0.0 if is_missing(cell) else number(cell) for cell in cells]
    votes += [0.0] * (3 - len(votes))
    if min(votes) < 0 or sum(votes) <= 0:
        raise CellError(f"the votes are {', '.join(map(show, cells))}; expected numbers, and at least one vote")
    a, b, tie = (vote / sum(votes) for vote in votes)
    return _majority(votes), (a, b, tie)


def _probabilities(*cells: Any) -> tuple[int, Shares | None]:
    probs = [number(cell) for cell in cells]
    if len(probs) == 1:
        probs.append(1 - probs[0])
    probs += [0.0] * (3 - len(probs))
    if min(probs) < 0 or abs(sum(probs) - 1) > ROUNDING:
        raise CellError(f"the probabilities are {', '.join(map(show, cells))}; expected numbers that sum to 1")
    a, b, tie = (prob / sum(probs) for prob in probs)
    return _majority((a, b, tie)), (a, b, tie)
