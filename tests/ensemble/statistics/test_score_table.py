"""Table of scores: values of scikit-learn, intervals of the group bootstrap, calibration errors."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from ensemble.statistics.bootstrap import group_interval
from ensemble.statistics.score_table import score_table
from ensemble.statistics.scores import top_label_ece
from oof.metrics import row_log_loss, softmax


def draw(n: int, seed: int = 0, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities and labels drawn from them, the probabilities then sharpened by 1 / temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.2, size=(n, 3))
    labels = (rng.random((n, 1)) > softmax(logits).cumsum(axis=1)[:, :2]).sum(axis=1)
    return softmax(logits / temperature), labels


def test_values_are_those_of_scikit_learn() -> None:
    probs, labels = draw(3000)
    got = score_table({"m": probs}, labels, np.arange(3000), 0, 100)["predictors"]["m"]
    ties = labels == 2
    expected = {
        "log_loss": sk.log_loss(labels, probs),
        "accuracy": sk.accuracy_score(labels, probs.argmax(axis=1)),
        "brier": sk.brier_score_loss(labels, probs, scale_by_half=False),
        "recall_of_tie": sk.recall_score(labels, probs.argmax(axis=1), labels=[2], average="macro"),
        "recall_of_a": sk.recall_score(labels, probs.argmax(axis=1), labels=[0], average="macro"),
        "log_loss_of_tie": sk.log_loss(labels[ties], probs[ties], labels=[0, 1, 2]),
        "log_loss_of_decided": sk.log_loss(labels[~ties], probs[~ties], labels=[0, 1, 2]),
        "mean_probability_of_tie_minus_share": probs[:, 2].mean() - ties.mean(),
    }
    assert {name: got[name]["value"] for name in expected} == pytest.approx(expected)
    share, mean = calibration_curve(ties, probs[:, 2], n_bins=15, strategy="quantile")
    assert got["tie_calibration_error"]["value"] == pytest.approx(np.abs(share - mean).mean(), abs=1e-3)
    assert got["top_label_calibration_error"]["value"] == pytest.approx(top_label_ece(probs, labels)["ece"])
    assert got["top_label_calibration_error"]["expected_if_calibrated"] == pytest.approx(
        top_label_ece(probs, labels)["bias"], rel=0.1
    )
    classes = [got[f"{name}_calibration_error"]["value"] for name in ("a", "b", "tie")]
    assert got["class_wise_calibration_error"]["value"] == pytest.approx(np.mean(classes))


def test_intervals_are_those_of_the_group_bootstrap() -> None:
    probs, labels = draw(2000)
    groups = np.arange(2000) // 4
    other = softmax(np.log(probs) + np.random.default_rng(1).normal(0, 0.5, size=probs.shape))
    table = score_table({"one": probs, "other": other}, labels, groups, 0)
    oracle = group_interval(row_log_loss(probs, labels), groups, seed=5)
    assert table["predictors"]["one"]["log_loss"] == pytest.approx(oracle, abs=0.004)
    oracle = group_interval(row_log_loss(probs, labels) - row_log_loss(other, labels), groups, seed=5)
    (pair,) = table["paired"]
    assert (pair["first"], pair["second"]) == ("one", "other")
    assert pair["log_loss"] == pytest.approx(oracle, abs=0.004)
    assert pair["log_loss"]["high"] < 0


def test_repeated_battles_widen_the_intervals() -> None:
    probs, labels = draw(500)
    alone = score_table({"m": probs}, labels, np.arange(500), 0)["predictors"]["m"]["log_loss"]
    four = np.repeat(np.arange(500), 4)
    grouped = score_table({"m": probs[four]}, labels[four], four, 0)["predictors"]["m"]["log_loss"]
    assert grouped["high"] - grouped["low"] == pytest.approx(alone["high"] - alone["low"], rel=0.1)


def test_calibration_errors_separate_a_calibrated_model_from_a_sharpened_one() -> None:
    for temperature, honest in ((1.0, True), (0.6, False)):
        probs, labels = draw(4000, seed=1, temperature=temperature)
        got = score_table({"m": probs}, labels, np.arange(4000), 0)["predictors"]["m"]
        for name in ("top_label", "class_wise", "tie"):
            error = got[f"{name}_calibration_error"]
            assert (error["value"] < error["upper_if_calibrated"]) == honest, (name, temperature)
            assert error["low"] <= error["value"] <= error["high"]
            assert 0 < error["expected_if_calibrated"] < error["upper_if_calibrated"]


def test_missing_classes_and_single_groups_give_none_rather_than_wrong_numbers() -> None:
    probs, _ = draw(40)
    labels = np.zeros(40, dtype=np.int64)
    table = score_table({"m": probs, "n": probs}, labels, np.zeros(40), 0, 50)
    got = table["predictors"]["m"]
    assert got["recall_of_tie"] is None
    assert got["log_loss_of_tie"] is None
    assert got["log_loss"]["low"] is None
    assert math.isfinite(got["log_loss"]["value"])
    assert table["paired"][0]["log_loss"]["value"] == 0
    json.dumps(table, allow_nan=False)


@pytest.mark.slow
def test_a_table_of_the_competition_s_size_is_scored() -> None:
    probs, labels = draw(57_477)
    table = score_table({f"m{i}": probs for i in range(3)}, labels, np.arange(57_477), 0)
    assert len(table["paired"]) == 3


def test_the_expected_error_is_the_mean_error_of_calibrated_models() -> None:
    tables = [
        score_table({"m": draw(1500, seed)[0]}, draw(1500, seed)[1], np.arange(1500), 0, 10) for seed in range(30)
    ]
    for name in ("top_label", "class_wise", "tie"):
        result = [table["predictors"]["m"][f"{name}_calibration_error"] for table in tables]
        seen, expected = (np.mean([one[key] for one in result]) for key in ("value", "expected_if_calibrated"))
        assert seen == pytest.approx(expected, rel=0.12)
