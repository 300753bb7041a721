"""The guard of finished training: what it finds, and a message that fits on a screen."""

from __future__ import annotations

from pathlib import Path

import pytest

from oof.common.errors import UserError
from oof.common.steps import Step
from oof.config import load
from oof.config.stored import store_settings
from oof.jobs.finished_training import Training, losses, refuse_to_replace
from tests.fixtures.demo_run import ROOT

DEMO = str(ROOT / "configs" / "demo.yaml")


def job(folder: Path, key: str, **facts: object) -> Step:
    """Finish a step with a key and the facts of its training."""
    step = Step(folder, key, "job.json")
    step.begin()
    step.finish(facts)
    return Step(folder, "now", "job.json")


def test_training_with_another_key_is_a_loss_with_its_hours_and_reasons(tmp_path: Path) -> None:
    step = job(tmp_path / "a", "then", seconds=7200, depends={"train.lr": "1", "seed": "0"})
    same = Training("m", "fold 1", job(tmp_path / "b", "now"), {"train.lr": "2"})
    [loss] = losses([Training("m", "fold 0", step, {"train.lr": "2", "seed": "0"}), same])
    assert (loss.seconds, loss.changed, loss.finished) == (7200, ("train.lr",), True)


def test_what_a_call_repairs_or_only_began_is_no_loss(tmp_path: Path) -> None:
    damaged = job(tmp_path / "damaged", "then", seconds=5)
    damaged.manifest_path.write_text("{")
    own = job(tmp_path / "own", "now")
    (own.folder / "adapter").mkdir()
    begun = Step(tmp_path / "begun", "then", "job.json")
    begun.begin()
    again = Step(begun.folder, "now", "job.json")
    assert (
        losses([Training("m", "fold 0", step) for step in (damaged, own, again, Step(tmp_path / "none", "now"))]) == []
    )


def test_checkpoints_and_finished_parts_of_other_settings_are_losses_too(tmp_path: Path) -> None:
    begun = Step(tmp_path / "fold-0", "then", "job.json")
    begun.begin()
    (begun.folder / "checkpoints").mkdir()
    students = Step(tmp_path / "distill", "then")
    students.begin()
    job(students.folder / "fold-0", "x", seconds=60)
    job(students.folder / "fold-1", "y", seconds=40)
    found = losses([Training("m", "fold 0", Step(begun.folder, "now", "job.json"))])
    assert [(loss.seconds, loss.finished) for loss in found] == [(0, False)]
    found = losses([Training("student", "all folds", Step(students.folder, "now"))])
    assert [(loss.seconds, loss.finished) for loss in found] == [(100, True)]


@pytest.mark.slow
def test_the_message_fits_on_a_screen_and_names_settings_and_hours(tmp_path: Path) -> None:
    names = [f"model-{i}" for i in range(30)]
    base = [f"members.{name}.checkpoint=x" for name in names]
    store_settings(load(DEMO, [f"run={tmp_path}", *base]))
    config = load(
        DEMO, [f"run={tmp_path}", *base, *(f"members.{name}.train.lr=0.5" for name in names), "jobs.workers=7"]
    )
    steps = [job(tmp_path / "oof" / name / f"fold-{k}", "then", seconds=3600.0) for name in names for k in range(5)]
    trainings = [Training(step.folder.parent.name, step.folder.name, step) for step in steps]
    with pytest.raises(UserError) as refused:
        refuse_to_replace(config, trainings, "make oof")
    lines = str(refused.value).splitlines()
    assert len(lines) <= 25
    assert "150 h 0 min" in lines[0]
    assert "  model-0, fold-0, fold-1, fold-2, fold-3, fold-4: 5 h 0 min" in lines
    assert "  members.model-0.train.lr: 0.0001 before, 0.5 now" in lines
    assert "  and 22 more" in lines
    assert "workers" not in str(refused.value)
    assert "REDO=1" in lines[-1]
    refuse_to_replace(config, trainings, "make oof", redo=True)
