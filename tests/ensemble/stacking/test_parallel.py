"""Parallel tasks: same results with any number of processes, errors come through, no torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ensemble.stacking.cross_fit import cross_fit
from ensemble.stacking.parallel import map_tasks
from oof.common.errors import UserError
from oof.config import Stack
from tests.fixtures.arenas import make_arena


def scaled(shared: int, task: int) -> int:
    if task < 0:
        raise UserError("a negative task")
    return shared * task


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_each_task_gives_its_result_and_an_error_comes_through(workers: int) -> None:
    if workers == 1:  # the next test covers two workers, on the whole stack
        assert dict(map_tasks(scaled, 10, [3, 1, 2], workers)) == {0: 30, 1: 10, 2: 20}
    with pytest.raises(UserError, match="negative"):
        list(map_tasks(scaled, 10, [1, -1], workers))


@pytest.mark.slow
def test_the_stack_does_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    arena = make_arena(240)
    config = Stack(trials=2, rounds=15, order="symmetric", final="lightgbm")
    for workers in (1, 2):
        settings = replace(config, workers=workers)
        battles = arena.design, arena.labels, arena.folds, arena.groups
        result = cross_fit(*battles, settings, 0, tmp_path / f"studies-{workers}")
        result.save(tmp_path / f"model-{workers}")
        np.savez(tmp_path / f"{workers}.npz", **{k.replace(":", "_"): v for k, v in result.predictions.items()})
    one, two = (np.load(tmp_path / f"{workers}.npz") for workers in (1, 2))
    for name in one.files:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
    for path in (tmp_path / "model-1").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "model-2" / path.relative_to(tmp_path / "model-1")).read_bytes(), path


def test_stacking_imports_no_torch() -> None:
    code = "import sys, ensemble.stacking.stage; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0  # noqa: S603  # a constant
