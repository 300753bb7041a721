# ruff: noqa: RUF009  # setting() returns a dataclass field
"""Settings of the data: battle files, groups of near-duplicates, folds and the text that models read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from oof.config.setting import setting

SEEDS = (0, 2**31 - 1)
LAYOUTS = ("responses", "rounds")
HINTS = ("none", "lengths")
MARKERS = ("plain", "count")
TOKENS = (32, 1_000_000)
READING = (
    "verdicts",
    "positive_score",
    "tie_band",
    "both_bad",
    "ties",
    "non_text",
)  # settings of Data: how cells are read


@dataclass(frozen=True)
class Synth:
    """The embedded synthetic arena, whose class probabilities are known; used when ``data.train`` is empty."""

    battles: int = setting(
        0, "training battles to generate; 0 = no synthetic arena", unit="battles", range=(0, 10_000_000)
    )
    test_battles: int = setting(300, "test battles to generate", unit="battles", range=(1, 10_000_000))
    seed: int = setting(0, "seed of the generator", range=SEEDS)


@dataclass(frozen=True)
class Data:
    """Battle files. Paths may be globs; relative paths start at the working folder."""

    train: list[str] = setting([], "labelled battles: trained on and scored out of fold")
    extra: list[str] = setting(
        [], "labelled battles that are trained on but count in no score; each is held out by one fold, that of its "
        "near-duplicates if these are scored",
    )  # fmt: skip
    unlabelled: list[str] = setting([], "battles without a label, for distillation")
    test: list[str] = setting([], "battles to predict")
    truth: str | None = setting(
        None, "CSV file of true class probabilities (synthetic data only), read by the table of metrics alone"
    )
    columns: dict[str, str] = setting(
        {}, "our column name: the files' column name; for files whose columns fit no known schema"
    )
    verdicts: dict[str, str] = setting(
        {}, "value of the files' label or winner column: its meaning, `a`, `b`, `tie` or `both_bad`; empty = 0, 1 and "
        "2, or words such as model_a and tie",
        added=True,
    )  # fmt: skip
    votes: list[str] = setting(
        [], "votes of several annotators on the train battles, joined by `id`: numbers of votes (`votes_a`, `votes_b`, "
        "`votes_tie`), or a row for each vote with `winner` or `label` and `annotator`",
        added=True,
    )  # fmt: skip
    positive_score: str = setting(
        "unset", "the side that a positive score favours, where verdicts are signed scores (`signed_score` in "
        "`data.columns`)",
        choices=("unset", "a", "b"), added=True,
    )  # fmt: skip
    tie_band: float = setting(
        0.0, "a signed score at most this far from 0 is a tie", range=(0.0, 1_000_000.0), added=True
    )
    both_bad: str = setting(
        "tie", "battles in which both responses were judged bad: ties, left out, or ties with a column `both_bad` in "
        "battles.parquet",
        choices=("tie", "drop", "keep"), added=True,
    )  # fmt: skip
    ties: bool = setting(
        True,
        "whether a battle can end in a tie. `false`, for data without ties: models have two classes, from training to "
        "the exported student, a tie has the probability 0 everywhere, and a battle with the verdict tie is a bad row",
        added=True,
    )
    non_text: str = setting(
        "error", "battles with images or tool calls: refused, left out, or read with a placeholder such as `[image]`",
        choices=("error", "drop", "placeholder"), added=True,
    )  # fmt: skip
    on_bad_row: str = setting(
        "error", "what to do with a row that cannot be used: stop, or leave it out and list it in `dropped.csv`",
        choices=("error", "drop"),
    )  # fmt: skip
    extra_weight: float = setting(1.0, "loss weight of an extra battle; a train battle has 1", range=(0.0, 1000.0))
    min_prompt_quality: float = setting(
        0.0,
        "labelled battles whose prompt has a lower quality (see `oof/data/prompt_quality.py`) are scored but not "
        "trained on; 0 = train on all",
        range=(0.0, 1.0),
    )
    subset: float = setting(
        1.0,
        "train battles that the run uses, drawn by `seed`; the others are neither trained on nor scored. For cards "
        "that cannot afford all of them",
        unit="share", range=(0.001, 1.0), added=True,
    )  # fmt: skip
    synth: Synth = field(default_factory=Synth)


@dataclass(frozen=True)
class Groups:
    """Groups of battles with near-duplicate prompts: near-duplicates never sit on both sides of a split."""

    threshold: float = setting(
        0.7, "Jaccard similarity of character 5-grams from which two prompts are near-duplicates", range=(0.1, 1.0)
    )
    column: str | None = setting(None, "group by this column of the files instead of by prompt text; null = by text")
    responses: bool = setting(False, "also put battles that share a response text into one group")


@dataclass(frozen=True)
class Folds:
    """Cross-validation folds, stratified by label."""

    k: int = setting(
        5, "number of folds; each member is trained once per fold, on the others", unit="folds", range=(2, 100)
    )
    column: str | None = setting(
        None, "column of the files with one's own folds, whole numbers; refused where it separates a group; null = a "
        "column named fold if there is one, else folds are drawn",
        added=True,
    )  # fmt: skip


@dataclass(frozen=True)
class Prompts:
    """The token sequence of a battle: order of its texts and truncation."""

    layout: str = setting(
        "responses", "`responses`: all prompts, then all responses of A, then of B; `rounds`: turn by turn",
        choices=LAYOUTS,
    )  # fmt: skip
    max_tokens: int = setting(
        2048, "longest sequence in training, template included; longer battles are truncated",
        unit="tokens", range=TOKENS,
    )  # fmt: skip
    score_max_tokens: int | None = setting(
        None, "longest sequence in scoring; null = as in training", unit="tokens", range=TOKENS
    )
    prompt_share: float = setting(
        0.25,
        "of a truncated battle, largest share of the tokens that the prompt keeps while the responses need the rest",
        unit="share",
        range=(0.0, 1.0),
    )
    hints: str = setting(
        "none",
        "`lengths`: the header of each text says its rounded length in characters and which share truncation kept. On "
        "the demo hints cost: calibrated log loss 0.752 with them and 0.727 without (`make demo RUN=runs/hints "
        "ARGS=prompts.hints=lengths`), because its base models have never seen such words and the stacker knows the "
        "lengths anyway",
        choices=HINTS,
    )
    marker: str = setting(
        "plain",
        "what stands for the removed middle of a trimmed text. `plain`: `…`; `count`: `… [+1,234 tokens] …`, with the "
        "tokens that it has lost. A dropped turn has no marker",
        choices=MARKERS, added=True,
    )  # fmt: skip


@dataclass(frozen=True)
class StudentPrompts:
    """What the student reads of a battle, where it differs from what the members read (``prompts``).

    A change concerns stage three alone: no member is trained again.
    """

    layout: str | None = setting(None, "order of the texts; null = `prompts.layout`", choices=LAYOUTS, added=True)
    max_tokens: int | None = setting(
        None, "longest sequence in training; null = `prompts.max_tokens`", unit="tokens", range=TOKENS, added=True
    )
    score_max_tokens: int | None = setting(
        None,
        "longest sequence in scoring, the exported student's limit; null = `distill.prompts.max_tokens`, or without "
        "that as `prompts` says",
        unit="tokens", range=TOKENS, added=True,
    )  # fmt: skip
    prompt_share: float | None = setting(
        None, "the prompt's largest share of a truncated battle; null = `prompts.prompt_share`",
        unit="share", range=(0.0, 1.0), added=True,
    )  # fmt: skip
    hints: str | None = setting(
        None,
        "lengths in the headers of the texts, which a student may need more than members whose stacker knows them: "
        "`none` or `lengths`; null = `prompts.hints`",
        choices=HINTS,
        added=True,
    )
    marker: str | None = setting(
        None, "marker of a trimmed text, `plain` or `count`; null = `prompts.marker`", choices=MARKERS, added=True
    )

    def over(self, prompts: Prompts) -> Prompts:
        """Return the settings by which the student reads: its own, and those of ``prompts`` where it has none."""
        own: dict[str, Any] = {name: value for name, value in asdict(self).items() if value is not None}
        if self.max_tokens is not None:  # the members' limit in scoring does not concern such a student
            prompts = replace(prompts, score_max_tokens=None)
        return replace(prompts, **own)
