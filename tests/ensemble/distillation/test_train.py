"""Training of students: several seeds from the same first weights, and the average of their weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from ensemble.distillation.merge import merge
from ensemble.distillation.plan import FINAL
from ensemble.distillation.train import load_final
from oof.common.logits_format import logits_of
from oof.encoding.batches import TrainingSteps
from oof.jobs.encoded_battles import EncodedBattles
from oof.model.classifier import load_classifier
from oof.training.inference import predict_logits
from tests.fixtures.trained_students import FOLDS, STILL, N, adapter, contents, plan_of, student

SEEDS = ("distill.start=base", "distill.seeds=2")
LABELS = np.arange(N) % 3


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
