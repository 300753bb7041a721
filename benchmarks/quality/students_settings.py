"""Settings of the student that ``benchmarks.quality.students`` measures, and the runs on which it measures them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.common import ROOT
from benchmarks.quality.choice_settings import LLMFAO, VICUNA
from benchmarks.quality.real_battles import PANDALM, TULU, UKP, in_file, read_judgements, sample_half, write_csv
from oof import config as configuration
from oof.common.atomic_files import write_json
from oof.config import Config
from oof.data.synth import write_arena
from oof.data.verdicts import VOTE_COLUMNS

ARENA = "arena"
OTHER_ARENAS = 1_000_000  # their seeds begin here
PLAIN, HARD, FROM_MEMBER = "plain student", "hard labels only", "start from the member"
FROM_MEMBER_HALF = f"{FROM_MEMBER}, half the epochs"
QA = "qa_feedback_dev.csv.gz"
MEMBERS = {"smollm2": "smollm2-135m", "gemma3": "gemma3-270m"}
STUDENT = "gemma3-270m"
HALVES = ("develop", "report")
BOTH = "both"  # halves at once, where nothing is chosen
NO_PSEUDO_LABELS = "distill.pseudo_weight=0"


def settings_of(epochs: float, tokens: int | None = None) -> dict[str, list[str]]:
    """Return the settings by name, each as overrides of the plain student's.

    Args:
        epochs: of the plain student.
        tokens: its limit, where that trims texts; None where none is trimmed.
    """
    half = f"distill.student.train.epochs={epochs / 2:g}"
    hints, marker = "distill.prompts.hints=lengths", "distill.prompts.marker=count"
    settings = {
        PLAIN: [],
        HARD: ["distill.losses={ce: 1, kl: 0}"],
        FROM_MEMBER: ["distill.start=member"],
        FROM_MEMBER_HALF: ["distill.start=member", half],
        "half the epochs": [half],
        "twice the epochs": [f"distill.student.train.epochs={2 * epochs:g}"],
        "batches of 4 battles": ["distill.student.train.batch_battles=4"],
        "average of the last quarter": ["distill.student.train.average_last=0.25"],
        "three seeds": ["distill.seeds=3"],
        "pseudo-labels": ["distill.pseudo_weight=1"],
        "pseudo-labels, weight 0.3": ["distill.pseudo_weight=0.3"],
        "pseudo-labels, half of the battles": ["distill.pseudo_weight=1", "distill.pseudo_share=0.5"],
        "pseudo-labels, two rounds": ["distill.pseudo_weight=1", "distill.rounds=2"],
        "length hints": [hints],
    }
    if tokens:
        settings |= {
            "token counts in markers": [marker],
            "length hints, token counts in markers": [hints, marker],
            "twice the tokens": [f"distill.prompts.max_tokens={2 * tokens}"],
        }
    return settings | {
        "both orders in a step": ["distill.student.train.swap=paired"],
        "CE + KL": ["distill.losses={ce: 1, kl: 1}"],
        "CE + KL + cos": ["distill.losses={ce: 1, kl: 1, cosine: 1}"],
        "MSE of logits": ["distill.losses={kl: 0, mse: 1}"],
        "KL, T = 2": ["distill.temperature=2"],
        "several teachers": ["distill.teachers=members"],
        "fold-matched teacher": ["distill.teacher=fold_matched"],
        "fold-matched teachers, CE + 2 KL + 2 cos": [
            "distill.teacher=fold_matched",
            "distill.teachers=members",
            "distill.losses={ce: 1, kl: 2, cosine: 2}",
        ],
        "nested teacher": ["distill.teacher=nested"],
    }


@dataclass(frozen=True)
class Part:
    """One run on which settings are measured: a synthetic arena, or a half of a set of real battles.

    Attributes:
        section: of the page; its parts are pooled.
        seed: number of the part in its section.
        path: of the configuration.
        overrides: of every student, the run's folder first.
        votes: file of the votes on its battles; None without one.
    """

    section: str
    seed: int
    path: Path
    overrides: list[str]
    votes: Path | None = None

    @property
    def config(self) -> Config:
        return configuration.load(str(self.path), self.overrides)

    @property
    def settings(self) -> dict[str, list[str]]:
        epochs, real = self.config.distill.student.train.epochs, self.section != ARENA
        return settings_of(epochs, self.config.prompts.max_tokens if real else None)


@dataclass(frozen=True)
class RealSet:
    """A set of real battles, and how it is trained on.

    Attributes:
        files: judged battles, of which one half is scored; ``<name>_votes.csv`` beside a file has their votes.
        unlabelled: further files whose battles are pseudo-labelled, beside those of the half that are not scored.
        tokens: of a sequence.
        battles: scored ones of a half, and unlabelled ones.
        epochs: of members and student.
    """

    files: tuple[str, ...]
    unlabelled: tuple[str, ...]
    tokens: int
    battles: int
    epochs: float


REAL = {
    "arguments": RealSet((UKP,), (), 256, 1200, 2.0),
    "chats": RealSet((VICUNA, LLMFAO, PANDALM, TULU), (QA,), 384, 1500, 1.0),
}


def arena(out: Path, seed: int, battles: int) -> Part:
    """Return the demo on the synthetic arena of a seed, with as many unlabelled battles of another arena."""
    folder = out / f"{ARENA}-{seed}"
    other = folder / f"other-{battles}"
    if not (other / "truth.csv").is_file():  # which is written last
        write_arena(other, battles, OTHER_ARENAS + seed, 1)
    overrides = [f"run={folder / 'run'}", f"seed={seed}", f"data.synth.seed={seed}", f"data.synth.battles={battles}"]
    overrides += ["data.synth.test_battles=10"]  # which nothing here reads
    overrides += [f"data.unlabelled=[{other / 'train.csv'}]", NO_PSEUDO_LABELS]
    overrides += ["distill.start=base", "distill.student.train.epochs=1"]  # the demo starts from a member, for half
    return Part(ARENA, seed, ROOT / "configs" / "demo.yaml", overrides)


def real(
    name: str,
    half: str,
    out: Path,
    data: Path,
    models: Path,
    sizes: Mapping[str, float],
    members: Mapping[str, str] = MEMBERS,
    student: str = STUDENT,
) -> Part:
    """Write one half of a set of real battles, or both, with its configuration; return the part.

    Args:
        name: in ``REAL``.
        half: of the prompts, develop or report; or both.
        out: folder of all parts.
        data: folder of the judged battles.
        models: folder of the checkpoints.
        sizes: battles, tokens and epochs in place of the set's own (0 = the set's own); folds, if not 3.
        members: name -> folder of the checkpoint.
        student: folder of its checkpoint.
    """
    of_set, folder = REAL[name], out / f"{name}-{half}"
    battles, tokens = (int(sizes[key] or getattr(of_set, key)) for key in ("battles", "tokens"))
    epochs = sizes["epochs"] or of_set.epochs
    files = _write_battles(of_set, half, folder, data, battles)

    def trained(checkpoint: str) -> dict[str, Any]:  # what a CPU can train: adapters in the upper half of the layers
        train = {"epochs": epochs, "lr": 5e-4, "batch_battles": 8, "swap": "random"}
        train |= {"tokens_per_batch": 2048, "checkpoint_steps": 25}  # the most steps that a kill costs
        lora = {"rank": 16, "alpha": 32, "layers": "upper_half"}
        path = str(models / checkpoint)
        return {"checkpoint": path, "dtype": "auto", "frozen": "stored", "lora": lora, "train": train}

    tree = {
        "run": str(folder / "run"),
        "data": {role: [str(path)] for role, path in files.items()},
        "folds": {"k": int(sizes.get("folds", 3))},
        "prompts": {"max_tokens": tokens},
        "members": {member: trained(checkpoint) for member, checkpoint in members.items()},
        "stack": {"trials": 12, "text_member": True},
        "distill": {"student": trained(student)},
        "jobs": {"workers": 2},
    }
    path = folder / "config.yaml"
    write_json(path, tree)  # JSON is YAML
    overrides = [f"run={folder / 'run'}", "distill.start=base", NO_PSEUDO_LABELS]
    overrides += ["distill.final=fold_average"]  # no figure here is that of a student of all battles
    title = f"{name}, both halves" if half == BOTH else f"{name}, {half} half"
    return Part(title, 0, path, overrides, files.get("votes"))


def _write_battles(of_set: RealSet, half: str, folder: Path, data: Path, n: int) -> dict[str, Path]:
    """Write the scored and the unlabelled battles of a half and the votes, if there are any; return them by role."""
    paths = [data / file for file in of_set.files]
    judged = read_judgements(paths)
    scored, all_of_half = (sample_half(judged, half, size) for size in (n, judged.height))
    rest = all_of_half.filter(~pl.col("id").is_in(scored["id"].to_list()))
    others = pl.concat([rest, *(read_judgements([data / file]) for file in of_set.unlabelled)], how="diagonal")
    others = others.sample(min(n, others.height), seed=0).select("id", "prompt", "response_a", "response_b")
    tables = {"train": scored, "unlabelled": others}
    votes = [votes for path in paths for votes in _votes_of(path, scored["id"])]
    tables |= {"votes": pl.concat(votes)} if votes else {}
    files = {role: folder / f"{role}.csv" for role in tables}
    for role, table in tables.items():
        write_csv(files[role], table)
    return files


def _votes_of(path: Path, ids: pl.Series) -> Iterator[pl.DataFrame]:
    """Yield the votes on a file's battles, if it has some, by the ids of :func:`read_judgements`; of ``ids`` alone."""
    votes = path.with_name(f"{path.name.split('.')[0]}_votes.csv")
    if votes.is_file():
        frame = pl.read_csv(votes, schema_overrides={"id": pl.String}).select("id", *VOTE_COLUMNS)
        yield frame.with_columns(id=in_file(path)).filter(pl.col("id").is_in(ids.to_list()))
