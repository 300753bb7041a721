"""Own logits from files to a checked submission, through the command line.

The working folder is not the repository, and its path has a space and a letter that is not ASCII.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.special import log_softmax, softmax

from ensemble.stacking.stage import load_inputs, load_stack
from oof.classes import WINNER_COLUMNS
from oof.common.atomic_files import sealed, write_json
from oof.common.logits_format import logits_frame
from oof.config.stored import load_for_run
from tests.fixtures.arenas import make_arena
from tests.fixtures.command_line import call, digests
from tests.fixtures.demo_run import ROOT

N, N_TEST = 240, 60
ARENA = make_arena(N + N_TEST)
FILES = "'stack.logits=one=one.csv two=two.csv'"
TEST = "'stack.test_logits=one=new one.csv two=new two.csv'"
QUICK = f"--default {ROOT}/configs/demo.yaml stack.trials=1 stack.rounds=5 stack.workers=1 stack.final=log_pool"
RUN = "run=runs/logits"


def rows(name: str, part: slice) -> pl.DataFrame:
    """Return some battles' logits of a member in the open format, without folds."""
    return logits_frame(ARENA.table["id"][part], ARENA.logits[name][part], 0).drop("fold")


TRAIN, NEW = slice(0, N), slice(N, N + N_TEST)


def write(folder: Path) -> None:
    """Write labels without texts, and each member's logits of the labelled and of new battles."""
    labels = pl.DataFrame({"id": ARENA.table["id"][TRAIN], "label": ARENA.labels[TRAIN]})
    labels.with_columns(part=pl.Series(ARENA.folds[TRAIN])).write_csv(folder / "labels.csv")
    for name in ("one", "two"):
        rows(name, TRAIN).sample(fraction=1, shuffle=True, seed=1).write_csv(folder / f"{name}.csv")
        rows(name, NEW).write_csv(folder / f"new {name}.csv")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working folder: a run starts its relative paths where it was made, so it always has the same path."""
    folder = tmp_path_factory.mktemp("l'été") / "mes fichiers"
    folder.mkdir()
    write(folder)
    return folder


@pytest.fixture
def here(finished: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Path:
    """The working folder with the files and a finished run: stack and submission by one command."""
    kept = finished.with_name("kept")
    if not kept.is_dir():
        monkeypatch.chdir(finished)
        done = call(f"ensemble stack {RUN} data.train=labels.csv {FILES} {TEST} {QUICK} folds.column=part", capfd)
        assert done.status == 0, done.text
        assert "predict: written: 60 battles of new one.csv by the ensemble" in done.text
        shutil.copytree(finished, kept)
    shutil.rmtree(finished)
    shutil.copytree(kept, finished)
    monkeypatch.chdir(finished)
    pl.read_csv("labels.csv")[1:].write_csv("other.csv")
    return finished


def submission(folder: Path) -> pl.DataFrame:
    return pl.read_csv(folder / "runs/logits/submission.csv", schema_overrides={"id": pl.String})


def probabilities(folder: Path) -> np.ndarray:
    return submission(folder).select(WINNER_COLUMNS).to_numpy()


def pooled(folder: Path, part: slice) -> np.ndarray:
    """The final stack computed by hand from its two JSON files: a log-linear pool and a temperature."""
    model = folder / "runs/logits/stack/model"
    pool, calibrator = (json.loads((model / f"{name}.json").read_text()) for name in ("combiner", "calibrator"))
    logits = sum(
        weight * log_softmax(ARENA.logits[name][part].astype(np.float64).mean(axis=1), axis=1)
        for name, weight in zip(("one", "two"), pool["weights"], strict=True)
    )
    return softmax((logits + np.array([0, 0, pool["tie"]])) / calibrator["temperature"], axis=1)


def refused(command: str, capfd: pytest.CaptureFixture[str]) -> str:
    """Return the answer of a call that is refused in one sentence, writes nothing and sends nobody to stage one."""
    before = digests(Path())
    answer = call(command, capfd)
    assert answer.status == 2, answer.text
    errors = [line for line in answer.text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, answer.text
    assert "make oof" not in errors[0]
    after = digests(Path())
    assert {name for name in {*before, *after} if before.get(name) != after.get(name) and ".lock" not in name} == set()
    return errors[0]


def test_one_command_makes_a_stack_and_a_checked_submission_in_the_order_of_the_logits(here: Path) -> None:
    made = submission(here)
    assert made.columns == ["id", *WINNER_COLUMNS]
    assert made["id"].to_list() == ARENA.table["id"][NEW].to_list()
    np.testing.assert_allclose(probabilities(here), pooled(here, NEW), atol=1e-6)
    manifest = json.loads((here / "runs/logits/stack/manifest.json").read_text())
    assert manifest["inputs"]["folds_from"] == "from the labels"


def test_training_rows_as_test_logits_under_other_ids_get_the_final_stacks_probabilities(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        rows(name, TRAIN).with_columns(id="new " + pl.col("id")).write_csv(f"again {name}.csv")
    words = f"ensemble predict {RUN} 'stack.test_logits=one=again one.csv two=again two.csv'"
    assert "holds predictions of 60 battles" in refused(words, capfd)
    done = call(f"{words} --redo", capfd)
    assert done.status == 0, done.text
    assert "kept in" in done.text
    np.testing.assert_allclose(probabilities(here), pooled(here, TRAIN), atol=1e-6)


def test_prediction_is_repeated_only_for_other_logits_and_stacks_nothing_again(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stacked, before = digests(Path("runs/logits/stack")), (here / "runs/logits/submission.csv").read_bytes()
    assert "up to date" in call(f"ensemble predict {RUN}", capfd).text
    rows("one", NEW).reverse().with_columns(ab_a=pl.col("ab_a") + 1).write_csv("new one.csv")
    done = call(f"ensemble predict {RUN}", capfd)
    assert "predict: written: 60 battles" in done.text
    assert (here / "runs/logits/submission.csv").read_bytes() != before
    assert submission(here)["id"].to_list() == ARENA.table["id"][NEW].to_list()[::-1]
    assert "stack: up to date" in call(f"ensemble stack {RUN}", capfd).text
    assert digests(Path("runs/logits/stack")) == stacked


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_rows_of_several_fold_jobs_are_averaged_and_one_order_is_used_for_both(
    here: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """The mean of three jobs' logits, of one order, in rows of any order."""
    caplog.set_level("INFO")
    expected = {}
    for name in ("one", "two"):
        jobs = ARENA.logits[name][NEW, 0] + np.random.default_rng(0).normal(0, 0.5, (3, N_TEST, 3))
        expected[name] = np.log(softmax(jobs, axis=2)).mean(axis=0)
        values = softmax(jobs, axis=2) if kind == "probabilities" else jobs
        frames = [
            pl.DataFrame(values[fold], schema=["a", "b", "tie"]).with_columns(id=ARENA.table["id"][NEW], fold=fold)
            for fold in range(3)
        ]
        pl.concat(frames).sample(fraction=1, shuffle=True, seed=2).write_csv(f"jobs {name}.csv")
    done = call(f"ensemble predict {RUN} 'stack.test_logits=one=jobs one.csv two=jobs two.csv'", capfd)
    assert done.status == 0, done.text
    assert "several rows a battle averaged: 60 battles" in caplog.text
    assert "of both orders in stack.logits, of one order in stack.test_logits" in caplog.text
    model = here / "runs/logits/stack/model"
    pool, calibrator = (json.loads((model / f"{name}.json").read_text()) for name in ("combiner", "calibrator"))
    logits = sum(w * expected[name] for name, w in zip(("one", "two"), pool["weights"], strict=True))
    by_hand = softmax((logits + np.array([0, 0, pool["tie"]])) / calibrator["temperature"], axis=1)
    made = submission(here).sort(pl.col("id").str.slice(1).cast(pl.Int64)).select(WINNER_COLUMNS).to_numpy()
    np.testing.assert_allclose(made, by_hand, atol=1e-6)


@pytest.mark.slow
def test_each_fold_job_is_brought_to_one_scale_before_their_mean(
    here: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    scale, by_job = np.array([0.5, 1, 2], dtype=np.float32), {}
    for name in ("one", "two"):
        train = ARENA.logits[name][TRAIN] * scale[ARENA.folds[TRAIN]][:, None, None]
        logits_frame(ARENA.table["id"][TRAIN], train, 0).drop("fold").write_csv(f"uneven {name}.csv")
        by_job[name] = {k: ARENA.logits[name][NEW] * scale[k] for k in range(3)}
        frames = [logits_frame(ARENA.table["id"][NEW], values, k) for k, values in by_job[name].items()]
        pl.concat(frames).sample(fraction=1, shuffle=True, seed=2).write_csv(f"jobs {name}.csv")
    files = "'stack.logits=one=uneven one.csv two=uneven two.csv' 'stack.test_logits=one=jobs one.csv two=jobs two.csv'"
    done = call(f"ensemble stack run=runs/uneven data.train=labels.csv {files} {QUICK} folds.column=part", capfd)
    assert done.status == 0, done.text
    assert "jobs one.csv: each fold job is brought to the average scale before the mean" in caplog.text
    config = load_for_run(None, ["run=runs/uneven"])
    stack = load_stack(config, load_inputs(config))
    scaled, plain = {}, {}
    for name, jobs in by_job.items():
        constants = stack.job_scales.members[name]
        scaled[name] = np.mean([constants[k].apply(values) for k, values in jobs.items()], axis=0)
        plain[name] = np.mean(list(jobs.values()), axis=0)
    texts = [pl.lit([""]).alias(name) for name in ("prompt", "response_a", "response_b")]
    table = ARENA.table[NEW].with_columns(texts)
    rows_of = pl.read_csv("runs/uneven/submission.csv").with_columns(at=pl.col("id").str.slice(1).cast(pl.Int64))
    made = rows_of.sort("at").select(WINNER_COLUMNS).to_numpy()
    np.testing.assert_allclose(made, stack.predict(stack.design(table, scaled)), atol=1e-5)
    assert np.abs(made - stack.predict(stack.design(table, plain))).max() > 0.01
    other = pl.read_csv("jobs one.csv").with_columns(pl.col("fold") + 1)
    other.write_csv("jobs one.csv")
    assert call("ensemble predict run=runs/uneven", capfd).status == 0
    assert "fold jobs 1, 2, 3 are averaged as they are, because those of stack.logits are 0, 1, 2" in caplog.text


def test_a_file_of_test_ids_gives_the_order_and_must_have_the_same_ids(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ids = pl.DataFrame({"id": ARENA.table["id"][NEW].reverse()})
    ids.write_csv("test.csv")
    assert call(f"ensemble predict {RUN} data.test=test.csv", capfd).status == 0
    assert submission(here)["id"].to_list() == ids["id"].to_list()
    pl.concat([ids[2:], pl.DataFrame({"id": ["x1", "x2", "x3", "x4"]})]).write_csv("test.csv")
    said = refused(f"ensemble predict {RUN} data.test=test.csv", capfd)
    assert "new one.csv lacks 4 ids (x1, x2, x3, …)" in said
    assert "new one.csv has 2 ids (b298, b299) that test.csv does not have" in said


WRONG_MEMBERS = {
    "'stack.test_logits=one=new one.csv'": 'the members are one, two; give one file to each: TEST_LOGITS="one=FILE',
    "'stack.test_logits=one=new one.csv three=new two.csv'": "names one, three, but the members are one, two",
    "'stack.test_logits=one=new one.csv two=new one.csv'": "hold the same logits",
    "'stack.test_logits=one=new one.csv two=no.csv'": "no.csv: no such file",
    "'stack.test_logits=one=one.csv two=two.csv'": "the stack learned from their verdicts",
    "'stack.test_logits=one=new one.csv two=labels.csv'": "labels.csv: no logits found",
    "'stack.test_logits=new one.csv'": "stack.test_logits",
    "data.train=other.csv": "begin with 'make stack'",
    "stack.test_logits={}": "needs the members' logits of the test battles",
}


@pytest.mark.parametrize("words", WRONG_MEMBERS)
def test_wrong_members_and_files_are_refused_and_nothing_is_written(
    here: Path, capfd: pytest.CaptureFixture[str], words: str
) -> None:
    assert WRONG_MEMBERS[words] in refused(f"ensemble predict {RUN} {words}", capfd)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (lambda f: pl.concat([f, f[:2]]), "2 ids (b240, b241) occur more than once with the same id"),
        (lambda f: f[3:], "new two.csv lacks 3 ids (b240, b241, b242)"),
        (lambda f: f.with_columns(id=pl.col("id").replace("b240", "z")), "new two.csv has 1 ids (z)"),
        (lambda f: f.rename({"ab_a": "logit_a", "ba_a": "logit_b"}), "no logits found among the columns"),
        (lambda f: f.rename({"id": "battle"}), "missing column 'id'"),
        (lambda f: f.with_columns(ba_tie=pl.lit("nan")), "not a finite number"),
        (lambda f: pl.concat([f.with_columns(fold=0), f[1:].with_columns(fold=1)]), "1 battles (b240) have fewer rows"),
        (lambda f: pl.concat([f.with_columns(fold=0), f[:1].with_columns(fold=0)]), "with the same id and fold"),
    ],
)
def test_a_bad_file_of_one_member_is_refused_with_counts_and_first_ids(
    here: Path, capfd: pytest.CaptureFixture[str], changed: object, says: str
) -> None:
    changed(rows("two", NEW)).write_csv("new two.csv")
    assert says in refused(f"ensemble predict {RUN}", capfd)
    assert says in refused(f"ensemble stack {RUN}", capfd)


def test_labelled_battles_in_place_of_test_battles_are_refused_or_named(
    here: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Other logits under all of the labelled ids are in-sample; under some of them, the numbering may be the same."""
    for name in ("one", "two"):
        frame = rows(name, TRAIN).with_columns(pl.col("ab_a") + 0.1)
        frame.write_csv(f"full {name}.csv")
        frame[:30].write_csv(f"part {name}.csv")
        rows(name, TRAIN)[:30].write_csv(f"copy {name}.csv")
    words = "ensemble predict run=runs/logits 'stack.test_logits=one=EACH one.csv two=EACH two.csv' --redo"
    said = refused(words.replace("EACH", "full"), capfd)
    assert "240 ids (b0, b1, b2, …) of the test logits are ids of labelled battles (data.train), which are all" in said
    assert "copy one.csv) are those of stack.logits" in refused(words.replace("EACH", "copy"), capfd)
    done = call(words.replace("EACH", "part"), capfd)
    assert done.status == 0
    assert "30 ids (b0, b1, b2, …) of the test logits are ids of labelled battles" in caplog.text
    assert "their predictions are in-sample" in caplog.text


def test_swapped_files_of_members_of_other_scales_are_named(
    here: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rows("one", NEW).reverse().write_csv("new one.csv")
    assert call(f"ensemble predict {RUN}", capfd).status == 0
    assert "swapped" not in caplog.text
    assert call(f"ensemble predict {RUN} 'stack.test_logits=one=new two.csv two=new one.csv'", capfd).status == 0
    assert (
        "files may be swapped, by the spread of their logits: new two.csv (given to one) looks like two" in caplog.text
    )


@pytest.mark.slow
def test_a_stack_with_texts_needs_those_of_the_test_battles(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The stack of texts predicts as the final stack does on the same battles; without their texts it is refused."""
    table = ARENA.table.with_columns(pl.col("response_a", "response_b").list.join(""))
    words = np.random.default_rng(0).integers(1000, 9999, (table.height, 8))
    prompts = pl.Series([" ".join(map(str, row)) for row in words])
    table = table.with_columns(prompt=prompts, label=pl.Series(ARENA.labels))
    table[TRAIN].write_csv("texts.csv")
    table[NEW].drop("label").reverse().write_csv("test.csv")
    stack = f"run=runs/texts data.train=texts.csv {FILES} {QUICK}".replace("log_pool", "lightgbm")
    assert "set data.test (TEST=test.csv)" in refused(f"ensemble stack {stack} {TEST}", capfd)
    done = call(f"ensemble stack {stack} {TEST} data.test=test.csv", capfd)
    assert done.status == 0, done.text
    made = pl.read_csv("runs/texts/submission.csv")
    assert made["id"].to_list() == ARENA.table["id"][NEW].to_list()[::-1]
    assert any(
        name.startswith("log_chars")
        for name in json.loads(Path("runs/texts/stack/manifest.json").read_text())["features"]
    )
    losses = -np.log(made.reverse().select(WINNER_COLUMNS).to_numpy()[np.arange(N_TEST), ARENA.labels[NEW]])
    assert losses.mean() < 1.0
    for verb in ("ensemble table run=", "ensemble ablate run=", "ensemble report ", "oof audit "):
        done = call(f"{verb}runs/texts", capfd)
        assert done.status == 0, done.text
    assert "prompts compared exactly with all" in done.text
    page = Path("runs/texts/report/index.html").read_text()
    assert "Length bias" in page
    assert "have no texts" not in page
    pl.DataFrame({"id": ARENA.table["id"][NEW]}).write_csv("test.csv")
    assert "has no texts" in refused("ensemble predict run=runs/texts --redo", capfd)


def test_test_logits_have_no_place_in_a_run_of_own_fold_jobs(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """There they would be ignored."""
    Path("runs/other/distill").mkdir(parents=True)
    Path("runs/other/distill/manifest.json").write_text('{"key": ""}')
    said = refused(f"ensemble predict {ROOT}/configs/demo.yaml run=runs/other {TEST}", capfd)
    assert "belongs to a RUN with stack.logits" in said


@pytest.mark.slow
def test_two_classes_give_a_submission_of_winners(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    labels = pl.read_csv("labels.csv").filter(pl.col("label") != 2)
    labels.write_csv("decided.csv")
    for name in ("one", "two"):
        rows(name, TRAIN).join(labels, on="id", how="semi").write_csv(f"decided {name}.csv")
    files = "'stack.logits=one=decided one.csv two=decided two.csv'"
    words = f"ensemble stack run=runs/two data.train=decided.csv {files} {TEST} {QUICK} predict.format=winner"
    done = call(words, capfd)
    assert done.status == 0, done.text
    made = pl.read_csv("runs/two/submission.csv")
    assert made.columns == ["id", "winner"]
    assert made.height == N_TEST


@pytest.mark.slow
def test_table_report_ablation_and_audit_work_on_own_logits_without_texts(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each is one command that needs RUN alone; what needs texts or models is left out or said."""
    for verb in ("ensemble table run=", "ensemble ablate run=", "ensemble report ", "oof audit "):
        done = call(f"{verb}runs/logits", capfd)
        assert done.status == 0, done.text
        assert "make oof" not in done.text
    assert "predictions: the logits of one, two were made elsewhere" in done.text
    assert "ok        groups across folds: 0 of 240 groups" in done.text
    metrics = json.loads(Path("runs/logits/metrics.json").read_text())["log_loss"]
    predictions = pl.read_parquet("runs/logits/stack/predictions.parquet").sort("id")
    labels = pl.read_csv("labels.csv").sort("id")["label"].to_numpy()
    for name in ("calibrated", "stack", "mean", "prior"):
        probs = predictions.select(f"{name}|{c}" for c in "ab").to_numpy()
        true = np.column_stack([probs, 1 - probs.sum(axis=1)])[np.arange(N), labels]
        assert metrics[name]["value"] == pytest.approx(-np.log(true).mean(), abs=1e-6)
    report = json.loads(Path("runs/logits/report/report.json").read_text())
    page = Path("runs/logits/report/index.html").read_text()
    assert [row["predictor"] for row in report["summary"]["table"]][-3:] == ["mean", "stack", "calibrated"]
    assert report["summary"]["submit"] == {
        "choice": "calibrated",
        "command": 'arena-distill predict --run runs/logits "stack.test_logits=one=FILE two=FILE"',
        "reason": "it is the only model of this run",
    }
    assert report["stack"]["ablations"]["without"]
    assert report["quality"] is None
    assert report["position"]["length"] is None
    assert "The battles have no texts" in page
    assert "identical answers" not in page
    assert "make oof" not in page


@pytest.mark.parametrize("verb", ["ensemble distill run=runs/logits", "ensemble seen runs/logits --corpus labels.csv"])
def test_what_needs_models_or_battles_says_why_it_does_not_apply(
    here: Path, capfd: pytest.CaptureFixture[str], verb: str
) -> None:
    assert "stacks logits that were made elsewhere" in refused(verb, capfd)


def test_the_audit_finds_folds_that_separate_a_group_and_a_member_that_looks_in_sample(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = Path("runs/logits/stack/battles.parquet")
    table = pl.read_parquet(path)
    table.with_columns(group=pl.col("group") // 2).write_parquet(path)
    manifest = path.with_name("manifest.json")
    content = json.loads(manifest.read_text())
    write_json(manifest, sealed(content | {"possibly_in_sample": {"two": ["it knows too much"]}}))
    done = call("oof audit runs/logits", capfd)
    assert done.status == 1
    assert "violated  groups across folds" in done.text
    assert "two is possibly in-sample: it knows too much" in done.text
    path.unlink()
    assert "run 'make stack' with this RUN first" in refused("oof audit runs/logits", capfd)
