"""Guard of finished training: a command that would replace it stops, and lists what would be lost and why.

Training with other settings than now is found by the content keys of its steps. The guard looks at all steps of a
command before the first file is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oof.common.atomic_files import parse_json
from oof.common.errors import UserError
from oof.common.progress import duration
from oof.common.steps import TRAINED, Step
from oof.config import Config
from oof.config.stored import changes_since_stored

TRAINING = ("seed", "data", "groups", "folds", "prompts", "members", "pretrain", "distill")  # settings it depends on
NO_TRAINING = ("data.test", "data.truth", "distill.variants")  # settings in these sections that none depends on
SHOWN = 8  # lines of each list: a message fits on a screen


@dataclass(frozen=True)
class Training:
    """One training that a command needs.

    Attributes:
        name: of the model in messages: a member, or the student.
        part: which of its trainings, for example "fold 0".
        step: that holds the result.
        depends: setting -> digest of its value now, as the step's manifest has them; may be empty.
    """

    name: str
    part: str
    step: Step
    depends: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Loss:
    """Finished training that a command would replace: its hours, and the names of what changed."""

    training: Training
    seconds: float
    changed: tuple[str, ...]
    finished: bool


def losses(trainings: Iterable[Training]) -> list[Loss]:
    """Return the finished and begun trainings with other settings that these would replace."""
    found = []
    for training in trainings:
        manifest = training.step.earlier()
        if manifest is None:
            continue
        inside, parts = _parts_done(training.step.folder)
        seconds, finished = _seconds(manifest) or inside, bool(manifest) or parts
        if not finished and not (training.step.folder / "checkpoints").is_dir():
            continue  # nothing of it is kept between calls
        before = manifest.get("depends") or {}
        now = training.depends
        changed = sorted(name for name in {*before, *now} if before and now and before.get(name) != now.get(name))
        found.append(Loss(training, seconds, tuple(changed), finished))
    return found


def _seconds(manifest: Mapping[str, Any]) -> float:
    value = manifest.get("seconds")
    return float(value) if isinstance(value, int | float) else 0.0


def _parts_done(folder: Path) -> tuple[float, bool]:
    """Return the seconds of the trainings that are finished inside a step, and whether there are any."""
    seconds, found = 0.0, False
    for path in (*folder.glob("*/job.json"), folder / TRAINED):
        try:
            seconds, found = seconds + _seconds(parse_json(path)), True
        except (OSError, ValueError, RecursionError):
            continue
    return seconds, found


def refuse_to_replace(config: Config, trainings: Iterable[Training], command: str, redo: bool = False) -> None:
    """Stop a command that would replace finished training.

    Args:
        config: of the command.
        trainings: all that it needs, done or not.
        command: that goes on without the change, for the message.
        redo: replace it.

    Raises:
        UserError: lists what would be lost, because of which setting, and the hours that it took.
    """
    lost = losses(trainings)
    if not lost or redo:
        return
    rows: dict[tuple[str, tuple[str, ...], bool], list[Loss]] = {}
    for loss in lost:
        rows.setdefault((loss.training.name, loss.changed, loss.finished), []).append(loss)
    total = duration(sum(loss.seconds for loss in lost))
    lines = [f"{config.run}: this call would replace finished training that took {total}:"]
    lines += _shortened([_line(*key, losses_of_row) for key, losses_of_row in rows.items()])
    differences = changed_settings(config)
    if differences:
        lines += ["because these settings differ from those that the run remembers:", *_shortened(differences)]
    back = f"Go on without the change ({command} RUN={config.run}, without CONFIG and ARGS)"
    if not differences:  # the call itself changes nothing: an earlier stage or a file has changed
        back = "Bring back what changed (the stack: make stack with its earlier settings)"
    lines.append(f"Nothing was written. {back}, choose another RUN, or train again: REDO=1 (--redo)")
    raise UserError("\n".join(lines))


def _line(name: str, changed: tuple[str, ...], finished: bool, row: list[Loss]) -> str:
    parts = ", ".join(loss.training.part for loss in row[:SHOWN])
    parts += f" and {len(row) - SHOWN} more" if len(row) > SHOWN else ""
    hours = duration(sum(loss.seconds for loss in row)) if finished else "not finished, with checkpoints"
    reason = f"; changed: {', '.join(changed[:SHOWN])}" if changed else ""
    return f"{name}, {parts}: {hours}{reason}"


def _shortened(lines: list[str]) -> list[str]:
    shown = [f"  {line[:200]}" for line in lines[:SHOWN]]
    return shown + ([f"  and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else [])


def changed_settings(config: Config) -> list[str]:
    """Return a line for each setting of training that differs from the one that the run remembers."""
    return [
        f"{name}: {_word(old)} before, {_word(new)} now"
        for name, old, new in changes_since_stored(config)
        if name.split(".")[0] in TRAINING and name not in NO_TRAINING
    ]


def _word(value: object) -> str:
    return str(value) if value or value == 0 else "nothing"
