"""Stage two over a run folder: from OOF logits to calibrated cross-fitted probabilities and the final stack."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble.features.design_matrix import FEATURES_VERSION, add_terms, build_design, join_logits, with_counts
from ensemble.stacking import STACKING_VERSION
from ensemble.stacking.inputs import Inputs, external_inputs
from oof.classes import CLASSES
from oof.common.atomic_files import read_json, read_parquet, verified, write_json, write_parquet
from oof.common.digests import digest
from oof.common.errors import UserError
from oof.common.steps import Step
from oof.config import Config, Pretrain, to_dict, without_speed_settings
from oof.jobs.dataset import FORMAT, load_battles
from oof.jobs.source_files import remember
from oof.metrics import log_loss, softmax_mean

if TYPE_CHECKING:
    from ensemble.stacking.stack_result import StackResult

logger = logging.getLogger(__name__)

STAGE_ONE = ("seed", "members", "pretrain", "prompts", "folds", "groups")  # settings that OOF logits depend on


def load_inputs(config: Config) -> Inputs:
    """Return the run's scored battles and OOF logits, or those of ``stack.logits``.

    Raises:
        UserError: stage one has not finished, or was made with other settings; a file of logits does not fit.
    """
    if config.stack.logits:
        inputs = external_inputs(config)
        return _without_suspects(config, inputs) if config.stack.strict else inputs
    run = Path(config.run)
    table = load_battles(run, unlabelled=False).filter(pl.col("role") == "train")
    if not (run / "run.json").is_file():
        raise UserError(f"{run}: stage one is not finished; run 'make oof' with this RUN first")
    _refuse_other_settings(run, config)
    logits: dict[str, NDArray[np.float32]] = {}
    for name in config.members:
        path = run / "oof" / name / "logits.parquet"
        if not path.is_file():
            raise UserError(f"{path}: missing; run 'make oof' with this RUN first")
        frame = read_parquet(verified(path, "member.json", "make oof"))
        if not logits:
            table = with_counts(table, frame)
        logits[name] = join_logits(table["id"].to_list(), frame)
    labels, groups, folds = (table[name].to_numpy().astype(np.int64) for name in ("label", "group", "fold"))
    return Inputs(table, labels, groups, folds, logits, tuple(range(config.folds.k)))


def _without_suspects(config: Config, inputs: Inputs) -> Inputs:
    """Return the inputs without the members that are possibly in-sample.

    Raises:
        UserError: no member is left.
    """
    left_out = suspected_members(config, inputs)
    if not left_out:
        return inputs
    logits = {name: values for name, values in inputs.logits.items() if name not in left_out}
    if not logits:
        raise UserError(
            f"stack.strict: every member is possibly in-sample ({', '.join(left_out)}), so none is left; give logits "
            "of models that were not trained on these battles, or set stack.strict=false to see their scores"
        )
    logger.warning("stack.strict: left out: %s", ", ".join(left_out))
    return replace(inputs, logits=logits, left_out=left_out)


def suspected_members(config: Config, inputs: Inputs) -> dict[str, list[str]]:
    """Return the members that are possibly in-sample; of a run's own fold jobs, the audit proves that none is."""
    from ensemble.stacking.leakage import leaked_members  # SciPy's optimisers take half a second to import

    if not config.stack.logits:
        return {}
    rows = inputs.labels, inputs.folds, inputs.groups
    return leaked_members(inputs.logits, *rows, config.stack.in_sample_margin, config.seed)


def _refuse_other_settings(run: Path, config: Config) -> None:
    """Refuse a configuration whose stage-one settings differ from those that the run was made with."""
    made, now = read_json(run / "run.json")["config"], to_dict(config)
    made.setdefault("pretrain", asdict(Pretrain()))  # run.json of a version without pretraining
    for names, others, problem in (
        (now["members"], made["members"], "has no member"),
        (made["members"], now["members"], "has a member that the configuration lacks,"),
    ):
        if absent := sorted(set(names) - set(others)):
            raise UserError(f"{run}: stage one {problem} {absent[0]!r}; run 'make oof' again")
    made, now = (without_speed_settings(values, Config) for values in (made, now))
    for values in (made, now):  # the files and how they are read have been compared by content
        values["data"] = {"ties": values["data"].get("ties", True)}
    for section in (*STAGE_ONE, "data"):
        for name, (before, after) in _differences(section, made.get(section), now[section]).items():
            made_with = f"{run}: stage one was made with {name}={before}, now it is {after}"
            raise UserError(f"{made_with}; leave that out, or run 'make oof' again")


def _differences(name: str, before: object, after: object) -> dict[str, tuple[object, object]]:
    """Return path -> (old, new) value of every setting that differs between two sections of plain values."""
    if isinstance(before, dict) and isinstance(after, dict):
        differences: dict[str, tuple[object, object]] = {}
        for key in sorted({*before, *after}):
            differences |= _differences(f"{name}.{key}", before.get(key), after.get(key))
        return differences
    return {} if before == after else {name: (before, after)}


def _step(config: Config, inputs: Inputs) -> Step:
    logits = [digest(inputs.logits[name]) for name in sorted(inputs.logits)]
    battles = [inputs.table["id"].to_list(), digest(inputs.labels, inputs.groups, inputs.folds)]
    settings = without_speed_settings(config.stack)
    settings.pop("test_logits", None)  # read by predict; the fits do not depend on them
    data = list(config.members), logits, battles, inputs.origin
    key = digest("stack", FORMAT, settings, config.seed, *data, FEATURES_VERSION, STACKING_VERSION)
    return Step(Path(config.run) / "stack", key)


def run_stack(config: Config, inputs: Inputs | None = None) -> bool:
    """Cross-fit, calibrate and save the stack unless it is up to date; return whether anything ran.

    Args:
        config: of the command.
        inputs: of :func:`load_inputs`, where they have been read.
    """
    inputs = inputs or load_inputs(config)
    step = _step(config, inputs)
    # All settings of a run with logits of its own stage one were stored by that; other logits have no stage before.
    remember(config, () if config.stack.logits else ("stack",))
    if step.done:
        _keep_battles(config, inputs, step)
        return False
    n_folds, names = len(np.unique(inputs.folds)), ", ".join(inputs.logits)
    logger.info("stack: %s battles in %d folds, logits of %s", f"{inputs.table.height:,}", n_folds, names)
    step.begin()
    started = time.monotonic()
    # LightGBM, SciPy and scikit-learn take two seconds to import, so only when there is work for them.
    from ensemble.stacking.cross_fit import cross_fit
    from ensemble.stacking.leakage import note_on_lone_member
    from ensemble.statistics.score_table import score_table

    design = add_terms(build_design(inputs.table, inputs.scaled_logits), inputs.table)
    battles = design, inputs.labels, inputs.folds, inputs.groups
    result = cross_fit(*battles, config.stack, config.seed, step.folder / "studies")
    result.job_scales = inputs.job_scales
    result.save(step.folder / "model")
    members = {f"member:{name}": softmax_mean(logits) for name, logits in inputs.logits.items()}
    predictions = {**result.predictions, **members}
    frame = predictions_frame(inputs.table["id"], predictions)
    write_parquet(step.folder / "predictions.parquet", frame)
    _keep_battles(config, inputs, step)
    write_json(step.folder / "scores.json", score_table(predictions, inputs.labels, inputs.groups, config.seed))
    losses = {name: log_loss(probs, inputs.labels) for name, probs in result.predictions.items()}
    leaked = inputs.left_out or suspected_members(config, inputs)
    own = not config.stack.logits
    notes = {} if own else note_on_lone_member(inputs.logits, inputs.labels, inputs.groups, config.seed)
    seconds = round(time.monotonic() - started, 1)  # of the last call, if the first was interrupted
    entries = {
        "possibly_in_sample": leaked,
        "in_sample_notes": notes,
        "log_loss": losses,
        "features": result.features,
        "seconds": seconds,
    }
    step.finish({**entries, **inputs.origin, **result.manifest_entries()})
    logger.info("stack: %s", ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()))
    return True


def _keep_battles(config: Config, inputs: Inputs, step: Step) -> None:
    """Write the battles and folds of ``stack.logits`` for the audit; otherwise stage one has them."""
    path = step.folder / "battles.parquet"
    if config.stack.logits and not path.is_file():
        write_parquet(path, inputs.table)


def load_predictions(config: Config, inputs: Inputs) -> dict[str, NDArray[np.float64]]:
    """Return each predictor's (n, 3) out-of-fold probabilities.

    The student learns from "teacher", without a modelled position bias: it is trained on both orders of every battle,
    which share one target.

    Raises:
        UserError: stage two is missing or out of date.
    """
    step = _finished_step(config, inputs)
    return read_predictions(step.folder / "predictions.parquet", inputs.table["id"])


def load_stack(config: Config, inputs: Inputs) -> StackResult:
    """Return the final stack of ``inputs``.

    Raises:
        UserError: stage two is missing or out of date.
    """
    step = _finished_step(config, inputs)
    from ensemble.stacking.stack_result import StackResult

    return StackResult.load(step.folder / "model")


def _finished_step(config: Config, inputs: Inputs) -> Step:
    step = _step(config, inputs)
    if not step.done:
        raise UserError(
            f"{step.folder}: stage two is not finished for these settings; run 'make stack' with this RUN first"
        )
    return step


def predictions_frame(ids: pl.Series, predictions: Mapping[str, NDArray[np.floating]]) -> pl.DataFrame:
    """Return one row per battle: id and, for each predictor, its three probabilities (``name|a`` …)."""
    columns = {f"{name}|{c}": probs[:, i] for name, probs in predictions.items() for i, c in enumerate(CLASSES)}
    return pl.DataFrame({"id": ids, **columns})


def read_predictions(path: Path, ids: pl.Series) -> dict[str, NDArray[np.float64]]:
    """Return each predictor's (n, 3) probabilities, joined by id."""
    frame = read_parquet(path)
    joined = pl.DataFrame({"id": ids}).join(frame, on="id", how="left", validate="1:1", maintain_order="left")
    names = list(dict.fromkeys(column.split("|")[0] for column in frame.columns if column != "id"))
    predictions = {name: joined.select(f"{name}|{c}" for c in CLASSES).to_numpy() for name in names}
    if not all(np.isfinite(probs).all() for probs in predictions.values()):
        raise UserError(f"{path}: does not cover the run's battles; delete {path.parent} and run the stage again")
    return predictions
