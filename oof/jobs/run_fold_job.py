"""Fold jobs and pretraining jobs: train a classifier, predict the held-out fold, store both."""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from oof.classes import classes_of_data
from oof.common.atomic_files import read_json, write_json, write_parquet
from oof.common.digests import digest
from oof.common.errors import UserError
from oof.common.logits_format import logits_frame
from oof.common.steps import TRAINED
from oof.data.targets import training_targets
from oof.distributed.process_group import rank, wait
from oof.encoding.batches import TrainingSteps, targets_in_both_orders
from oof.encoding.encode import Encoded
from oof.jobs.dataset import load_battles
from oof.jobs.encoded_battles import EncodedBattles
from oof.jobs.fold_job import FoldJob
from oof.jobs.pretrain import PretrainJob, load_pairs
from oof.metrics import log_loss, softmax
from oof.model.attention_choice import with_attention_for
from oof.model.classifier import load_classifier, load_trainable, model_summary
from oof.model.cost_model import needs_checkpointing
from oof.model.cpu_limit import refuse_too_large_for_cpu
from oof.model.lora import save_classifier
from oof.model.optimizations import checkpoint_trainable_layers
from oof.model.precision import device, resolve_dtype
from oof.model.predicted_time import predicted_on_this_gpu
from oof.training.held_out_loss import HeldOut, sample
from oof.training.losses import RowLoss, cross_entropy
from oof.training.trackers import tracked_run
from oof.training.trainer import train_classifier

logger = logging.getLogger(__name__)


def job_seed(*identity: object) -> int:
    """Return a seed below 2^31 that depends on the run's seed and the job's name and fold."""
    return int(digest(*identity)[:8], 16) % 2**31


def fit_classifier(
    battles: EncodedBattles,
    rows: NDArray[np.integer],
    targets: NDArray[np.floating],
    weights: NDArray[np.floating],
    row_loss: RowLoss,
    folder: Path,
    seed: int,
    label: str,
    start: Path | None = None,
    held_out: tuple[NDArray[np.integer], NDArray[np.integer]] | None = None,
    first_weights: int | None = None,
) -> tuple[nn.Module, dict[str, object]]:
    """Train a classifier on ``rows`` of the table and save it as ``folder/adapter``.

    Args:
        battles: the member and its encoded battles.
        rows: (m,) positions in the table.
        targets: (m, 3) probabilities per row in canonical order (one-hot for hard labels), or several such
            blocks side by side, as ``row_loss`` expects. With ``data.ties=false`` the classifier has two classes, and
            the column of the tie is left out.
        weights: (m,) loss weights, above 0: a battle of weight 0 is left out before.
        row_loss: see :mod:`oof.training.losses`.
        folder: the job's folder; its checkpoints live in ``folder/checkpoints`` until the job is done.
        seed: of head, adapters, plan and dropout.
        label: name in logs and progress bars.
        start: folder of the adapter and head to start from (:mod:`oof.jobs.pretrain`); by default they are fresh.
        held_out: positions and labels of labelled battles outside ``rows``, for ``train.monitor_battles``.
        first_weights: seed of fresh head and adapters; None = ``seed``.

    Returns:
        The trained model and a summary of the training for the job's manifest.

    Raises:
        UserError: there is no row; the base is too large for a CPU (:mod:`oof.model.cpu_limit`), cannot be opened, or
            does not train.
    """
    if not len(rows):
        raise UserError(
            f"{label}: no battle to train on: all that may be trained on have weight 0; raise data.extra_weight or "
            "lower data.min_prompt_quality"
        )
    refuse_too_large_for_cpu(battles.member, battles.config.jobs, label)
    member, tokenizer, started = battles.member, battles.tokenizer, time.monotonic()
    done = folder / TRAINED
    if done.is_file():  # killed between training and the end of the job
        if rank() == 0:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return load_classifier(member, folder / "adapter", tokenizer, seed), read_json(done)
    encoded, pad_id = battles.training.take(rows), tokenizer.pad_token_id
    ties = battles.config.data.ties
    both_orders = targets_in_both_orders(targets, ties)
    steps = TrainingSteps(encoded, both_orders, weights, member.train, pad_id, seed)
    member = with_attention_for(member, steps)
    model = load_trainable(
        member, start, tokenizer, seed if first_weights is None else first_weights, len(classes_of_data(ties))
    )
    if needs_checkpointing(model, member, steps):
        checkpoint_trainable_layers(model)
    if rank() == 0:
        sizes, where = model_summary(model), f"{device()}, {resolve_dtype(member.dtype)}"
        trained = f"{sizes['trainable']:,} of {sizes['parameters']:,} parameters trained"
        logger.info("%s: attention %s on %s; %s", label, sizes["attention"], where, trained)
    report_to = battles.config.jobs.report_to
    monitored, seen = _monitored(battles, held_out, rows, encoded)
    with battles.stored_states(model, seen), tracked_run(report_to, Path(battles.config.run).name):
        summary = train_classifier(
            model, member, steps, row_loss, folder / "checkpoints", seed, label, report_to, monitored
        )
    summary |= {**model_summary(model), "steps": len(steps), "seed": seed}
    longest, recomputed = encoded.lengths.max(axis=1), bool(summary["checkpointed_layers"])
    predicted = predicted_on_this_gpu(member, longest, steps.budget, recomputed, str(summary["attention"]))
    summary |= predicted
    summary |= {"commit": member.revision} if member.revision else {}
    summary["seconds"] = round(time.monotonic() - started, 1)
    if predicted and rank() == 0:
        logger.info("%s: trained in %s s, planned %s s", label, summary["seconds"], predicted["predicted_seconds"])
    if rank() == 0:
        save_classifier(model, folder / "adapter", member)
        write_json(done, summary)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    wait()
    return model, summary


def _monitored(
    battles: EncodedBattles,
    held_out: tuple[NDArray[np.integer], NDArray[np.integer]] | None,
    rows: NDArray[np.integer],
    encoded: Encoded,
) -> tuple[HeldOut | None, Encoded]:
    """Return the held-out sample, if one is asked for, and all battles that the model sees while it trains.

    ``encoded`` are the battles at ``rows``, those that it trains on.
    """
    n = battles.member.train.monitor_battles
    if held_out is None or not n or not len(held_out[0]):
        return None, encoded
    chosen = sample(np.arange(len(held_out[0])), n)
    where = held_out[0][chosen]
    seen = battles.training.take(np.concatenate([rows, where]))
    return HeldOut(battles.training.take(where), held_out[1][chosen]), seen


def predict_and_store(
    model: nn.Module, battles: EncodedBattles, rows: NDArray[np.integer], folder: Path, fold: int, label: str
) -> NDArray[np.float32]:
    """Score ``rows`` of the table, write ``folder/logits.parquet`` and return the (m, 2, 3) logits."""
    logits = battles.logits(model, rows, f"{label}: predict", folder / "partial")
    if rank() == 0:
        frame = logits_frame(battles.table["id"][rows], logits, fold, battles.scoring.counts[rows])
        write_parquet(folder / "logits.parquet", frame)
    return logits


def run_job(job: FoldJob, battles: EncodedBattles) -> None:
    """Train, predict and store one fold job, with the held-out log loss of the mean of both orders."""
    table = battles.table
    if rank() == 0:
        job.step.begin()
    wait()
    roles, folds, labels, weights = (table[name].to_numpy() for name in ("role", "fold", "label", "weight"))
    trained = np.flatnonzero((folds != job.fold) & (roles != "unlabelled") & (weights > 0))
    held_out = np.flatnonzero((folds == job.fold) & (roles == "train"))
    targets = training_targets(table[trained]).astype(np.float32)
    training_set = trained, targets, weights[trained]
    seed = job_seed(job.config.seed, job.name, job.fold)
    model, summary = fit_classifier(
        battles,
        *training_set,
        cross_entropy,
        job.folder,
        seed,
        job.label,
        None if job.pretrain is None else job.pretrain.start,
        held_out=(held_out, labels[held_out].astype(int)),
    )
    model, drift = battles.scorer(model, held_out, job.folder / "adapter", job.label)
    logits = predict_and_store(model, battles, held_out, job.folder, job.fold, job.label)
    loss = log_loss(softmax(logits.mean(axis=1)), labels[held_out].astype(int))
    if rank() == 0:
        write_parquet(job.folder / "trained.parquet", table[trained].select("id"))
        named: dict[str, object] = {"member": job.name, "fold": job.fold, "held_out": job.fold, "depends": job.depends}
        named |= {} if job.pretrain is None else {"pretrain": job.pretrain.step.key}
        job.step.finish({**summary, **named, **drift, "log_loss": loss, "n_trained": len(trained)})
        seconds = summary["seconds"]
        logger.info("%s: log loss %.4f on %d held-out battles, %.0f s", job.label, loss, len(held_out), seconds)
    wait()


def run_pretrain(job: PretrainJob) -> None:
    """Train a classifier on the run's extra pairs and store it, for its fold jobs to start from."""
    if rank() == 0:
        job.step.begin()
    wait()
    table = load_pairs(Path(job.config.run))
    member = replace(job.member, frozen="recompute")  # each pair is read once, so storing its states gains nothing
    battles = EncodedBattles(member, table, job.config)
    targets = training_targets(table).astype(np.float32)
    training_set = np.arange(table.height), targets, table["weight"].to_numpy()
    seed = job_seed(job.config.seed, "pretrain", job.name)
    _, summary = fit_classifier(battles, *training_set, cross_entropy, job.folder, seed, job.label)
    if rank() == 0:
        write_parquet(job.folder / "trained.parquet", table.select("id"))
        job.step.finish({**summary, "member": job.name, "depends": job.depends, "n_trained": table.height})
        logger.info("%s: trained on %d pairs, %.0f s", job.label, table.height, summary["seconds"])
    wait()


# The latest member's encoded battles, because one process runs several fold jobs of a member.
_ENCODED: dict[tuple[str, str], EncodedBattles] = {}


def run_fold_job(job: FoldJob) -> None:
    """Run a fold job on its run folder's battles."""
    key = (job.battles, job.name)
    if key not in _ENCODED or _ENCODED[key].config != job.config:  # of an earlier run in this process
        _ENCODED.clear()
        # Unlabelled battles may be many more than the others, and no fold job reads them.
        labelled = load_battles(Path(job.config.run), unlabelled=False)
        _ENCODED[key] = EncodedBattles(job.member, labelled, job.config)
    run_job(job, _ENCODED[key])
