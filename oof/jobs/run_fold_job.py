"""Run stage one's fold jobs: each trains on K-1 folds and predicts the one it did not see.

A failed job fails the run by name; the finished ones stay.
"""

from __future__ import annotations

import logging
import shutil
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import nn

from oof.classes import swap_classes
from oof.common.atomic_files import read_json, read_parquet, write_json, write_parquet
from oof.common.digests import digest
from oof.common.logits_format import logits_frame, logits_of
from oof.common.process_tuning import prepare_process
from oof.common.steps import TRAINED, Step
from oof.config import Config, Member
from oof.distributed.process_group import rank, wait
from oof.encoding.batches import TrainingSteps
from oof.encoding.encode import Encoded, encode_battles
from oof.jobs.cache_keys import battles_key
from oof.jobs.dataset import load_battles
from oof.jobs.fold_job import FoldJob, by_member, test_step
from oof.jobs.pretrain import PretrainJob, load_pairs, start_of
from oof.jobs.process_pool import run_all
from oof.metrics import log_loss, softmax
from oof.model.classifier import describe, device, load_classifier, load_tokenizer, load_trainable, resolve_dtype
from oof.model.hidden_state_cache import stored_states
from oof.model.lora import save_classifier
from oof.model.memory import needs_checkpointing
from oof.model.optimizations import checkpoint_trainable_layers
from oof.training.inference import predict_logits
from oof.training.losses import cross_entropy
from oof.training.trainer import RowLoss, train_classifier

logger = logging.getLogger(__name__)

WORTH_A_PROCESS = 1000  # test battles; starting a process takes as long as tiny models need for some hundreds


@dataclass(frozen=True)
class Texts:
    """A table's token ids for one member, encoded when first asked for."""

    member: Member
    table: pl.DataFrame
    config: Config

    @cached_property
    def tokenizer(self):  # type: ignore[no-untyped-def]  # transformers has no public type for "any fast tokenizer"
        return load_tokenizer(self.member.checkpoint, self.config.prompts.hints)

    @cached_property
    def training(self) -> Encoded:
        return self._encode(self.config.prompts.max_tokens)

    @cached_property
    def scoring(self) -> Encoded:
        prompts = self.config.prompts
        if prompts.score_max_tokens in (None, prompts.max_tokens):
            return self.training
        return self._encode(prompts.score_max_tokens or prompts.max_tokens)

    def logits(self, model: nn.Module, rows: NDArray[np.integer], label: str, partial: Path) -> NDArray[np.float32]:
        """Return (m, 2, 3) logits of the battles at ``rows``; see :func:`oof.training.inference.predict_logits`."""
        encoded, pad = self.scoring.take(rows), self.tokenizer.pad_token_id
        with self.reading_stored_states(model, encoded):
            return predict_logits(model, self.member, encoded, pad, label, partial)

    def reading_stored_states(self, model: nn.Module, encoded: Encoded) -> AbstractContextManager[None]:
        """Return the context in which the model reads its frozen layers' output (see :mod:`oof.model.hidden_state_cache`)."""
        cache = Path(self.config.run) / "frozen"
        return stored_states(model, self.member, encoded, self.tokenizer.pad_token_id, cache)

    def _encode(self, max_tokens: int) -> Encoded:
        cache = Path(self.config.run) / "tokens"  # texts are tokenised once per tokenizer, not once per job
        return encode_battles(self.table, self.tokenizer, self.config.prompts, max_tokens, cache=cache)


def both_orders(targets: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return (n, 2, 3m) targets as presented in the orders ab and ba from (n, 3m) canonical ones (m blocks)."""
    swapped = swap_classes(targets.reshape(len(targets), -1, 3)).reshape(targets.shape)
    return np.stack([targets, swapped], axis=1).astype(np.float32)


def job_seed(*parts: object) -> int:
    return int(digest(*parts)[:8], 16) % 2**31


def fit_classifier(
    texts: Texts,
    rows: NDArray[np.integer],
    targets: NDArray[np.floating],
    weights: NDArray[np.floating],
    row_loss: RowLoss,
    folder: Path,
    seed: int,
    label: str,
    start: Path | None = None,
    whole_battles: bool = False,
) -> tuple[nn.Module, dict[str, object]]:
    """Train a classifier on ``rows`` of the table and save it as ``folder/adapter``.

    Args:
        texts: the member and its encoded battles.
        rows: (m,) positions in the table.
        targets: (m, 3) probabilities per row in canonical order (one-hot for hard labels), or several such
            blocks side by side, as ``row_loss`` expects.
        weights: (m,) loss weights.
        row_loss: see :mod:`oof.training.losses`.
        folder: the job's folder; its checkpoints live in ``folder/checkpoints`` until the job is done.
        seed: of head, adapters, plan and dropout.
        label: name in progress bars.
        start: folder of the adapter and head to start from (:mod:`oof.jobs.pretrain`); by default they are fresh.
        whole_battles: whether ``row_loss`` compares the two orders of a battle (:class:`oof.encoding.batches.TrainingSteps`).

    Returns:
        The trained model and facts for the job's manifest.
    """
    member, tokenizer, started = texts.member, texts.tokenizer, time.monotonic()
    done = folder / TRAINED
    if done.is_file():  # killed between training and the end of the job
        if rank() == 0:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return load_classifier(member, folder / "adapter", tokenizer, seed), read_json(done)
    model = load_trainable(member, start, tokenizer, seed)
    encoded, pad = texts.training.take(rows), tokenizer.pad_token_id
    steps = TrainingSteps(encoded, both_orders(targets), weights, member.train, pad, seed, whole_battles)
    checkpointed = checkpoint_trainable_layers(model) if needs_checkpointing(model, member, steps) else 0
    if rank() == 0:
        said, where = describe(model), f"{device()}, {resolve_dtype(member.dtype)}"
        sizes = f"{said['trainable']:,} of {said['parameters']:,} parameters trained"
        logger.info("%s: attention %s on %s; %s", label, said["attention"], where, sizes)
    report_to = texts.config.jobs.report_to
    with texts.reading_stored_states(model, encoded):
        facts = train_classifier(model, member, steps, row_loss, folder / "checkpoints", seed, label, report_to)
    facts |= {**describe(model), "steps": len(steps), "seed": seed, "checkpointed_layers": checkpointed}
    facts["seconds"] = round(time.monotonic() - started, 1)
    if rank() == 0:
        save_classifier(model, folder / "adapter", member)
        write_json(done, facts)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    wait()
    return model, facts


def predict_stored(
    model: nn.Module, texts: Texts, rows: NDArray[np.integer], folder: Path, fold: int, label: str
) -> NDArray[np.float32]:
    """Score ``rows`` of the table, write ``folder/logits.parquet`` and return the (m, 2, 3) logits."""
    logits = texts.logits(model, rows, f"{label}: predict", folder / "partial")
    if rank() == 0:
        frame = logits_frame(texts.table["id"][rows], logits, fold, texts.scoring.counts[rows])
        write_parquet(folder / "logits.parquet", frame)
    return logits


def run_job(job: FoldJob, texts: Texts) -> float:
    """Train, predict and store one fold job; return the held-out log loss of the mean of both orders."""
    table = texts.table
    if rank() == 0:
        job.step.begin()
    wait()
    roles, folds, labels = (table[name].to_numpy() for name in ("role", "fold", "label"))
    trained = np.flatnonzero((folds != job.fold) & (roles != "unlabelled"))
    held_out = np.flatnonzero((folds == job.fold) & (roles == "train"))
    one_hot = np.eye(3, dtype=np.float32)[labels[trained].astype(int)]
    weights = table["weight"].to_numpy()[trained]
    seed = job_seed(job.config.seed, job.name, job.fold)
    parts = trained, one_hot, weights, cross_entropy
    model, facts = fit_classifier(texts, *parts, job.folder, seed, job.label, start_of(job.pretrain))
    logits = predict_stored(model, texts, held_out, job.folder, job.fold, job.label)
    loss = log_loss(softmax(logits.mean(axis=1)), labels[held_out].astype(int))
    if rank() == 0:
        write_parquet(job.folder / "trained.parquet", table[trained].select("id"))
        named: dict[str, object] = {"member": job.name, "fold": job.fold, "held_out": job.fold, "depends": job.depends}
        named |= {} if job.pretrain is None else {"pretrain": job.pretrain.step.key}
        job.step.finish({**facts, **named, "log_loss": loss, "n_trained": len(trained)})
        seconds = facts["seconds"]
        logger.info("%s: log loss %.4f on %d held-out battles, %.0f s", job.label, loss, len(held_out), seconds)
    wait()
    return loss


def run_pretrain(job: PretrainJob) -> None:
    """Train a classifier on the run's extra pairs and store it, for its fold jobs to start from."""
    if rank() == 0:
        job.step.begin()
    wait()
    table = load_pairs(Path(job.config.run))
    member = replace(job.member, frozen="recompute")  # these texts are read once
    texts = Texts(member, table, job.config)
    targets = np.eye(3, dtype=np.float32)[table["label"].to_numpy().astype(int)]
    parts = np.arange(table.height), targets, table["weight"].to_numpy(), cross_entropy
    seed = job_seed(job.config.seed, "pretrain", job.name)
    _, facts = fit_classifier(texts, *parts, job.folder, seed, job.label)
    if rank() == 0:
        write_parquet(job.folder / "trained.parquet", table.select("id"))
        job.step.finish({**facts, "member": job.name, "depends": job.depends, "n_trained": table.height})
        logger.info("%s: trained on %d pairs, %.0f s", job.label, table.height, facts["seconds"])
    wait()


_TEXTS: dict[tuple[str, str], Texts] = {}  # one process runs several jobs of a member on the same texts


def run_stored(job: FoldJob) -> float:
    """Run a job on its run folder's battles."""
    key = (job.battles, job.name)
    if key not in _TEXTS:
        _TEXTS.clear()
        _TEXTS[key] = Texts(job.member, load_battles(Path(job.config.run)), job.config)
    return run_job(job, _TEXTS[key])


@dataclass(frozen=True)
class ScoreTest:
    """Score new battles with one fold job; ``kept`` is written last."""

    job: FoldJob
    texts: Texts
    folder: Path

    @property
    def kept(self) -> Path:
        return self.folder / f"fold-{self.job.fold}.parquet"

    @property
    def label(self) -> str:
        return f"{self.job.label}: test"


def score_test(config: Config, jobs: list[FoldJob], test: pl.DataFrame) -> None:
    """Score new battles with every fold job of every member and keep each member's average in the run.

    ``jobs.workers`` fold jobs score at a time where there are battles enough to be worth starting processes.
    """
    prepare_process()
    test_key = battles_key(test)
    scorings: list[tuple[Step, list[ScoreTest]]] = []
    for name, of_member in by_member(jobs).items():
        step = test_step(of_member, test_key)
        if not step.done:
            step.begin()
            member = replace(config.members[name], frozen="recompute")  # a stream of new battles would fill the disk
            texts = Texts(member, test, config)
            scorings.append((step, [ScoreTest(job, texts, step.folder) for job in of_member]))
    todo = [scoring for _, several in scorings for scoring in several if not scoring.kept.is_file()]
    workers = config.jobs.workers if test.height >= WORTH_A_PROCESS else 1
    run_all(_score, todo, [scoring.label for scoring in todo], workers)
    for step, several in scorings:
        folds = [logits_of(read_parquet(scoring.kept)) for scoring in several]
        mean = np.asarray(np.mean(folds, axis=0, dtype=np.float64))
        frame = logits_frame(test["id"], mean, -1, several[0].texts.scoring.counts)
        write_parquet(step.folder / "logits.parquet", frame)
        step.finish({"member": several[0].job.name, "n": test.height})
        logger.info("%s: %d test battles scored by %d folds", several[0].job.name, test.height, len(several))


def _score(scoring: ScoreTest) -> None:
    job, texts = scoring.job, scoring.texts
    model = load_classifier(texts.member, job.folder / "adapter", texts.tokenizer, seed=0)
    logits = texts.logits(model, np.arange(texts.table.height), scoring.label, scoring.folder / f"partial-{job.fold}")
    write_parquet(scoring.kept, logits_frame(texts.table["id"], logits, job.fold))
