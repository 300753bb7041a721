"""Suggested meanings of a file's unknown columns: a whole mapping, ready to paste.

Columns come in pairs of one stem and two endings (``answer_1`` and ``answer_2``, ``left_text`` and ``right_text``), or
have one of the common names of a prompt, an id or a verdict. Only columns that the file lacks are suggested.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence

from oof.data.verdicts import FORMS

ENDINGS = (("a", "b"), ("1", "2"), ("0", "1"), ("left", "right"), ("first", "second"), ("one", "two"), ("i", "ii"))
PAIRED = {  # our pair of columns -> stems of a pair of columns
    ("response_a", "response_b"): (
        "response", "responce", "answer", "output", "completion", "reply", "candidate", "generation", "text", "summary",
        "assistant", "result", "model_response", "model_output", "response_model", "message", "argument", "option", "",
    ),
    ("conversation_a", "conversation_b"): ("conversation", "conv", "dialogue", "dialog", "messages", "chat"),
    ("model_a", "model_b"): ("model", "generator", "system", "bot", "llm", "model_name", "source", "assistant_model"),
    ("votes_a", "votes_b"): ("votes", "n_votes", "num_votes", "votes_for", "count", "n"),
}  # fmt: skip
SINGLE = {  # our column -> common names of it, most specific first
    "prompt": (
        "prompt", "question", "instruction", "query", "user_prompt", "user_query", "problem", "task", "input",
        "context", "request", "source", "post", "user",
    ),
    "chosen": ("chosen", "preferred", "accepted", "better", "winning_response", "win", "good", "best_response"),
    "rejected": ("rejected", "dispreferred", "worse", "losing_response", "lose", "loss", "bad", "non_preferred"),
    "votes_tie": (
        "votes_tie", "n_votes_tie", "num_votes_tie", "votes_equal", "ties", "count_tie", "n_tie", "n_ties",
        "votes_ties", "votes_draw", "votes_both",
    ),
    "prob_a": ("prob_a", "p_a", "probability_a", "p_win_a", "prob_response_a", "win_rate_a"),
    "prob_b": ("prob_b", "p_b", "probability_b", "p_win_b", "prob_response_b", "win_rate_b"),
    "prob_tie": ("prob_tie", "p_tie", "probability_tie"),
    "label": (
        "label", "winner", "preference", "human_preference", "verdict", "choice", "preferred_response", "vote",
        "judgment", "judgement", "decision", "better_response", "better", "best", "gold", "gold_label", "annotation",
        "outcome", "human_label", "labels", "target", "pref", "which", "score",
    ),
    "id": (
        "id", "question_id", "pair_id", "battle_id", "example_id", "sample_id", "qid", "uid", "uuid", "index", "idx",
        "nr",
    ),
    "language": ("language", "lang"),
}  # fmt: skip
VERDICT_STEMS = ("prefer", "winn", "verdict", "judg", "vote", "better", "label")  # in names such as preferred_by_user
VERDICTS = {columns[0] for columns in FORMS.values()}  # a file with one of them has a verdict


def suggest_columns(names: Sequence[str], known: Collection[str]) -> dict[str, str]:
    """Return a mapping of unknown columns, ours first, that gives a file the texts, verdicts and names that it lacks.

    Args:
        names: the file's columns.
        known: all of our columns, which need no mapping.
    """
    free = {_plain(name): name for name in reversed(names) if name not in known and name.isprintable()}
    columns: dict[str, str] = {}
    for ours, stems in PAIRED.items():
        columns |= _pair(ours, stems, free, names)
    complete = {*names, *columns}
    has_pair = {"response_a", "response_b"} <= complete or {"conversation_a", "conversation_b"} <= complete
    for our_name, candidates in SINGLE.items():
        if our_name in names or (our_name in ("chosen", "rejected") and has_pair):
            continue
        if our_name == "label" and {*names, *columns} & VERDICTS:
            continue
        left = {plain: name for plain, name in free.items() if name not in columns.values()}
        match = next((left[candidate] for candidate in candidates if candidate in left), None)
        if match is None and our_name == "label" and has_pair:
            match = _only_verdict(left)
        if match is not None:
            columns[our_name] = match
    if {"chosen", "rejected"} & set(columns) and not {"chosen", "rejected"} <= {*names, *columns}:
        columns = {ours: theirs for ours, theirs in columns.items() if ours not in ("chosen", "rejected")}
    columns |= _misspelt(free, columns, names)
    order = ("id", "prompt", "response_a", "response_b", "conversation_a", "conversation_b", "chosen", "rejected")
    return dict(sorted(columns.items(), key=lambda item: (*order, item[0]).index(item[0])))


def _only_verdict(left: Mapping[str, str]) -> str | None:
    """Return the column whose name contains a stem of verdict names, if there is exactly one."""
    matches = [name for plain, name in left.items() if any(stem in plain for stem in VERDICT_STEMS)]
    return matches[0] if len(matches) == 1 else None


def _plain(name: str) -> str:
    """Return a column name in lower case with "_" between its words; camel case is split."""
    split = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    return re.sub(r"[\W_]+", "_", split).strip("_").lower()


def _pair(ours: tuple[str, str], stems: Sequence[str], free: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    missing = [name for name in ours if name not in names]
    for stem in stems:
        for endings in ENDINGS:
            forms = ("{stem}_{end}", "{stem}{end}", "{end}_{stem}") if stem else ("{end}",)
            for form in forms:
                theirs = [form.format(stem=stem, end=end) for end in endings]
                given = dict(zip(ours, theirs, strict=True))
                if all(given[name] in free for name in missing) and missing and (len(missing) == 2 or stem):
                    return {name: free[given[name]] for name in missing}
    return {}


def _misspelt(free: Mapping[str, str], columns: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """Return our text columns that the file has under nearly the same name."""
    wanted = ("prompt", "response_a", "response_b", "conversation_a", "conversation_b", "chosen", "rejected", "label")
    near: dict[str, str] = {}
    for ours in wanted:
        rest = {plain: name for plain, name in free.items() if name not in {*columns.values(), *near.values()}}
        match = difflib.get_close_matches(ours, list(rest), n=1, cutoff=0.8)
        verdict_known = ours == "label" and {*names, *columns} & VERDICTS
        same_side = match and (ours[-2:] not in ("_a", "_b") or match[0][-1] == ours[-1])  # "responses" is no side
        if match and same_side and ours not in names and ours not in columns and not verdict_known:
            near[ours] = rest[match[0]]
    return near
