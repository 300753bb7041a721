"""Training of students: the average of several seeds' weights, and rounds that learn from the round before."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from ensemble.distillation.merge import merge
from ensemble.distillation.plan import FINAL, StudentPlan
from ensemble.distillation.train import StudentJob, _targets, load_final, train_students
from oof.common.logits_format import logits_of
from oof.encoding.batches import TrainingSteps
from oof.jobs.encoded_battles import EncodedBattles
from oof.jobs.fold_job import FoldJob
from oof.metrics import softmax
from oof.model.classifier import load_classifier
from oof.training.inference import predict_logits
from tests.fixtures.small_tables import table_of
from tests.fixtures.student_plans import store_random_logits
from tests.fixtures.trained_students import FOLDS, STILL, K, N, adapter, contents, plan_of, student

SEEDS = ("distill.start=base", "distill.seeds=2")
LABELS = np.arange(N) % 3
PSEUDO = 6  # unlabelled battles


@pytest.mark.slow
def test_a_student_of_two_seeds_is_the_average_of_their_weights(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, LABELS, *SEEDS)
    folder = student(plan, 0)
    first, second = folder / "seed-0", folder / "seed-1"
    alone = student(plan_of(tmp_path, LABELS, "distill.start=base"), 0, "one")
    assert all(torch.equal(value, adapter(alone)[name]) for name, value in adapter(first).items())
    assert any((value != adapter(second)[name]).any() for name, value in adapter(first).items())
    assert len(set(json.loads((folder / "job.json").read_text())["seeds"])) == 2

    texts = EncodedBattles(plan.config.distill.student, plan.table, plan.config)
    models = [load_classifier(texts.member, path / "adapter", texts.tokenizer, seed=0) for path in (first, second)]
    mean, other = (merge(model, 1.0) for model in models)
    weights = {name: (value + other.state_dict()[name]) / 2 for name, value in mean.state_dict().items()}
    mean.load_state_dict(weights)
    expected = predict_logits(
        mean, texts.member, texts.scoring.take(np.flatnonzero(FOLDS == 0)), texts.tokenizer.pad_token_id, ""
    )
    logits = logits_of(pl.read_parquet(folder / "logits.parquet"))
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert np.abs(logits - logits_of(pl.read_parquet(alone / "logits.parquet"))).max() > 1e-3

    still = plan_of(tmp_path, LABELS, *SEEDS, *STILL)
    start = student(still, FINAL, "still")  # at a rate of 0, weights stay as they were
    assert all(torch.equal(value, adapter(start / "seed-1")[name]) for name, value in adapter(start / "seed-0").items())
    final = merge(load_final(still, tmp_path / "still", texts), 1.0).state_dict()
    one = merge(load_classifier(texts.member, start / "seed-0" / "adapter", texts.tokenizer, seed=0), 1.0).state_dict()
    assert all(torch.allclose(final[name], value, atol=1e-6) for name, value in one.items())


@pytest.mark.slow
def test_killed_in_its_second_seed_a_student_keeps_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(tmp_path, LABELS, *SEEDS)
    expected = contents(student(plan, 1, "whole"))
    get, read = TrainingSteps.__getitem__, []

    def stopping_get(self: TrainingSteps, index: int) -> object:
        read.append(index)
        if len(read) == 4:  # the second of the two steps of the second seed
            raise KeyboardInterrupt
        return get(self, index)

    monkeypatch.setattr(TrainingSteps, "__getitem__", stopping_get)
    with pytest.raises(KeyboardInterrupt):
        student(plan, 1)
    assert contents(student(plan, 1)) == expected
    assert read == [0, 1, 0, 1, 0, 1]
    assert not list((tmp_path / "distill").rglob(".trained.json"))


def plan_with_rounds(folder: Path, labels: np.ndarray) -> StudentPlan:
    """Return a plan of two rounds with unlabelled battles, to which one member gave random logits."""
    settings = ["jobs.workers=1", "distill.start=base", "distill.rounds=2", "distill.teachers=llama3_1"]
    plan = plan_of(folder, labels, *settings)
    unlabelled = table_of([f"what is {i}" for i in range(PSEUDO)], role=["unlabelled"] * PSEUDO)
    unlabelled = unlabelled.with_columns(id=pl.lit("u") + pl.col("id")).select(plan.table.columns)
    members = np.random.default_rng(1).normal(size=(N, 2, 3))
    table = pl.concat([plan.table, unlabelled], how="vertical_relaxed")
    plan = replace(
        plan,
        table=table,
        labels=np.concatenate([labels, np.full(PSEUDO, -1)]),
        folds=np.concatenate([FOLDS, np.full(PSEUDO, -1)]),
        weights=np.ones(N + PSEUDO),
        inputs=replace(plan.inputs, logits={"llama3_1": members}),
        jobs=[FoldJob(plan.config, "llama3_1", fold, "battles") for fold in range(K)],
    )
    store_random_logits(plan)
    return plan


@pytest.mark.slow
def test_in_the_second_round_unlabelled_battles_have_the_first_student_s_predictions(tmp_path: Path) -> None:
    plan = plan_with_rounds(tmp_path, LABELS)
    train_students(plan, tmp_path / "distill", final=False)
    for fold in range(K):
        first = tmp_path / "distill" / "round-1" / f"fold-{fold}"
        frame = pl.read_parquet(first / "logits.parquet")
        assert frame["id"].to_list() == plan.table["id"][N:].to_list()
        assert json.loads((first / "job.json").read_text())["n_trained"] == N - (fold == FOLDS).sum() + PSEUDO
        targets = _targets(StudentJob(plan, tmp_path / "distill", fold))
        np.testing.assert_allclose(targets[N:, :3], softmax(logits_of(frame).astype(float).mean(axis=1)))
        np.testing.assert_array_equal(targets[:N, :3], plan.teacher_probs[:, 0])
        assert (targets[N:, 3:] == 0).all()
    last = tmp_path / "distill" / "fold-0"
    assert any((adapter(last)[name] != value).any() for name, value in adapter(first).items())
    before = contents(last)
    train_students(plan, tmp_path / "distill", final=False)
    assert contents(last) == before


@pytest.mark.slow
def test_no_label_of_a_fold_reaches_its_student_through_the_rounds(tmp_path: Path) -> None:
    changed = np.where(FOLDS == 0, (LABELS + 1) % 3, LABELS)
    files = {}
    for variant, labels in enumerate((LABELS, changed)):
        folder = tmp_path / str(variant)
        train_students(plan_with_rounds(folder, labels), folder / "distill", final=False)
        for fold in (0, 1):
            files[variant, fold] = (folder / "distill" / f"fold-{fold}" / "logits.parquet").read_bytes()
    assert files[0, 0] == files[1, 0]
    assert files[0, 1] != files[1, 1]
