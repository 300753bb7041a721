"""Rankings of several responses, as pairs: each response of a prompt against each that is ranked otherwise.

Read are Nectar (``answers`` with ranks), UltraFeedback (``completions`` with scores) and RewardBench 2 (lists of
correct and incorrect responses). Two responses of the same rank are a tie. A prompt of n responses gives
n (n - 1) / 2 battles (RewardBench 2: correct times incorrect), which all have the row of their prompt.

Sources: the dataset cards of berkeley-nest/Nectar, openbmb/UltraFeedback and allenai/reward-bench-2.
"""

from __future__ import annotations

from itertools import combinations, product
from typing import Any, NamedTuple

from oof.data.conversations import HH_TURN, parse_hh_text
from oof.data.parse_cells import CellError, number, optional_name, parse_json, show
from oof.data.raw_table import RawTable, RowFault

PAIR_COLUMNS = ("prompt", "chosen", "rejected", "chosen_model", "rejected_model", "tied")
RANKING_COLUMNS = ("instruction", "answers", "completions", "models")


class Ranked(NamedTuple):
    """One response; a higher merit is better."""

    text: str | None
    model: str | None
    merit: float


def ranking_name(raw: RawTable) -> str | None:
    """Return the name of a file's schema if its rows are rankings."""
    names = set(raw.names)
    if {"prompt", "answers"} <= names and not {"chosen", "response_a"} & names:
        return "Nectar"
    if {"instruction", "completions"} <= names:
        return "UltraFeedback"
    lists = (cell for name in ("chosen", "rejected") for cell in raw.columns.get(name, [])[:20])
    if {"prompt", "chosen", "rejected"} <= names and {"num_correct", "total_completions"} & names:
        return "RewardBench 2" if any(_is_list_of_texts(cell) for cell in lists) else None
    return None


def _is_list_of_texts(cell: object) -> bool:
    try:
        value = parse_json(cell) if isinstance(cell, str) and cell[:1] == "[" else cell
    except CellError:  # a text that begins with a bracket
        return False
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def expand_rankings(raw: RawTable, name: str) -> RawTable:
    """Return the pairs of a file of rankings; a row that is no ranking becomes a fault.

    Args:
        raw: the file's own columns.
        name: as :func:`ranking_name` returns it.
    """
    parse = {"Nectar": _nectar, "UltraFeedback": _ultrafeedback, "RewardBench 2": _reward_bench}[name]
    columns: dict[str, list[Any]] = {column: [] for column in PAIR_COLUMNS}
    rows: list[int] = []
    faults = list(raw.faults)
    ids: list[str] = []
    for i, row in enumerate(raw.rows):
        try:
            pairs = parse({column: cells[i] for column, cells in raw.columns.items()})
        except CellError as error:
            faults.append(RowFault(row, None, str(error), "see the dataset's card for its columns"))
            continue
        for j, pair in enumerate(pairs):
            for column, value in zip(PAIR_COLUMNS, pair, strict=True):
                columns[column].append(value)
            rows.append(row)
            ids.append(f"{raw.columns['id'][i]}/{j}" if "id" in raw.columns else "")
    if "id" in raw.columns:
        columns["id"] = ids
    return RawTable(raw.name, list(columns), columns, rows, faults)


Pair = tuple[Any, str | None, str | None, str | None, str | None, bool]


def _nectar(cells: dict[str, Any]) -> list[Pair]:
    prompt = cells["prompt"]
    if isinstance(prompt, str) and HH_TURN.match(prompt):
        messages = parse_hh_text(prompt)
        messages = messages[:-1] if messages[-1][0] == "assistant" and not messages[-1][1] else messages
        prompt = [{"role": role, "content": text} for role, text in messages]
    answers = _list(cells["answers"], "answers")
    return _pairs(prompt, [_ranked(a, "answer", -number(a.get("rank"))) for a in answers])


def _ultrafeedback(cells: dict[str, Any]) -> list[Pair]:
    completions = _list(cells["completions"], "completions")
    scores = [number(c.get("overall_score", c.get("fine-grained_score"))) for c in completions]
    ranked = [_ranked(c, "response", score) for c, score in zip(completions, scores, strict=True)]
    return _pairs(cells["instruction"], ranked)


def _reward_bench(cells: dict[str, Any]) -> list[Pair]:
    sides = [_list(cells[name], name, str) for name in ("chosen", "rejected")]
    return [(cells["prompt"], good, bad, None, None, False) for good, bad in product(*sides)]


def _pairs(prompt: Any, responses: list[Ranked]) -> list[Pair]:
    pairs: list[Pair] = []
    for one, two in combinations(responses, 2):
        best, other = (two, one) if two.merit > one.merit else (one, two)
        pairs.append((prompt, best.text, other.text, best.model, other.model, best.merit == other.merit))
    return pairs


def _list(cell: object, name: str, kind: type = dict) -> list[Any]:
    value = parse_json(cell, name) if isinstance(cell, str) else cell
    if not isinstance(value, list) or not value or not all(isinstance(item, kind) for item in value):
        raise CellError(f"column {name}: expected a list of responses, not {show(cell)}")
    return value


def _ranked(item: dict[str, Any], key: str, merit: float) -> Ranked:
    text = item.get(key)
    if text is not None and not isinstance(text, str):
        raise CellError(f"{key}: {show(text)} is not text")
    return Ranked(text, optional_name(item.get("model")), merit)
