"""Tracker runs: one per training, grouped by the run folder. A stub stands in for the W&B package."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from oof.training.trackers import GROUP, tracked_run


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a stub with W&B's ``run``, ``init`` and ``finish``; ``runs`` lists the group and the logs of each run."""
    module = SimpleNamespace(run=None, runs=[])

    def init() -> None:
        module.run = []
        module.runs.append((os.environ.get(GROUP), module.run))

    def finish() -> None:
        module.run = None

    module.init, module.finish = init, finish
    monkeypatch.setitem(sys.modules, "wandb", module)  # type: ignore[arg-type]
    monkeypatch.setenv(GROUP, "")
    monkeypatch.delenv(GROUP)
    return module


def train(wandb: Any, label: str) -> None:
    """Log as transformers' WandbCallback does: into the open run, or a new one."""
    if wandb.run is None:
        wandb.init()
    wandb.run.append(label)


def test_each_training_has_a_run_of_its_own_in_the_group_of_the_run_folder(wandb: Any) -> None:
    for label in ("fold 0", "fold 1"):
        with tracked_run("wandb", "demo"):
            train(wandb, label)
    assert wandb.runs == [("demo", ["fold 0"]), ("demo", ["fold 1"])]
    assert GROUP not in os.environ


def test_a_failed_training_finishes_its_run_too(wandb: Any) -> None:
    def fail() -> None:
        with tracked_run("wandb", "demo"):
            train(wandb, "fold 0")
            raise ValueError("failed")

    with pytest.raises(ValueError, match="failed"):
        fail()
    assert wandb.run is None


def test_the_users_group_is_kept(wandb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GROUP, "mine")
    with tracked_run("wandb", "demo"):
        train(wandb, "fold 0")
    assert wandb.runs[0][0] == os.environ[GROUP] == "mine"


def test_another_tracker_leaves_an_open_run_alone(wandb: Any) -> None:
    wandb.init()
    with tracked_run("none", "demo"):
        pass
    assert wandb.run is not None


def test_the_library_still_logs_into_an_open_run() -> None:
    import inspect

    from transformers.integrations import WandbCallback

    assert "if self._wandb.run is None:" in inspect.getsource(WandbCallback.setup)
    assert "finish" not in inspect.getsource(WandbCallback.on_train_end)
