"""Ablations: each part is left out, nothing leaks, and items are steps of the run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ensemble.__main__ import main
from ensemble.evaluation.ablations import (
    Item,
    cross_fit_item,
    drop_family,
    list_items,
    print_ablations,
    summarise,
)
from ensemble.features.battle_features import FAMILIES
from ensemble.features.design_matrix import build_design
from ensemble.stacking.inputs import Inputs
from ensemble.stacking.stage import load_inputs, load_stack, predictions_frame
from ensemble.statistics.bootstrap import group_interval
from oof.common.atomic_files import read_json, write_json, write_parquet
from oof.common.logits_format import logits_frame
from oof.config import Config, Stack, load
from oof.metrics import log_loss, row_log_loss
from tests.fixtures.arenas import make_arena

TUNED = {"params": {"learning_rate": 0.1, "num_leaves": 6, "min_data_in_leaf": 20}, "rounds": 30}
CONFIG = Config(stack=Stack(order="symmetric"))


def inputs_of(n: int, noise: float = 0.7) -> Inputs:
    arena = make_arena(n, noise=noise)
    return Inputs(arena.table, arena.labels, arena.groups, arena.folds, arena.logits)


def folds(inputs: Inputs) -> dict[int, dict[str, object]]:
    return {int(fold): TUNED for fold in np.unique(inputs.folds)}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A finished stack of two members' logits, without text and without a stage one."""
    folder = tmp_path_factory.mktemp("ablations")
    arena = make_arena(240)
    table = arena.table.select("id", label=pl.Series(arena.labels))
    table.write_csv(folder / "labels.csv")
    for name, logits in arena.logits.items():
        write_parquet(folder / f"{name}.parquet", logits_frame(table["id"], logits, 0).drop("fold"))
    named = [f"stack.logits.{name}={folder / name}.parquet" for name in arena.logits]
    settings = ["stack.trials=2", "stack.rounds=20", f"data.train=[{folder / 'labels.csv'}]", *named]
    given = ["configs/demo.yaml", f"run={folder / 'run'}", *settings]
    assert main(["stack", *given]) == 0
    return given


def test_items_are_made_of_logits_on_one_scale_as_the_stack_is() -> None:
    plain = inputs_of(300)
    uneven = {name: values * (1 + plain.folds[:, None, None]) for name, values in plain.logits.items()}
    inputs = replace(plain, logits=uneven, fold_jobs=(0, 1, 2))
    items = {item.name: item for item in list_items(inputs, build_design(inputs.table, inputs.scaled_logits))}
    for item, name in (("full", "one"), ("without-member-two", "one"), ("without-other-order", "two")):
        design = items[item].design()
        margins = np.diff(design.pool[:, design.members.index(name), :2])[:, 0]
        spread = [float(np.sqrt(np.square(margins[inputs.folds == k]).mean())) for k in range(3)]
        assert max(spread) < 1.3 * min(spread)  # 3 times as large without


@pytest.mark.slow
def test_every_part_is_left_out_once_and_only_missing_items_are_made_again(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ablate", *arguments]) == 0
    assert "minus full" in capsys.readouterr().out
    folder = Path(arguments[1].removeprefix("run=")) / "stack"
    content = read_json(folder / "ablations.json")
    names = [row["name"] for row in content["without"]]
    assert names[:2] == ["without-member-one", "without-member-two"]
    assert names[-2:] == ["without-other-order", "without-calibration"]
    assert names[2:-2] == ["without-family-between"]
    assert sum(content["gain"].values()) == pytest.approx(1)
    sizes = [row["battles"] for row in content["learning_curve"]]
    assert sizes == sorted(sizes)
    assert sizes[-1] == 160
    for row in content["without"]:
        assert row["difference"]["low"] <= row["difference"]["value"] <= row["difference"]["high"]
        assert row["log_loss"]["value"] - content["full"]["value"] == pytest.approx(row["difference"]["value"])
    manifest = read_json(folder / "manifest.json")
    assert content["full"]["value"] == pytest.approx(manifest["log_loss"]["calibrated"], abs=0.02)

    times = {path: path.stat().st_mtime_ns for path in (folder / "ablations").rglob("predictions.parquet")}
    before = (folder / "ablations.json").read_bytes()
    shutil.rmtree(folder / "ablations" / "without-member-one")
    assert main(["ablate", *arguments]) == 0
    again = {path: path.stat().st_mtime_ns for path in times}
    assert {path.parent.name for path in times if times[path] != again[path]} == {"without-member-one"}
    assert (folder / "ablations.json").read_bytes() == before
    assert main(["stack", *arguments]) == 0
    config = load(arguments[0], arguments[1:])
    assert load_stack(config, load_inputs(config))  # the stack itself is still intact


@pytest.mark.slow
def test_leaving_out_a_useful_part_costs_and_leaving_out_noise_does_not() -> None:
    inputs = inputs_of(1500, noise=2.0)
    design = build_design(inputs.table, inputs.logits)
    items = {item.name: item for item in list_items(inputs, design)}

    def losses(name: str) -> np.ndarray:
        item = items[name]
        probs = cross_fit_item(item.design(), inputs, folds(inputs), CONFIG, item.share).calibrated
        return row_log_loss(probs, inputs.labels)

    present = {*FAMILIES, "between"} - {"tokens"}  # these logits come without counts
    assert {f"without-family-{family}" for family in present} < set(items)
    full = losses("full")
    for name, matters in (
        ("without-member-one", True),
        ("without-other-order", True),
        ("without-family-endings", False),
    ):
        cost = group_interval(losses(name) - full, inputs.groups, seed=0)
        assert (cost["low"] > 0) == matters, name
    curve = [losses(f"battles-{share}").mean() for share in ("0.125", "0.5")]
    assert curve[0] > curve[1] > full.mean() - 0.01


def test_labels_of_a_fold_do_not_reach_its_own_predictions() -> None:
    inputs = inputs_of(300)
    design = build_design(inputs.table, inputs.logits)
    held = inputs.folds == 1
    changed = inputs.labels.copy()
    changed[held] = (changed[held] + 1) % 3
    other = Inputs(inputs.table, changed, inputs.groups, inputs.folds, inputs.logits)
    for share in (1.0, 0.5):
        one = cross_fit_item(design, inputs, folds(inputs), CONFIG, share)
        two = cross_fit_item(design, other, folds(inputs), CONFIG, share)
        np.testing.assert_array_equal(one.calibrated[held], two.calibrated[held])
        assert not np.array_equal(one.calibrated[~held], two.calibrated[~held])


def test_a_dropped_family_is_missing_from_both_orders() -> None:
    inputs = inputs_of(40)
    design = build_design(inputs.table, inputs.logits)
    less = drop_family(design, "lengths")
    assert not less.columns("lengths")
    assert less.x.shape == less.x_swapped.shape == (40, design.x.shape[1] - len(design.columns("lengths")))
    assert less.names == [name for name in design.names if "lengths" not in design.families[name]]


def test_without_a_calibrator_calibrated_and_uncalibrated_predictions_are_equal() -> None:
    inputs = inputs_of(600)
    design = build_design(inputs.table, inputs.logits)
    plain = Config(stack=Stack(order="symmetric", calibrator="none"))
    result = cross_fit_item(design, inputs, folds(inputs), plain)
    np.testing.assert_allclose(result.calibrated, result.uncalibrated)
    assert log_loss(result.uncalibrated, inputs.labels) < 1.0


def test_ablations_of_five_groups_print_differences_and_no_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = replace(inputs_of(60), groups=np.arange(60) % 5)
    rng = np.random.default_rng(0)
    items = [Item("full", "full", lambda: None), Item("without-member-one", "member", lambda: None)]  # type: ignore[arg-type,return-value]
    for item in items:
        probs = rng.dirichlet(np.ones(3), 60)
        frame = predictions_frame(inputs.table["id"], {"calibrated": probs, "uncalibrated": probs})
        write_parquet(tmp_path / item.name / "predictions.parquet", frame)
        write_json(tmp_path / item.name / "manifest.json", {"gain": {"lengths": 1.0}, "trained_on": 40.0})
    content = summarise(tmp_path, items, inputs, 0)
    difference = content["without"][0]["difference"]
    assert (difference["low"], difference["high"], difference["groups"]) == (None, None, 5)
    print_ablations(content)
    out = capsys.readouterr().out
    assert f"{difference['value']:+.4f}" in out
    assert "too few groups for a verdict (5)" in out
