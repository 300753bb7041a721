"""Readable names of predictors, combiners, features, metrics and fold jobs; members keep the names of their users."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ensemble.evaluation.run_table import MEANINGS, MEMBER

PREDICTORS = {
    "prior": "class shares",
    "length_only": "length baseline",
    "text": "word baseline",
    "mean": "plain mean",
    "stack": "stack, uncalibrated",
    "calibrated": "ensemble",
    "bayes": "best possible",
}
COMBINERS = {
    "mean": "mean of logits, one temperature",
    "plain_mean": "mean of logits",
    "log_pool": "log-linear pool",
    "greedy": "greedy selection",
    "logistic": "logistic regression",
    "lightgbm": "boosted trees (LightGBM)",
    "extra_trees": "randomised trees",
    "pool": "pool of combiners",
    "pool or choice of each fold (stack)": "pool or choice of each fold",
}
VERDICTS = ("A wins", "B wins", "ties")  # titles of columns, in class order
ORDINARY = ("mean", "pool")  # names of combiners that are words of a sentence, too
OF_MEMBER = {
    "margin": "lead of A",
    "tie": "pull towards a tie",
    "margin_ab": "lead of A, shown first",
    "margin_ba": "lead of A, shown second",
    "tie_ab": "pull towards a tie, A first",
    "tie_ba": "pull towards a tie, B first",
    "first_shown": "lead of the response shown first",
    "entropy": "uncertainty",
    "disagreement": "difference between the orders",
}
OF_ALL = {
    "margin": "mean lead of A",
    "spread": "spread of the lead of A",
    "tie": "mean pull towards a tie",
    "tie_spread": "spread of the pull towards a tie",
    "agreement": "share with the most common prediction",
}
SIDES = {"_a": " of A", "_b": " of B", "_diff": ", A minus B", "_prompt": " of the prompt"}
STEMS = {
    "common": "words that both responses share",
    "repeats_prompt": "share of the prompt repeated",
    "repeated_grams": "repeated phrases",
    "repeated_lines": "repeated lines",
    "script_match": "same script as the prompt",
    "latin": "share of Latin script",
    "cut": "share cut away",
    "open_fence": "unclosed code block",
    "hedges": "hedging words",
    "unfinished": "unfinished ending",
    "refusal": "refusal",
}
METRICS = {"ece": "ECE", "log_loss": "log loss", "brier": "Brier score"}
JUNK = {"no_words": "no words", "one_token": "one word", "repeats_itself": "repetition", "template": "template marker"}
DIVERGENCE = re.compile(r"divergence_(\d+)_(\d+)")


def predictor_name(name: str) -> str:
    """Return the name of a predictor on the page; of a member its own."""
    if name.startswith("combiner:"):
        return combiner_name(name.removeprefix("combiner:"))
    return PREDICTORS.get(name, name)


def with_article(name: str) -> str:
    """Return a predictor's name inside a sentence."""
    words = predictor_name(name)
    return words if words == name and name != "student" else f"the {words}"


def predictor_meaning(name: str) -> str:
    return MEANINGS.get(name, MEMBER)


def combiner_name(name: str) -> str:
    return COMBINERS.get(name, name.replace("_", " "))


def combiner_words(sentence: str) -> str:
    """Return a sentence of stage two with the combiners' readable names."""
    return re.sub(
        r"\w+", lambda word: COMBINERS.get(word[0], word[0]) if word[0] not in ORDINARY else word[0], sentence
    )


def feature_name(name: str, members: Sequence[str]) -> str:
    """Return the words for a column of the design matrix, such as ``log_chars_diff`` or ``between::spread``.

    Args:
        name: of the column.
        members: in their order, which the columns about two members count.
    """
    owner, colon, statistic = name.rpartition(":")
    pair = DIVERGENCE.fullmatch(statistic)
    if pair and max(int(i) for i in pair.groups()) < len(members):
        return f"difference between {members[int(pair[1])]} and {members[int(pair[2])]}"
    if colon:
        words = OF_ALL if owner.endswith(":") else OF_MEMBER
        of = "all members" if owner.endswith(":") else owner
        return f"{of}: {words.get(statistic, statistic.replace('_', ' '))}"
    ending = next((ending for ending in SIDES if name.endswith(ending)), "")
    stem = name.removesuffix(ending)
    logarithm = stem.startswith("log_")
    words_of_stem = STEMS.get(stem, stem.removeprefix("log_").replace("_", " ").replace("chars", "characters"))
    return f"{words_of_stem}{SIDES.get(ending, '')}{' (log)' if logarithm else ''}"


def metric_name(name: str) -> str:
    return METRICS.get(name, name.replace("_", " "))


def junk_name(kind: str) -> str:
    return JUNK.get(kind, kind)


def job_name(folder: str) -> str:
    """Return the words for a job's folder, or an Optuna study's name: ``fold-0`` or ``final``."""
    return folder.replace("fold-", "fold ") if folder.startswith("fold-") else folder.replace("final", "all battles")
