"""Self-check of an exported student: a fresh process computes its logits, or there is no student."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from ensemble.distillation.export import logits_of_a_fresh_process, self_check
from oof.common.errors import UserError
from tests.fixtures.tiny_models import save_tiny

ROWS = [[2, 10, 11, 12], [2, 20]]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save_tiny("gemma2", tmp_path_factory.mktemp("student")))


def loaded(folder: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()


@pytest.mark.slow
def test_a_fresh_process_without_our_packages_computes_the_logits(student: Path, tmp_path: Path) -> None:
    model = loaded(student)
    model.save_pretrained(tmp_path)
    with torch.inference_mode():
        expected = [model(input_ids=torch.tensor([row])).logits[0].tolist() for row in ROWS]
    np.testing.assert_allclose(logits_of_a_fresh_process(tmp_path, ROWS), expected, atol=1e-6)


@pytest.mark.slow
def test_a_folder_that_plain_transformers_cannot_open_is_no_student(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="plain transformers cannot open the student"):
        logits_of_a_fresh_process(tmp_path, ROWS)


@pytest.mark.parametrize(("change", "message"), [(0.0, ""), (0.1, "logits that differ by .*do not deploy")])
def test_a_student_with_other_logits_than_the_trained_model_is_refused(
    change: float, message: str, student: Path, tmp_path: Path
) -> None:
    model = loaded(student)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        model.score.weight.add_(change)
    rows = [np.array(row) for row in ROWS]
    texts: Any = SimpleNamespace(
        table=SimpleNamespace(height=len(ROWS)), scoring=SimpleNamespace(sequence=lambda i, order: rows[i])
    )
    if not message:
        self_check(model, texts, tmp_path)
        return
    with pytest.raises(UserError, match=message):
        self_check(model, texts, tmp_path)
