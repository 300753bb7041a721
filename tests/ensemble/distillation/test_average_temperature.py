"""Temperature of averaged fold students: known optima, free of labels, and better than theirs on new battles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ensemble.distillation import average_temperature as module
from ensemble.distillation.average_temperature import average_temperature, matching_temperature
from ensemble.distillation.model_card import student_card
from ensemble.distillation.plan import StudentPlan, plan_student
from ensemble.distillation.stage import student_metrics
from ensemble.distillation.train import load_final
from oof import config as configuration
from oof.common.atomic_files import read_parquet
from oof.common.errors import UserError
from oof.common.logits_format import logits_of
from oof.jobs.encoded_battles import EncodedBattles
from oof.metrics import log_softmax, softmax
from tests.fixtures.demo_run import small_arguments


@pytest.fixture(scope="module")
def plan(small_run: Path) -> StudentPlan:
    own = "distill.prompts.hints=lengths"  # the average reads as its students do, not as the members
    path, *overrides = small_arguments(small_run, "distill.final=fold_average", own)
    return plan_student(configuration.load(path, overrides))


@pytest.mark.parametrize("temperature", [0.2, 1.0, 7.0])
def test_the_temperature_of_softened_logits_is_found(temperature: float) -> None:
    logits = np.random.default_rng(0).normal(size=(300, 3)) * 2 + 5
    assert matching_temperature(logits, softmax(logits / temperature)) == pytest.approx(temperature, rel=1e-4)


def test_the_average_is_better_at_its_own_temperature_on_battles_that_no_student_saw() -> None:
    """Students see the truth through noise of their own; their average has less of it, smaller logits, and a memory."""
    rng, k, n = np.random.default_rng(1), 3, 3000
    truth = rng.normal(size=(2 * n, 3)) * 1.5  # battles of the run, then new ones
    labels = np.array([rng.choice(3, p=p) for p in softmax(truth)])
    students = 2 * (truth + rng.normal(size=(k, 2 * n, 3)) * 0.6)
    held_out = students[np.arange(n) % k, np.arange(n)]
    average = 0.6 * students.mean(axis=0)
    average[:n] += 0.3 * np.eye(3)[labels[:n]]  # two of three students saw each label
    of_students = matching_temperature(held_out, np.eye(3)[labels[:n]])
    own = matching_temperature(average[:n], softmax(held_out / of_students))

    def loss(temperature: float) -> float:
        return float(-(softmax(truth[n:]) * log_softmax(average[n:] / temperature)).sum(axis=1).mean())

    best = min(np.geomspace(0.1, 10, 400), key=loss)
    assert best < own < of_students  # it errs towards too little confidence
    assert loss(own) < loss(best) + 0.25 * (loss(of_students) - loss(best))


@pytest.mark.slow
def test_the_average_of_a_run_matches_its_students_without_a_label(
    small_run: Path, plan: StudentPlan, tmp_path: Path
) -> None:
    folder, student = small_run / "distill", plan.config.distill.student
    texts = EncodedBattles(student, plan.table[: plan.n_scored], plan.config.for_student())
    held_out = logits_of(read_parquet(folder / "logits.parquet"))
    own = average_temperature(plan, load_final(plan, folder, texts), held_out, 1.3, tmp_path / "partial")
    logits = texts.logits(load_final(plan, folder, texts), np.arange(plan.n_scored), "", tmp_path / "other")
    targets = softmax(held_out.mean(axis=1) / 1.3)

    def cross_entropy(temperature: float) -> float:
        return float(-(targets * log_softmax(logits.mean(axis=1) / temperature)).sum(axis=1).mean())

    assert cross_entropy(own) < min(cross_entropy(own * 0.95), cross_entropy(own / 0.95))
    assert list(tmp_path.iterdir()) == []
    shuffled = np.random.default_rng(0).permutation(plan.labels)
    relabelled = replace(plan, labels=shuffled, inputs=replace(plan.inputs, labels=shuffled[: plan.n_scored]))
    again = average_temperature(relabelled, load_final(plan, folder, texts), held_out, 1.3, tmp_path / "partial")
    assert again == own


def test_an_average_that_cannot_be_scored_keeps_the_students_temperature(
    plan: StudentPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def does_not_fit(*_: object) -> None:
        raise UserError("one sequence of 300 tokens does not fit")

    texts = EncodedBattles(plan.config.distill.student, plan.table[:8], plan.config)
    model = load_final(plan, Path(plan.config.run) / "distill", texts)
    monkeypatch.setattr(module, "predict_logits", does_not_fit)
    held_out = np.zeros((plan.n_scored, 2, 3))
    assert average_temperature(plan, model, held_out, 1.7, tmp_path / "partial") == 1.7
    assert "it keeps their temperature, because it cannot be scored here (one sequence of 300 tokens" in caplog.text


def test_the_card_names_both_temperatures(plan: StudentPlan) -> None:
    metrics = student_metrics(plan, plan.teacher_probs[:, 0], plan.teacher_probs[:, 0])
    temperatures = {"temperature": 0.8765, "fold_students_temperature": 1.2345}
    text = " ".join(str(student_card(plan, temperatures, metrics)).split())
    assert "The calibration temperature (0.8765) is folded into the bias-free head" in text
    assert (
        "fitted without labels, to the calibrated probabilities of each battle by the student that did not see" in text
    )
    assert "whose own temperature is 1.2345" in text
