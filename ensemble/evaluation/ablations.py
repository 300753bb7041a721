"""Ablations of stage two: ``arena-distill ablate`` writes ``RUN/stack/ablations.json``.

Every item is cross-fitted on the folds of the stack, with one part left out: a member, a family of features, the second
order, the calibration, or a share of the training battles. Nothing is tuned again: each outer fold keeps the parameters
and the number of rounds that its study found *with* all parts, so a part that tuning could replace looks worth a little
more than it is. ``full`` is made in the same way, and differences are paired with it.

The ablated combiner is always LightGBM, whatever ``stack.final`` takes for new battles. Items are steps of the run:
rerunning skips finished items.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ensemble.features.design_matrix import Design, build_design
from ensemble.stacking.calibration import fit_calibrator
from ensemble.stacking.inputs import Inputs
from ensemble.stacking.lightgbm_stacker import Stacker
from ensemble.stacking.stage import load_inputs, load_stack, predictions_frame, read_predictions
from ensemble.stacking.tuning import inner_folds
from ensemble.statistics.interval_words import too_few
from ensemble.statistics.resamples import Resamples
from oof.common.atomic_files import read_json, write_json, write_parquet
from oof.common.digests import digest
from oof.common.errors import UserError
from oof.common.progress import progress
from oof.common.steps import Step
from oof.config import Config
from oof.metrics import Integers, row_log_loss, softmax

logger = logging.getLogger(__name__)

ABLATION_VERSION = 1  # part of an item's key: raise it when the same inputs would give other predictions
KEYS = ("value", "low", "high")  # of an interval, in the order of the printed columns
SHARES = (0.125, 0.25, 0.5)  # of the training groups, for the learning curve
NOTE = "parameters and rounds of each fold's study are kept, not tuned anew; differences are item minus full"


@dataclass(frozen=True)
class Item:
    """One variant of the stack.

    Attributes:
        name: of its folder.
        kind: full, member, family, order or battles.
        design: makes its design.
        share: of the training groups.
    """

    name: str
    kind: str
    design: Callable[[], Design]
    share: float = 1.0


@dataclass(frozen=True)
class CrossFitted:
    """Predictions of one item.

    Attributes:
        calibrated: (n, 3) held-out probabilities.
        uncalibrated: the same before calibration.
        gains: (d,) LightGBM's gain of each column, summed over the folds.
        trained_on: mean number of training battles.
    """

    calibrated: NDArray[np.float64]
    uncalibrated: NDArray[np.float64]
    gains: NDArray[np.float64]
    trained_on: float


def run_ablations(config: Config) -> dict[str, Any]:
    """Fit every item that is not finished, write ``ablations.json`` and return its content.

    Raises:
        UserError: stage two is missing or out of date, or has the text baseline as a member.
    """
    if config.stack.text_member:
        raise UserError("ablations do not support stack.text_member; use a run folder where it is false")
    inputs = load_inputs(config)
    load_stack(config, inputs)  # raises if stage two is missing or out of date
    folder = Path(config.run) / "stack"
    manifest = read_json(folder / "manifest.json")
    tuned = {int(entry["fold"]): entry for entry in manifest["folds"]}
    design = build_design(inputs.table, inputs.scaled_logits)
    items = list_items(inputs, design)
    with progress("ablate", len(items), "fits") as shown:
        for item in items:
            _fit_item(item, inputs, tuned, config, folder / "ablations", manifest["key"])
            shown.update()
    content = summarise(folder / "ablations", items, inputs, config.seed)
    write_json(folder / "ablations.json", content)
    return content


def _fit_item(
    item: Item, inputs: Inputs, tuned: dict[int, dict[str, Any]], config: Config, folder: Path, key: str
) -> None:
    """Fit one item, unless it is finished, and write its predictions."""
    step = Step(folder / item.name, digest("ablation", ABLATION_VERSION, key, item.name))
    if step.done:
        return
    step.clear()
    variant = item.design()
    result = cross_fit_item(variant, inputs, tuned, config, item.share)
    predictions = {"calibrated": result.calibrated, "uncalibrated": result.uncalibrated}
    write_parquet(step.folder / "predictions.parquet", predictions_frame(inputs.table["id"], predictions))
    step.finish({"gain": _by_family(variant, result.gains), "trained_on": result.trained_on, "kind": item.kind})


def list_items(inputs: Inputs, design: Design) -> list[Item]:
    """Return the items of these inputs; ``full`` is the first."""
    logits, of_logits = inputs.scaled_logits, partial(build_design, inputs.table)
    items = [Item("full", "full", lambda: design)]
    for name in logits if len(logits) > 1 else ():
        others = {other: z for other, z in logits.items() if other != name}
        items.append(Item(f"without-member-{name}", "member", partial(of_logits, others)))
    families = [name for name in dict.fromkeys(design.families.values()) if not name.startswith("member:")]
    items += [Item(f"without-family-{name}", "family", partial(drop_family, design, name)) for name in families]
    if any((z[:, 0] != z[:, 1]).any() for z in logits.values()):
        first_order = {name: np.repeat(z[:, :1], 2, axis=1) for name, z in logits.items()}
        items.append(Item("without-other-order", "order", partial(of_logits, first_order)))
    return items + [Item(f"battles-{share:g}", "battles", lambda: design, share) for share in SHARES]


def drop_family(design: Design, family: str) -> Design:
    """Return the design without a family's columns."""
    keep = [i for i, name in enumerate(design.names) if design.families[name] != family]
    names = [design.names[i] for i in keep]
    families = {name: design.families[name] for name in names}
    return replace(design, x=design.x[:, keep], x_swapped=design.x_swapped[:, keep], names=names, families=families)


def cross_fit_item(
    design: Design, inputs: Inputs, tuned: dict[int, dict[str, Any]], config: Config, share: float = 1.0
) -> CrossFitted:
    """Return the held-out predictions of every battle by stackers that were trained on ``share`` of the other folds.

    Args:
        design: (n) battles, with one part left out.
        inputs: their labels, folds and groups.
        tuned: outer fold -> its "params" and "rounds".
        config: seed, calibrator and order.
        share: of the training groups of each fold; larger shares contain the smaller ones.
    """
    labels, folds, groups = inputs.labels, inputs.folds, inputs.groups
    calibrated, uncalibrated = np.empty((len(labels), 3)), np.empty((len(labels), 3))
    gains, trained_on = np.zeros(design.x.shape[1]), 0
    for fold, entry in tuned.items():
        rest, held = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        rest = rest[_draw_groups(groups, share, config.seed)[rest]]
        if len(np.unique(labels[rest])) < len(np.unique(labels)) or len(np.unique(groups[rest])) < 2:
            raise UserError(f"fold {fold}: {share:g} of the training battles are too few")
        stacker, inner = _fit(design.take(rest), labels[rest], folds[rest], groups[rest], entry, config.seed)
        logits = stacker.logits(design.take(held))
        stack = config.stack
        calibrator = fit_calibrator(
            stack.calibrator, stack.order, inner, labels[rest], groups[rest], config.seed, design.one_order
        )
        calibrated[held], uncalibrated[held] = calibrator.apply(logits), softmax(logits)
        gains += stacker.booster.feature_importance("gain")
        trained_on += len(rest)
    return CrossFitted(calibrated, uncalibrated, gains, trained_on / len(tuned))


def _fit(
    design: Design, labels: Integers, folds: Integers, groups: Integers, tuned: dict[str, Any], seed: int
) -> tuple[Stacker, NDArray[np.float64]]:
    """Return the stacker of (n) training battles and their (n, 3) inner out-of-fold logits, for the calibrator."""
    params, rounds = tuned["params"], int(tuned["rounds"])
    inner = inner_folds(labels, folds, groups, seed)
    logits = np.empty((len(labels), 3))
    for fold in np.unique(inner):
        rest, held = np.flatnonzero(inner != fold), np.flatnonzero(inner == fold)
        logits[held] = Stacker.fit(design.take(rest), labels[rest], params, rounds, seed).logits(design.take(held))
    return Stacker.fit(design, labels, params, rounds, seed), logits


def _draw_groups(groups: Integers, share: float, seed: int) -> NDArray[np.bool_]:
    """Return (n,) whether each battle's group is among ``share`` of the groups."""
    _, unit = np.unique(groups, return_inverse=True)
    return np.asarray(np.random.default_rng(seed).random(int(unit.max()) + 1)[unit] < share)


def _by_family(design: Design, gains: NDArray[np.float64]) -> dict[str, float]:
    """Return each family's share of boosting's gain, which excludes the initial pool; zeros without any split."""
    shares: dict[str, float] = {}
    for name, gain in zip(design.names, (gains / max(gains.sum(), 1e-12)).tolist(), strict=True):
        shares[design.families[name]] = shares.get(design.families[name], 0.0) + gain
    return shares


def summarise(folder: Path, items: list[Item], inputs: Inputs, seed: int) -> dict[str, Any]:
    """Return the content of ``ablations.json``: log losses in nats and their differences from ``full``, paired."""
    resampled = Resamples.draw(inputs.groups, seed)
    manifests = {item.name: read_json(folder / item.name / "manifest.json") for item in items}

    def losses(item: str, predictor: str = "calibrated") -> NDArray[np.float64]:
        probs = read_predictions(folder / item / "predictions.parquet", inputs.table["id"])[predictor]
        return row_log_loss(probs, inputs.labels)

    full = losses("full")

    def row(name: str, values: NDArray[np.float64], **entries: Any) -> dict[str, Any]:
        intervals = {"log_loss": resampled.mean(values), "difference": resampled.mean(values - full)}
        return {"name": name, **entries, **intervals}

    left_out = [row(i.name, losses(i.name), kind=i.kind) for i in items if i.kind not in ("full", "battles")]
    left_out.append(row("without-calibration", losses("full", "uncalibrated"), kind="calibration"))
    curve = [i for i in items if i.kind == "battles"] + [i for i in items if i.kind == "full"]
    return {
        "n": len(inputs.labels),
        "note": NOTE,
        "full": resampled.mean(full),
        "without": left_out,
        "learning_curve": [row(i.name, losses(i.name), battles=manifests[i.name]["trained_on"]) for i in curve],
        "gain": manifests["full"]["gain"],
    }


def print_ablations(content: dict[str, Any]) -> None:
    """Print the content of ``ablations.json`` as a table."""
    console = Console()
    table = Table(title=f"without a part: log loss of {content['n']} battles (95 % intervals by groups)")
    for column in ("", "log loss", "minus full", "low", "high"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("full", f"{content['full']['value']:.4f}", "", "", "")
    for row in [*content["without"], *content["learning_curve"][:-1]]:
        cells = [("" if row["difference"][key] is None else f"{row['difference'][key]:+.4f}") for key in KEYS]
        table.add_row(row["name"], f"{row['log_loss']['value']:.4f}", *cells)
    console.print(table)
    if "groups" in content["full"]:
        console.print(f"{too_few(content['full']['groups'])}: the differences may be chance", highlight=False)
    gains = sorted(content["gain"].items(), key=lambda pair: -pair[1])
    console.print("gain of boosting: " + ", ".join(f"{name} {gain:.0%}" for name, gain in gains), highlight=False)
    console.print(content["note"], highlight=False)
