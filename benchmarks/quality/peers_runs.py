"""Fold jobs of ``benchmarks/quality/peers.py``: ours and other libraries' on the same battles, each with its cost."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from benchmarks.common import measured
from benchmarks.peer_environment import last_words, with_our_path
from benchmarks.quality.real_battles import read_judgements, sample_half, write_csv
from benchmarks.quality.students_settings import HALVES, REAL, Part
from oof.__main__ import main as oof_main
from oof.classes import WINNER_COLUMNS
from oof.common.atomic_files import read_json, read_parquet, replacing, write_json
from oof.common.digests import checkpoint_digest, digest
from oof.common.errors import UserError
from oof.common.logits_format import logits_of
from oof.common.steps import Step
from oof.config import Config
from oof.data.battles import read_file
from oof.data.schemas import TEXTS
from oof.data.targets import training_targets
from oof.encoding.templates import CLOSING, HEADERS, family_of
from oof.jobs.cache_keys import battles_key
from oof.jobs.dataset import load_battles
from oof.jobs.fold_job import FoldJob, fold_jobs
from oof.model.precision import resolve_dtype

OURS, MEMBER = "member", "smollm2"
VERSION = 1  # raise when the same options would give other figures
FACTS, SCORES, VALIDATION = "facts.json", "scores.npy", "validation.csv"
LEAST_TEXT = 80  # tokens of texts below which pairjudge refuses a battle; less for small limits
RATE_OF = {"pairjudge": "lr", "reward_trainer": "learning_rate"}
# Contenders of other libraries: the tool, and what it takes from our recipe beside what all share.
OTHERS = {
    "pairjudge": ("pairjudge", ""),
    "pairjudge-lr": ("pairjudge", "learning rate"),
    "pairjudge-layout": ("pairjudge", "template"),
    "reward-trainer": ("reward_trainer", "learning rate"),
}


@dataclass(frozen=True)
class Folds:
    """A prepared run.

    Attributes:
        part: the run's configuration.
        table: (n) scored battles, with their folds.
        validation: battles of other prompts, on which pairjudge chooses its epoch.
    """

    part: Part
    table: pl.DataFrame
    validation: pl.DataFrame

    @property
    def config(self) -> Config:
        return self.part.config

    @property
    def folder(self) -> Path:
        return self.part.path.parent / "peers"

    def our_job(self, fold: int) -> FoldJob:
        jobs = fold_jobs(self.config, load_battles(Path(self.config.run)))
        return next(job for job in jobs if (job.name, job.fold) == (MEMBER, fold))

    def step(self, contender: str, fold: int) -> Step:
        """Return the step of a contender's fold, whose key is everything that its figures depend on."""
        if contender == OURS:
            key = digest(VERSION, self.our_job(fold).step.key)
        else:
            job = self.job(contender)
            battles = [battles_key(table) for table in (self.table, self.validation)]
            key = digest(VERSION, job, checkpoint_digest(job["checkpoint"]), battles, fold)
        return Step(self.folder / contender / f"fold-{fold}", key)

    def job(self, contender: str) -> dict[str, Any]:
        """Return what ``other_judges`` trains for a contender, without its battles."""
        tool, taken = OTHERS[contender]
        member = self.config.members[MEMBER]
        tokens, targets = self.config.prompts.max_tokens, training_targets(self.table)
        soft = bool(((targets > 0) & (targets < 1)).any())
        settings: dict[str, Any] = {RATE_OF[tool]: member.train.lr} if taken == "learning rate" else {}
        if tool == "pairjudge":
            layout = our_layout(member.checkpoint) if taken == "template" else {}
            settings |= {"packer": {"min_tail_budget": min(LEAST_TEXT, tokens // 4), **layout}}
        return {
            "tool": tool,
            "checkpoint": member.checkpoint,
            "tokens": tokens,
            "epochs": member.train.epochs,
            "batch": member.train.batch_battles,
            "rank": member.lora.rank,
            "alpha": int(member.lora.alpha),
            "labels": "soft" if soft else "hard",
            "seed": self.config.seed,
            "settings": settings,
        }


def our_layout(checkpoint: str) -> dict[str, Any]:
    """Return the settings of pairjudge's packer that give our template of a battle of one turn."""
    from transformers import AutoTokenizer

    family = family_of(AutoTokenizer.from_pretrained(checkpoint))
    prefixes = ("prompt_prefix", "response_a_prefix", "response_b_prefix")
    titles = dict(zip(prefixes, HEADERS.values(), strict=True))
    layout = {name: family.header(title) + "{text}" + family.after_text for name, title in titles.items()}
    layout |= {"first_round_header": "", "round_header": "", "final_instruction": family.header(CLOSING)}
    return {**layout, "add_bos": False, "add_eos": False}


def prepared(part: Part, name: str, half: str, data: Path, n_validation: int) -> Folds:
    """Return a part's battles in folds, with validation battles of the other half of the prompts."""
    if status := oof_main(["prepare", str(part.path), *part.overrides]):
        raise UserError(f"prepare failed with status {status}; see above")
    judged = read_judgements([data / file for file in REAL[name].files])
    (other,) = (each for each in HALVES if each != half)
    path = part.path.parent / VALIDATION
    write_csv(path, sample_half(judged, other, n_validation))
    table = load_battles(Path(part.config.run)).filter(pl.col("role") == "train")
    return Folds(part, table, read_file(path, "train").table)


def run_fold(folds: Folds, contender: str, fold: int, python: str) -> str:
    """Train and score a fold of a contender unless that is done; return why it failed, or "".

    A training that was interrupted begins again, so that its time is that of one training. The time and memory of one
    of ours that another command has finished are not known.
    """
    step = folds.step(contender, fold)
    if step.done:
        return ""
    step.clear()
    if contender == OURS:
        job = folds.our_job(fold)
        found = job.step.done
        if job.step.begun and not found:
            job.step.clear()
        command = [sys.executable, "-m", "benchmarks.quality.our_fold_job", str(step.folder / FACTS)]
        command += [str(folds.part.path), *job.arguments, *folds.part.overrides]
    else:
        found = False
        write_fold(folds, contender, fold, step.folder)
        command = [python, "-m", "benchmarks.quality.other_judges", str(step.folder / "job.json")]
    log = step.folder / "log.txt"
    with log.open("w") as file:
        usage = measured(command, stdout=file, stderr=subprocess.STDOUT, env=with_our_path())
    if usage.status:
        return f"fold {fold} failed with status {usage.status}: {last_words(log)}"
    facts = read_json(step.folder / FACTS) | {"scored": int((folds.table["fold"] == fold).sum())}
    facts |= {} if found else {"seconds": usage.seconds, "cpu_seconds": usage.cpu_seconds, "peak_gb": usage.peak_gb}
    shutil.rmtree(step.folder / "trained", ignore_errors=True)  # models of hundreds of megabytes
    for copy in step.folder.glob("*.jsonl"):
        copy.unlink()
    step.finish(facts, files=[] if contender == OURS else [SCORES])
    return ""


def write_fold(folds: Folds, contender: str, fold: int, folder: Path) -> None:
    """Write ``job.json`` and the battles of one fold for ``other_judges``."""
    held_out = folds.table["fold"] == fold
    trained = ~held_out & (folds.table["weight"] > 0)
    tables = {"train": folds.table.filter(trained), "held_out": folds.table.filter(held_out)}
    for name, table in (tables | {"validation": folds.validation}).items():
        targets = training_targets(table)
        verdicts = [pl.Series(column, targets[:, i]) for i, column in enumerate(WINNER_COLUMNS)]
        with replacing(folder / f"{name}.jsonl") as temporary:
            table.select("id", "label", *TEXTS, *verdicts).write_ndjson(temporary)
    bf16 = resolve_dtype(folds.config.members[MEMBER].dtype) is torch.bfloat16
    write_json(folder / "job.json", folds.job(contender) | {"bf16": bf16})


def finished(folds: Folds, contender: str) -> dict[int, dict[str, Any]]:
    """Return the facts of a contender's finished folds."""
    manifests = {fold: folds.step(contender, fold).manifest() for fold in range(folds.config.folds.k)}
    return {fold: manifest for fold, manifest in manifests.items() if manifest is not None}


def scores(folds: Folds, contender: str, fold: int) -> NDArray[np.floating]:
    """Return (m, 2, 3) logits of ours or probabilities of pairjudge in both orders, or (m, 2) rewards, of a fold."""
    if contender != OURS:
        loaded: NDArray[np.floating] = np.load(folds.step(contender, fold).folder / SCORES)
        return loaded
    ids = folds.table.filter(pl.col("fold") == fold).select("id")
    frame = read_parquet(folds.our_job(fold).folder / "logits.parquet")
    return logits_of(ids.join(frame, on="id", how="left", validate="1:1", maintain_order="left"))
