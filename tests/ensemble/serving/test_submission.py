"""Submission: files of any size in chunks, resuming, and the check of the written file."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ensemble.__main__ import main as ensemble_main
from ensemble.serving import submission
from ensemble.serving.chunks import chunks
from ensemble.serving.submission_file import check_submission, write_submission
from ensemble.stacking.stage import load_inputs, load_stack
from oof.classes import WINNER_COLUMNS
from oof.common.errors import UserError
from oof.common.logits_format import COUNT_COLUMNS, logits_of
from oof.config.stored import load_for_run
from oof.data import chunks as file_chunks
from oof.jobs.dataset import resolve_data
from tests.fixtures.command_line import digests
from tests.fixtures.demo_run import small_arguments


def part(folder: Path, ids: list[str], probs: np.ndarray) -> Path:
    path = folder / f"{len(list(folder.iterdir()))}.parquet"
    pl.DataFrame({"id": ids} | {name: probs[:, i] for i, name in enumerate(WINNER_COLUMNS)}).write_parquet(path)
    return path


def test_a_submission_has_the_rows_of_its_parts_in_order(tmp_path: Path) -> None:
    probs = np.random.default_rng(0).dirichlet(np.ones(3), 5)
    (tmp_path / "parts").mkdir()
    parts = [part(tmp_path / "parts", ["7", "a,b"], probs[:2]), part(tmp_path / "parts", ["3", "1", "0"], probs[2:])]
    assert write_submission(tmp_path / "submission.csv", parts) == 5
    frame = pl.read_csv(tmp_path / "submission.csv", glob=False, schema_overrides={"id": pl.String})
    assert frame["id"].to_list() == ["7", "a,b", "3", "1", "0"]
    np.testing.assert_array_equal(frame.drop("id").to_numpy(), probs)


@pytest.mark.parametrize(
    ("ids", "row", "message"),
    [
        (["a", "a"], [0.2, 0.3, 0.5], "more than once"),
        (["a", "b"], [0.2, 0.3, float("nan")], "line 2"),
        (["a", "b"], [0.2, 0.3, 0.6], "sums to 1.1"),
        (["a", "b"], [-0.1, 0.5, 0.6], "line 2"),
    ],
)
def test_an_invalid_result_does_not_replace_an_older_submission(
    tmp_path: Path, ids: list[str], row: list[float], message: str
) -> None:
    (tmp_path / "parts").mkdir()
    path = part(tmp_path / "parts", ids, np.array([row, [0.2, 0.3, 0.5]]))
    (tmp_path / "submission.csv").write_text("old")
    with pytest.raises(UserError, match=message):
        write_submission(tmp_path / "submission.csv", [path])
    assert (tmp_path / "submission.csv").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["parts", "submission.csv"]


def test_the_winner_is_the_more_probable_of_a_and_b_whatever_the_tie(tmp_path: Path) -> None:
    probs = np.array([[0.2, 0.1, 0.7], [0.1, 0.2, 0.7], [0.6, 0.4, 0.0], [0.3, 0.7, 0.0], [0.5, 0.5, 0.0]])
    (tmp_path / "parts").mkdir()
    parts = [part(tmp_path / "parts", ["7", "a,b"], probs[:2]), part(tmp_path / "parts", ["3", "1", "0"], probs[2:])]
    assert write_submission(tmp_path / "submission.csv", parts, "winner") == 5
    with (tmp_path / "submission.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    names = ["model_a", "model_b", "model_a", "model_b", "model_a"]
    assert rows == [["id", "winner"], *([i, name] for i, name in zip(["7", "a,b", "3", "1", "0"], names, strict=True))]


def test_winners_of_invalid_probabilities_do_not_replace_an_older_submission(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    path = part(tmp_path / "parts", ["a"], np.array([[float("nan"), 0.5, 0.5]]))
    (tmp_path / "submission.csv").write_text("old")
    with pytest.raises(UserError, match="line 2 has no finite probabilities"):
        write_submission(tmp_path / "submission.csv", [path], "winner")
    assert (tmp_path / "submission.csv").read_text() == "old"


def test_a_file_of_winners_with_another_value_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("id,winner\na,model_a\nb,tie\n")
    with pytest.raises(UserError, match="line 3 has \\['tie'\\], not model_a or model_b"):
        check_submission(tmp_path / "s.csv", pl.Series(["a", "b"]), "winner")


def test_another_format_rewrites_the_submission(small_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    assert ensemble_main(["predict", *small_arguments(run, "predict.format=winner")]) == 0
    before, after = (
        pl.read_csv(small_run / "submission.csv", glob=False),
        pl.read_csv(run / "submission.csv", glob=False),
    )
    names = np.where(before["winner_model_b"] > before["winner_model_a"], "model_b", "model_a")
    assert after.to_dict(as_series=False) == {"id": before["id"].to_list(), "winner": names.tolist()}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["id,x"], "columns"),
        (["id," + ",".join(WINNER_COLUMNS), "a,1,0,0"], "does not have 2 rows"),
        (["id," + ",".join(WINNER_COLUMNS), "a,1,0,0", "b,1,0,0", "c,1,0,0"], "does not have 2 rows"),
        (["id," + ",".join(WINNER_COLUMNS), "b,1,0,0", "a,1,0,0"], "line 2 has id"),
        (["id," + ",".join(WINNER_COLUMNS), "a,1,0,0", "b,1,0"], "line 3"),
    ],
)
def test_a_file_with_other_rows_than_the_submission_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    (tmp_path / "s.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=message):
        check_submission(tmp_path / "s.csv", pl.Series(["a", "b"]))


def test_the_chunk_size_changes_nothing_and_a_killed_prediction_resumes(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    before = pl.read_csv(run / "submission.csv", glob=False)
    (run / "submission.json").unlink()
    monkeypatch.setattr(file_chunks, "WHOLE_BYTES", 0)
    scored: list[int] = []
    score = submission._student_scorer

    def stopping(config: object) -> submission.Scorer:
        inner = score(config)  # type: ignore[arg-type]

        def scorer(table: pl.DataFrame) -> np.ndarray:
            if len(scored) == 1:
                scored.append(0)
                raise KeyboardInterrupt
            scored.append(table.height)
            return inner(table)

        return scorer

    monkeypatch.setattr(submission, "_student_scorer", stopping)
    assert ensemble_main(["predict", *small_arguments(run, "predict.chunk=5")]) == 130
    assert (run / "submission.csv").read_bytes() == (small_run / "submission.csv").read_bytes()
    assert ensemble_main(["predict", *small_arguments(run, "predict.chunk=5")]) == 0
    assert scored == [5, 0, 5, 2]
    after = pl.read_csv(run / "submission.csv", glob=False)
    assert after["id"].equals(before["id"])
    np.testing.assert_allclose(after.drop("id").to_numpy(), before.drop("id").to_numpy(), atol=1e-6)
    assert not (run / "predict").exists()


def test_the_ensemble_brings_each_fold_job_to_one_scale_before_their_mean(small_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    assert ensemble_main(["predict", f"run={run}", "predict.model=ensemble"]) == 0
    config = load_for_run(None, [f"run={run}"])
    stack = load_stack(config, load_inputs(config))
    [table] = chunks(config, resolve_data(config), tmp_path)
    logits = {}
    for name, constants in stack.job_scales.members.items():
        frames = [pl.read_parquet(next(run.glob(f"oof/{name}/test/*/fold-{k}.parquet")), glob=False) for k in range(3)]
        logits[name] = np.mean([constants[k].apply(logits_of(frame)) for k, frame in enumerate(frames)], axis=0)
        stored = pl.read_parquet(next(run.glob(f"oof/{name}/test/*/logits.parquet")), glob=False)
        assert np.abs(logits[name] - logits_of(stored)).max() > 0.01  # the plain mean
    counts = pl.read_parquet(next(run.glob("oof/gemma2/test/*/logits.parquet")), glob=False).select(COUNT_COLUMNS)
    expected = stack.predict(stack.design(table.with_columns(*counts), logits))
    made = pl.read_csv(run / "submission.csv", glob=False).select(WINNER_COLUMNS).to_numpy()
    np.testing.assert_allclose(made, expected, atol=1e-6)


def test_predict_prints_files_rows_model_and_columns(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, test = tmp_path / "run ü", tmp_path / "two words.csv"
    shutil.copytree(small_run, run)
    shutil.copy(run / "synth" / "test.csv", test)
    assert ensemble_main(["predict", f"run={run}", f"data.test=[{test}]", "predict.model=ensemble"]) == 0
    out = capsys.readouterr().out
    assert f"predict: written: 12 battles of {test} by the ensemble, " in out
    assert f"predict: {run}/submission.csv, columns id, winner_model_a, winner_model_b, winner_tie" in out.splitlines()
    assert not (run / "submission-1.csv").exists()  # the ids are the same
    capsys.readouterr()
    assert ensemble_main(["predict", f"run={run}"]) == 0
    assert f"predict: up to date, nothing to do: 12 battles of {test} by the ensemble" in capsys.readouterr().out


def test_a_submission_of_other_ids_is_replaced_only_on_request_and_kept(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, test = tmp_path / "run", tmp_path / "fewer.csv"
    shutil.copytree(small_run, run)
    pl.read_csv(run / "synth" / "test.csv", glob=False).head(5).write_csv(test)
    old, before = (run / "submission.csv").read_bytes(), digests(run)
    assert ensemble_main(["predict", f"run={run}", f"data.test=[{test}]"]) == 2
    assert "holds predictions of 12 battles, of which" in capsys.readouterr().err
    assert digests(run) == before
    assert ensemble_main(["predict", f"run={run}", f"data.test=[{test}]", "--redo"]) == 0
    assert f"kept in {run / 'submission-1.csv'}" in capsys.readouterr().out
    assert (run / "submission-1.csv").read_bytes() == old
    assert pl.read_csv(run / "submission.csv", glob=False).height == 5


def test_equal_ids_with_other_texts_are_another_test_set(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, test, copy = tmp_path / "Läufe 1" / "run", tmp_path / "other texts.csv", tmp_path / "same texts.csv"
    shutil.copytree(small_run, run)
    table = pl.read_csv(run / "synth" / "test.csv", glob=False)
    table.with_columns(prompt=pl.col("prompt").reverse()).write_csv(test)
    table.reverse().write_csv(copy)
    old, before = (run / "submission.csv").read_bytes(), digests(run)
    words = [f"run={run}", "predict.chunk=5"]
    assert ensemble_main(["predict", *words, f"data.test={test}"]) == 2
    assert f"predictions of 12 battles, whose ids {test} has with other texts" in capsys.readouterr().err
    assert digests(run) == before
    assert ensemble_main(["predict", *words, f"data.test={test}", "--redo"]) == 0
    assert (run / "submission-1.csv").read_bytes() == old
    assert ensemble_main(["predict", *words, f"data.test={copy}", "--redo"]) == 0
    assert ensemble_main(["predict", *words, f"data.test={run / 'synth' / 'test.csv'}"]) == 0  # other order, other name
    assert not (run / "submission-3.csv").exists()


def test_the_same_battles_by_another_model_are_predicted_without_asking(small_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run ü"
    shutil.copytree(small_run, run)
    for model in ("ensemble", "student"):
        assert ensemble_main(["predict", f"run={run}", f"predict.model={model}"]) == 0
    assert (run / "submission.csv").read_bytes() == (small_run / "submission.csv").read_bytes()
    assert not (run / "submission-1.csv").exists()


def test_a_killed_call_that_replaced_a_submission_keeps_the_earlier_one_once(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, test = tmp_path / "run", tmp_path / "other texts.csv"
    shutil.copytree(small_run, run)
    pl.read_csv(run / "synth" / "test.csv", glob=False).with_columns(prompt=pl.col("prompt").reverse()).write_csv(test)
    old = (run / "submission.csv").read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(submission, "remember", killed)  # the submission is written, its manifest is not
        assert ensemble_main(["predict", f"run={run}", f"data.test={test}", "--redo"]) == 130
    assert ensemble_main(["predict", f"run={run}", f"data.test={test}"]) == 0
    assert (run / "submission-1.csv").read_bytes() == old
    assert not (run / "submission-2.csv").exists()


def test_a_test_file_that_cannot_be_read_leaves_nothing_behind(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, test = tmp_path / "run", tmp_path / "test.csv"
    shutil.copytree(small_run, run)
    (run / "submission.csv").unlink()
    (run / "submission.json").unlink()
    test.write_text("id,prompt,response_a,response_b\n1,p,a,b\n2,p,a,b\n3,p,a,b\n7,only,three\n", encoding="utf-8")
    before = digests(run)
    assert ensemble_main(["predict", f"run={run}", f"data.test=[{test}]"]) == 2
    assert "row 4" in capsys.readouterr().err
    assert digests(run) == before
