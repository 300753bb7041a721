"""Layouts: known datasets whose columns have other names than ours.

Sources: the dataset cards of tatsu-lab/alpaca_eval, allenai/reward-bench and nvidia/HelpSteer3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from oof.data.raw_table import RawTable


@dataclass(frozen=True)
class Layout:
    """Columns of a known dataset that have other names than ours.

    Attributes:
        name: of the schema.
        needs: columns that identify it.
        columns: our column name -> its own.
        positive: the side that a positive score favours.
    """

    name: str
    needs: tuple[str, ...]
    columns: Mapping[str, str]
    positive: str | None = None


LAYOUTS = (
    Layout(
        "AlpacaEval",
        ("instruction", "output_1", "output_2"),
        {
            "prompt": "instruction", "response_a": "output_1", "response_b": "output_2", "model_a": "generator_1",
            "model_b": "generator_2", "preference_1_to_2": "preference",
        },
    ),
    Layout("RewardBench", ("prompt", "chosen", "rejected", "subset", "chosen_model"), {"subset": "subset"}),
    Layout(
        "HelpSteer3",
        ("context", "response1", "response2"),
        {
            "prompt": "context", "response_a": "response1", "response_b": "response2",
            "signed_score": "overall_preference", "signed_scores": "individual_preference",
        },
        positive="b",
    ),
    Layout(
        "chosen/rejected pairs",
        ("chosen", "rejected", "chosen-model", "rejected-model"),
        {"chosen_model": "chosen-model", "rejected_model": "rejected-model"},
    ),
)  # fmt: skip
LAYOUT_COLUMNS = {"input"} | {name for layout in LAYOUTS for name in (*layout.needs, *layout.columns.values())}


def layout_of(names: Sequence[str]) -> Layout | None:
    """Return the known layout of a file with these columns."""
    return next((layout for layout in LAYOUTS if set(layout.needs) <= set(names)), None)


def join_inputs(raw: RawTable) -> None:
    """Append AlpacaEval's ``input``, a text that the instruction is about, to the instruction."""
    if {"instruction", "output_1", "input"} <= set(raw.columns):
        pairs = zip(raw.columns["instruction"], raw.columns["input"], strict=True)
        raw.columns["instruction"] = [f"{text}\n\n{more}" if text and more else text for text, more in pairs]
