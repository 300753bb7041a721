"""Files of logits: kinds and orders are recognised, ids joined, folds taken over, and bad files refused."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ensemble.__main__ import main
from ensemble.stacking.inputs import external_inputs, read_logits
from ensemble.stacking.job_scales import JobScale, JobScales
from ensemble.stacking.stage import load_inputs, load_stack, read_predictions
from oof.common.atomic_files import read_json, read_parquet
from oof.common.errors import UserError
from oof.common.logits_format import LOGIT_COLUMNS, logits_frame
from oof.config import load
from oof.metrics import softmax
from tests.fixtures.arenas import Arena, make_arena

PLAIN = ["a", "b", "tie"]


@pytest.fixture
def arena() -> Arena:
    return make_arena(240)


def ids_of(arena: Arena) -> pl.Series:
    return arena.table["id"]


def labels_file(folder: Path, arena: Arena, fold: bool = False) -> Path:
    path = folder / "labels.csv"
    frame = pl.DataFrame({"id": ids_of(arena), "label": arena.labels})
    (frame.with_columns(fold=pl.Series(arena.folds)) if fold else frame).write_csv(path)
    return path


def both_orders(arena: Arena, name: str) -> pl.DataFrame:
    return logits_frame(ids_of(arena), arena.logits[name], arena.folds).drop("fold")


def overrides(run: Path, labels: Path, **logits: Path) -> list[str]:
    named = [f"stack.logits.{name}={path}" for name, path in logits.items()]
    return ["configs/demo.yaml", f"run={run}", f"data.train=[{labels}]", *named, "stack.trials=2", "stack.rounds=20"]


def inputs_of(run: Path, labels: Path, *more: str, **logits: Path):
    path, *changes = overrides(run, labels, **logits)
    return external_inputs(load(path, [*changes, *more]))


@pytest.mark.slow
def test_stacking_files_of_any_format_and_row_order_needs_no_stage_one(
    arena: Arena, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """End to end: one file of logits in both orders, one of probabilities, rows shuffled twice."""
    labels = labels_file(tmp_path, arena)
    one, two = tmp_path / "one.csv", tmp_path / "two.parquet"
    logits = both_orders(arena, "one")
    probs = pl.DataFrame(softmax(arena.logits["two"].mean(axis=1)), schema=PLAIN).with_columns(id=ids_of(arena))
    results = []
    for seed, run in ((1, tmp_path / "run"), (2, tmp_path / "again")):
        logits.sample(fraction=1, shuffle=True, seed=seed).write_csv(one)
        probs.sample(fraction=1, shuffle=True, seed=seed).write_parquet(two)
        with caplog.at_level("INFO"):
            assert main(["stack", *overrides(run, labels, one=one, two=two)]) == 0
        results.append(read_parquet(run / "stack" / "predictions.parquet"))
    assert results[0].equals(results[1])
    assert "one.csv: logits, both orders, 240 rows" in caplog.text
    assert "two.parquet: probabilities, one order (a, b, tie), 240 rows" in caplog.text
    manifest = read_json(tmp_path / "run" / "stack" / "manifest.json")
    assert manifest["inputs"]["folds_from"] == "assigned"
    assert not any(name.startswith("log_") for name in manifest["features"])
    assert manifest["log_loss"]["calibrated"] < manifest["log_loss"]["prior"] - 0.1
    assert main(["stack", *overrides(tmp_path / "run", labels, one=one, two=two)]) == 0
    assert "possibly_in_sample" in manifest


UNEVEN = np.array([1, 2, 3])  # scale of each fold job


def uneven_file(folder: Path, arena: Arena) -> tuple[Path, np.ndarray]:
    """Return a file of logits of fold jobs with other scales, and these logits."""
    logits = arena.logits["one"] * UNEVEN.astype(np.float32)[arena.folds][:, None, None]
    logits_frame(ids_of(arena), logits, 0).drop("fold").write_csv(folder / "one.csv")
    return folder / "one.csv", logits


def test_fold_jobs_are_brought_to_one_scale_where_the_files_give_the_folds_and_no_label_has_a_part(
    arena: Arena, tmp_path: Path
) -> None:
    one, logits = uneven_file(tmp_path, arena)
    labels = labels_file(tmp_path, arena)
    frame = pl.read_csv(labels, schema_overrides={"id": pl.String})
    without = inputs_of(tmp_path / "none", labels, one=one)
    assert without.fold_jobs == ()
    assert without.job_scales == JobScales()
    assert without.scaled_logits["one"] is without.logits["one"]
    scales = []
    for verdicts in (arena.labels, np.random.default_rng(0).permutation(arena.labels)):
        frame.with_columns(label=verdicts, fold=2 * arena.folds + 1).write_csv(labels)
        inputs = inputs_of(tmp_path / "given", labels, one=one)
        assert inputs.fold_jobs == (1, 3, 5)
        order = [ids_of(arena).to_list().index(name) for name in inputs.table["id"]]
        np.testing.assert_array_equal(inputs.logits["one"], logits[order])
        scales.append(inputs.job_scales)
        margins = np.diff(inputs.scaled_logits["one"].mean(axis=1)[:, :2])[:, 0]
        sizes = [float(np.sqrt(np.square(margins[inputs.folds == k]).mean())) for k in range(3)]
        assert max(sizes) < 1.5 * min(sizes)  # three times as large before
    assert scales[0] == scales[1]
    assert JobScale() not in scales[0].members["one"].values()


def test_the_stack_keeps_the_scales_and_the_member_s_row_is_its_own(arena: Arena, tmp_path: Path) -> None:
    one, _ = uneven_file(tmp_path, arena)
    path, *changes = overrides(tmp_path / "run", labels_file(tmp_path, arena, fold=True), one=one)
    changes.append("stack.final=log_pool")
    assert main(["stack", path, *changes]) == 0
    config = load(path, changes)
    inputs = load_inputs(config)
    assert load_stack(config, inputs).job_scales == inputs.job_scales != JobScales()
    predictions = read_predictions(tmp_path / "run" / "stack" / "predictions.parquet", inputs.table["id"])
    np.testing.assert_allclose(predictions["member:one"], softmax(inputs.logits["one"].mean(axis=1)), atol=1e-6)


@pytest.mark.slow
def test_a_leaky_member_is_named_in_the_output_and_in_the_manifest(
    arena: Arena, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    both_orders(arena, "one").write_csv(one)
    seen = arena.logits["two"] / 3 + 3 * np.eye(3)[arena.labels][:, None]  # right more often than its probabilities say
    logits_frame(ids_of(arena), seen, 0).drop("fold").write_csv(two)
    assert main(["stack", *overrides(tmp_path / "run", labels_file(tmp_path, arena), one=one, two=two)]) == 0
    assert "two: possibly in-sample" in caplog.text
    manifest = read_json(tmp_path / "run" / "stack" / "manifest.json")
    assert list(manifest["possibly_in_sample"]) == ["two"]


def test_strict_without_any_honest_member_is_an_error(
    arena: Arena, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each member saw a fold of its own."""
    paths = {}
    for fold, name in enumerate(("one", "two")):
        seen = 2 * np.eye(3)[arena.labels] * (arena.folds == fold)[:, None]
        paths[name] = tmp_path / f"{name}.csv"
        values = arena.logits[name] / 3 + seen[:, None]
        logits_frame(ids_of(arena), values, 0).drop("fold").write_csv(paths[name])
    labels = labels_file(tmp_path, arena)
    pl.read_csv(labels).with_columns(fold=arena.folds).write_csv(labels)
    assert main(["stack", *overrides(tmp_path / "run", labels, **paths), "stack.strict=true"]) == 2
    assert "every member is possibly in-sample (one, two), so none is left" in capsys.readouterr().err


@pytest.mark.slow
def test_strict_leaves_the_leaky_member_out_of_the_stack_its_scores_and_its_submission(
    arena: Arena, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two, labels = tmp_path / "one.csv", tmp_path / "two.csv", labels_file(tmp_path, arena)
    both_orders(arena, "one").write_csv(one)
    seen = arena.logits["two"] / 3 + 3 * np.eye(3)[arena.labels][:, None]
    logits_frame(ids_of(arena), seen, 0).drop("fold").write_csv(two)
    tests = []
    for name, values in (("one", arena.logits["one"] + 0.5), ("two", arena.logits["two"])):
        path = tmp_path / f"test-{name}.csv"
        logits_frame(pl.Series("id", [f"t{i}" for i in range(240)]), values, 0).drop("fold").write_csv(path)
        tests.append(f"stack.test_logits.{name}={path}")
    losses = []
    for run, members in (("alone", {"one": one}), ("strict", {"one": one, "two": two})):
        words = overrides(tmp_path / run, labels, **members)
        assert main(["stack", *words, *tests[: len(members)], "stack.strict=true"]) == 0
        losses.append(read_json(tmp_path / run / "stack" / "manifest.json")["log_loss"])
    assert losses[0] == losses[1]
    manifest = read_json(tmp_path / "strict" / "stack" / "manifest.json")
    assert list(manifest["possibly_in_sample"]) == ["two"]
    assert "stack.strict: left out: two" in caplog.text
    submissions = [(tmp_path / run / "submission.csv").read_bytes() for run in ("alone", "strict")]
    assert submissions[0] == submissions[1]


def test_the_makefile_builds_the_setting_from_logits() -> None:
    command = ["make", "-n", "stack", "PYTHON=python3", "DATA=labels.csv", "LOGITS=one=a.csv two=sub/x=y.parquet"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603
    line = next(line for line in output.splitlines() if "ensemble.command stack" in line)
    *words, option, default = shlex.split(line)[5:]
    assert (option, default) == ("--default", "configs/demo.yaml")  # for a run that remembers no settings
    config = load(default, words)
    assert config.stack.logits == {"one": "a.csv", "two": "sub/x=y.parquet"}
    assert config.run == "runs/logits"
    assert config.data.train == ["labels.csv"]


@pytest.mark.parametrize(
    ("columns", "orders"),
    [
        (["ab_a", "ab_b", "ab_tie"], "one order"),
        (["ba_a", "ba_b", "ba_tie"], "one order"),
        (["winner_model_a", "winner_model_b", "winner_tie"], "one order"),
        (["ab_a", "ab_b", "ab_tie", "ba_a", "ba_b", "ba_tie"], "both orders"),
    ],
)
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_orders_and_scales_are_recognised(tmp_path: Path, columns: list[str], orders: str, kind: str) -> None:
    values = np.random.default_rng(0).normal(0, 2, size=(50, len(columns) // 3, 3))
    values = softmax(values) if kind == "probabilities" else values
    path = tmp_path / "x.csv"
    pl.DataFrame(values.reshape(50, -1), schema=columns).with_columns(id=pl.int_range(50)).write_csv(path)
    file = read_logits(str(path))
    assert file.description.startswith(f"{kind}, {orders}")
    read = file.frame.select(LOGIT_COLUMNS).to_numpy().reshape(50, 2, 3)
    expected = np.broadcast_to(values, (50, 2, 3))
    if kind == "probabilities":
        np.testing.assert_allclose(softmax(read), expected, atol=1e-6)
    else:
        np.testing.assert_allclose(read, expected, rtol=1e-6)


def test_whole_float_ids_meet_whole_ids(arena: Arena, tmp_path: Path) -> None:
    numbers = pl.Series("id", np.arange(240))
    labels, one = tmp_path / "labels.csv", tmp_path / "one.parquet"
    pl.DataFrame({"id": numbers, "label": arena.labels}).write_csv(labels)
    both_orders(arena, "one").with_columns(id=numbers.cast(pl.Float64)).write_parquet(one)
    inputs = inputs_of(tmp_path / "run", labels, one=one)
    order = [int(i) for i in inputs.table["id"]]
    np.testing.assert_array_equal(inputs.logits["one"], arena.logits["one"][order])
    np.testing.assert_array_equal(inputs.labels, arena.labels[order])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.head(237), r"3 battles missing, 0 unknown, 0 repeated.*first missing: "),
        (
            lambda f: pl.concat([f, f.head(2).with_columns(id=pl.lit("zz") + pl.col("id"))]),
            r"2 unknown.*first unknown: zz",
        ),
        (lambda f: pl.concat([f, f.head(2)]), r"2 repeated.*first repeated: b0"),
        (lambda f: f.with_columns(ab_a=pl.lit(float("nan"))), r"row 1, column ab_a: .*(?i:nan).*240 such"),
        (lambda f: f.with_columns(ba_b=pl.lit(float("inf"))), "column ba_b: .*not a finite number"),
        (lambda f: f.with_columns(ba_b=pl.lit("high")), r"column ba_b: 'high' is not a finite number"),
        (lambda f: f.with_columns(ba_b=pl.lit(None)), r"column ba_b: .*240 such"),
        (lambda f: f.drop("id"), "missing column 'id'"),
        (lambda f: f.select("id", x="ab_a"), "no logits found among the columns"),
        (lambda f: f.select("id", a=pl.lit(1), b=pl.lit(0), tie=pl.lit(0)), "every row is a label"),
        (lambda f: f.clear(), "no rows"),
        (
            lambda f: f.select("id", a=pl.when(pl.col("id") == "b7").then(0.9).otherwise(0.2), b=0.3, tie=0.5),
            r"row 8: no probabilities .* 239 of 240 rows are",
        ),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_files_that_do_not_fit_are_refused_with_counts(
    arena: Arena, tmp_path: Path, change: object, message: str, ending: str
) -> None:
    frame = change(both_orders(arena, "one"))
    path = tmp_path / f"one.{ending}"
    frame.write_csv(path) if ending == "csv" else frame.write_parquet(path)
    with pytest.raises(UserError, match=message):
        inputs_of(tmp_path / "run", labels_file(tmp_path, arena), one=path)


def test_logits_of_dropped_battles_are_ignored(arena: Arena, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels, one = labels_file(tmp_path, arena), tmp_path / "one.csv"
    labels.write_text(labels.read_text().replace(f"b7,{arena.labels[7]}", "b7,nobody"))
    both_orders(arena, "one").write_csv(one)
    with pytest.raises(UserError, match="nobody"):
        inputs_of(tmp_path / "run", labels, one=one)
    with caplog.at_level("INFO"):
        inputs = inputs_of(tmp_path / "run", labels, "data.on_bad_row=drop", one=one)
    assert inputs.table.height == 239
    assert "b7" not in inputs.table["id"]
    assert "1 of battles that were left out" in caplog.text


def test_logits_of_battles_outside_the_subset_are_ignored(arena: Arena, tmp_path: Path) -> None:
    labels, one = labels_file(tmp_path, arena), tmp_path / "one.csv"
    both_orders(arena, "one").write_csv(one)
    whole, half = (inputs_of(tmp_path / "run", labels, f"data.subset={share}", one=one) for share in (1.0, 0.5))
    assert (whole.table.height, half.table.height) == (240, 120)
    at = whole.table["id"].is_in(half.table["id"].implode()).to_numpy()
    np.testing.assert_array_equal(half.logits["one"], whole.logits["one"][at])


def test_folds_of_the_files_are_used_and_must_agree(arena: Arena, tmp_path: Path) -> None:
    one = tmp_path / "one.csv"
    both_orders(arena, "one").with_columns(fold=pl.Series(arena.folds)).write_csv(one)
    plain, folded = tmp_path / "plain", tmp_path / "folded"
    for folder in (plain, folded):
        folder.mkdir()
    without, with_folds = labels_file(plain, arena), labels_file(folded, arena, fold=True)
    from_logits, from_labels = inputs_of(tmp_path, without, one=one), inputs_of(tmp_path, with_folds, one=one)
    assert from_logits.origin["inputs"]["folds_from"] == f"from {one}"
    assert from_labels.origin["inputs"]["folds_from"] == "from the labels"
    np.testing.assert_array_equal(from_logits.folds, from_labels.folds)
    fold_of = dict(zip(ids_of(arena), arena.folds, strict=True))
    assert from_logits.folds.tolist() == [fold_of[i] for i in from_logits.table["id"]]
    both_orders(arena, "one").with_columns(fold=pl.Series((arena.folds + 1) % 3)).write_csv(one)
    with pytest.raises(UserError, match=r"disagree on 240 battles, first b0 \(0 and 1\)"):
        inputs_of(tmp_path, with_folds, one=one)


def test_folds_are_assigned_by_prompt_where_there_is_text(arena: Arena, tmp_path: Path) -> None:
    labels, one = tmp_path / "battles.jsonl", tmp_path / "one.csv"
    prompts = [[f"what is the number {i // 4} of the {i // 4} and why?"] for i in range(240)]
    arena.table.with_columns(label=pl.Series(arena.labels), prompt=pl.Series(prompts)).write_ndjson(labels)
    both_orders(arena, "one").write_csv(one)
    inputs = inputs_of(tmp_path / "run", labels, "folds.k=4", one=one)
    assert inputs.origin["inputs"]["text"] is True
    assert set(inputs.folds) == {0, 1, 2, 3}
    assert inputs.table.group_by("prompt").agg(pl.col("fold").n_unique())["fold"].max() == 1


def test_a_run_with_a_stage_one_and_a_call_without_labels_are_refused(arena: Arena, tmp_path: Path) -> None:
    one = tmp_path / "one.csv"
    both_orders(arena, "one").write_csv(one)
    with pytest.raises(UserError, match=r"set data\.train"):
        external_inputs(load("configs/demo.yaml", [f"run={tmp_path}", f"stack.logits.one={one}"]))
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="choose another RUN"):
        inputs_of(tmp_path, labels_file(tmp_path, arena), one=one)
    with pytest.raises(UserError, match=r"member name '\.b'"):
        inputs_of(tmp_path / "new", labels_file(tmp_path, arena), f"stack.logits={{'.b': '{one}'}}")


@pytest.mark.slow
def test_a_million_rows_are_read_and_joined(tmp_path: Path) -> None:
    n, rng = 1_000_000, np.random.default_rng(0)
    ids = pl.Series("id", rng.permutation(n))
    labels, one, two = (tmp_path / name for name in ("labels.parquet", "one.parquet", "two.csv"))
    pl.DataFrame({"id": ids, "label": rng.integers(3, size=n)}).write_parquet(labels)
    logits = rng.normal(size=(n, 2, 3)).astype(np.float32)
    logits_frame(ids, logits, 0).drop("fold").write_parquet(one)
    shuffled = logits_frame(ids, logits, 0).drop("fold").sample(fraction=1, shuffle=True, seed=0)
    shuffled.write_csv(two, float_precision=9)
    inputs = inputs_of(tmp_path / "run", labels, one=one, two=two)
    np.testing.assert_allclose(inputs.logits["one"], inputs.logits["two"], atol=1e-6)


def test_a_battle_that_the_labels_repeat_keeps_its_logits_and_one_row_a_vote_gives_soft_labels(
    arena: Arena, tmp_path: Path
) -> None:
    logits = tmp_path / "logits.csv"
    both_orders(arena, "one").write_csv(logits)
    labels = labels_file(tmp_path, arena)
    rows = pl.read_csv(labels)
    pl.concat([rows, rows.head(3)]).write_csv(labels)
    repeated = inputs_of(tmp_path / "repeated", labels, "data.on_bad_row=drop", strong=logits)
    assert repeated.table["id"].sort().to_list() == ids_of(arena).sort().to_list()
    other = rows.head(3).with_columns(label=(pl.col("label") + 1) % 3)
    pl.concat([rows, other]).write_csv(labels)
    voted = inputs_of(tmp_path / "voted", labels, f"data.votes=[{labels}]", strong=logits)
    halves = voted.table.filter(pl.col("soft_a").is_in([0.5]) | pl.col("soft_b").is_in([0.5]))
    assert halves["id"].sort().to_list() == ids_of(arena).head(3).sort().to_list()
