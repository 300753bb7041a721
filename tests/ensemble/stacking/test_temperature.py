"""Temperature: a known optimum, kinds of input and messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.base import clone

from ensemble import Temperature
from ensemble.stacking.calibration_fit import InSampleError
from oof import UserError
from oof.metrics import log_loss
from tests.fixtures.temperatures import fit_temperature


def scaled_logits(n: int, factor: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return logits that are ``factor`` times too large, and labels drawn from the right ones."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 1.5, (n, 3))
    labels = (rng.random(n)[:, None] > softmax(logits, axis=1).cumsum(axis=1)[:, :2]).sum(axis=1)
    return factor * logits, labels


def test_the_factor_of_overconfident_logits_is_found() -> None:
    logits, labels = scaled_logits(20_000, 3.0)
    temperature = Temperature().fit(logits, labels)
    assert temperature.temperature_ == pytest.approx(3.0, rel=0.03)
    probs = temperature.apply(logits)
    np.testing.assert_allclose(probs, softmax(logits / temperature.temperature_, axis=1), atol=1e-12)
    assert log_loss(probs, labels) < log_loss(softmax(logits, axis=1), labels)


def test_frames_and_arrays_give_the_same() -> None:
    logits, labels = scaled_logits(300, 2.0)
    expected = Temperature().fit(logits, labels)
    names = ["a", "b", "tie"]
    words, shift = np.array(names)[labels], np.array([0.0, 1.0, 0.0])
    kinds: list[tuple[Any, Any]] = [
        (pl.DataFrame(logits, names), pl.Series(words)),
        (logits.tolist(), labels.tolist()),
        (np.stack([logits + shift, logits - shift], axis=1), words),
    ]
    try:
        import pandas
    except ImportError:
        pass
    else:
        kinds.append((pandas.DataFrame(logits, columns=names), pandas.Series(words)))
    for values, classes in kinds:
        assert Temperature().fit(values, classes).temperature_ == pytest.approx(expected.temperature_, abs=1e-12)
        np.testing.assert_allclose(expected.apply(values), expected.apply(logits), atol=1e-12)
    assert repr(clone(expected)) == "Temperature()"


def test_few_groups_leave_the_temperature_near_1() -> None:
    logits, labels = scaled_logits(400, 2.0)
    alone = Temperature().fit(logits, labels).temperature_
    assert 1.7 < alone < fit_temperature(logits, labels)
    assert Temperature().fit(logits, labels, np.arange(400)).temperature_ == alone
    names = [f"prompt {i % 8}" for i in range(400)]
    assert 1.1 < Temperature().fit(logits, labels, names).temperature_ < alone
    assert Temperature().fit(logits, labels, ["one prompt"] * 400).temperature_ == 1
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        Temperature().fit(logits, labels, [0, 1])
    with pytest.raises(InSampleError, match="in-sample"):
        Temperature().fit(np.eye(3)[labels], labels)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((3, 2)), [0, 1, 2], r"expected \(n, 3\)"),
        (np.full((3, 3), np.nan), [0, 1, 2], "3 rows are not finite"),
        (np.zeros((3, 3)), [0, 1, 4], "Unknown label type: 4 in row 2"),
    ],
)
def test_a_message_names_what_is_wrong(logits: Any, labels: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Temperature().fit(logits, labels)
