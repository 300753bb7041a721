"""Table of a run as it is printed."""

from __future__ import annotations

import numpy as np
import pytest

from ensemble.evaluation.run_table import print_table
from ensemble.statistics.bootstrap import group_interval


@pytest.mark.parametrize("n_groups", [5, 6])
def test_too_few_groups_have_a_difference_and_no_bounds(n_groups: int, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.random.default_rng(0).normal(size=30)
    row = group_interval(values, np.arange(30) % n_groups, 0)
    losses = {"members": {"one": row}, "calibrated": row}
    metrics: dict[str, object] = {"n": 30, "best_member": "one", "log_loss": losses}
    print_table(metrics | {"paired": {"calibrated_minus_best_member": row}})
    line = capsys.readouterr().out.splitlines()[-1]
    start = f"calibrated - best member (one): {values.mean():+.4f}"
    assert line.startswith(start)
    assert (line == f"{start}, too few groups for a verdict (5)") == (n_groups == 5)
    assert ("[" in line) == (n_groups == 6)
