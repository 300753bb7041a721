"""Battles and folds in a Python shell: equality with a run, pandas and polars frames, and messages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import oof
from oof import UserError, group_folds, read_battles
from oof.__main__ import main
from oof.data.schemas import TABLE_SCHEMA
from oof.data.synth import write_arena
from tests.fixtures.demo_run import ROOT
from tests.fixtures.small_tables import WORDS

OURS = {"prompt": "question", "response_a": "first", "response_b": "second", "winner": "vote"}
VERDICTS = {"left": "a", "right": "b", "same": "tie"}
LIBRARIES = ("polars", "pandas")


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of 90 battles, many with near-duplicate prompts."""
    return write_arena(tmp_path_factory.mktemp("arena"), 90, 3, 8)["train"]


def frame(library: str, columns: dict[str, list[Any]]) -> Any:
    return pytest.importorskip(library).DataFrame(columns)


def mapped_columns(csv: Path) -> dict[str, list[Any]]:
    """Return the battles under other names, with lists as cells and verdicts in words."""
    table = read_battles(csv)
    words = list(VERDICTS)
    columns = {theirs: table[ours].to_list() for ours, theirs in OURS.items() if ours != "winner"}
    return {"id": table["id"].to_list(), **columns, "vote": [words[label] for label in table["label"]]}


def folds_of_a_run(csv: Path, run: Path, *settings: str) -> dict[str, int]:
    words = [str(ROOT / "configs" / "demo.yaml"), f"run={run}", f"data.train=[{csv}]", *settings]
    assert main(["prepare", *words]) == 0
    folds = pl.read_parquet(run / "folds.parquet")
    return dict(zip(folds["id"], folds["fold"], strict=True))


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_frame_of_ours_has_the_folds_of_a_run(csv: Path, tmp_path: Path, library: str) -> None:
    data = pytest.importorskip(library).read_csv(csv)
    folds = group_folds(data, k=4, seed=7)
    assert (folds.dtype, folds.shape) == (np.int64, (90,))
    expected = folds_of_a_run(csv, tmp_path / "run", "folds.k=4", "seed=7")
    assert folds.tolist() == [expected[str(name)] for name in data["id"]]
    assert len(set(folds.tolist())) == 4


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_frame_with_mapped_columns_has_the_same_folds(csv: Path, library: str) -> None:
    folds = group_folds(frame(library, mapped_columns(csv)), 3, OURS, VERDICTS)
    np.testing.assert_array_equal(folds, group_folds(read_battles(csv), 3))


def test_folds_follow_their_rows_and_not_a_column_of_folds(csv: Path) -> None:
    battles = pl.read_csv(csv)
    folds, order = group_folds(battles, 3), np.random.default_rng(0).permutation(90)
    np.testing.assert_array_equal(group_folds(battles[order.tolist()], 3), folds[order])
    np.testing.assert_array_equal(group_folds(battles.with_columns(fold=pl.lit(0)), 3), folds)


@pytest.mark.parametrize("library", LIBRARIES)
def test_near_duplicate_prompts_never_sit_on_both_sides(library: str) -> None:
    n = 40
    prompts = [f"Please tell me how one cooks {i} eggs, {end}" for i in range(n) for end in ("thanks", "thanks!")]
    responses = [f"answer {i}" for i in range(2 * n)]
    columns = {"prompt": prompts, "response_a": responses, "response_b": responses[::-1], "label": [0, 1] * n}
    folds = group_folds(frame(library, columns), 4, threshold=0.95)
    np.testing.assert_array_equal(folds[::2], folds[1::2])
    by_topic = group_folds(
        frame(library, {**columns, "topic": [f"t{i % 10}" for i in range(2 * n)]}), 4, {"group_key": "topic"}
    )
    np.testing.assert_array_equal(by_topic, np.tile(by_topic[:10], 8))


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_frame_reads_as_its_file(csv: Path, library: str) -> None:
    table = read_battles(csv)
    assert dict(table.schema) == TABLE_SCHEMA
    data = pytest.importorskip(library).read_csv(csv)
    assert read_battles(data).drop("file").equals(table.drop("file"))
    assert read_battles(frame(library, mapped_columns(csv)), OURS, VERDICTS)["label"].equals(table["label"])


def test_battles_without_verdicts_have_no_label(csv: Path) -> None:
    table = read_battles(pl.read_csv(csv).select("id", "prompt", "response_a", "response_b"))
    assert table["label"].is_null().all()
    assert set(table["role"]) == {"unlabelled"}


def test_rows_that_are_left_out_have_no_fold(csv: Path) -> None:
    battles = read_battles(csv).select("id", "prompt", "response_a", "response_b", "label")
    broken = battles.with_columns(label=pl.when(pl.int_range(90) == 4).then(None).otherwise("label"))
    folds = group_folds(broken, 3, on_bad_row="drop")
    assert np.flatnonzero(folds == -1).tolist() == [4]
    assert read_battles(broken, on_bad_row="drop").height == 89


TEXTS = {"prompt": ["p", "q"], "response_a": ["a", "c"], "response_b": ["b", "d"]}


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        ({**TEXTS, "label": [0, 5]}, {}, r"the frame.*row 2, column label.*set verdicts=\{'5': '\?'\}"),
        ({**TEXTS, "label": [1, 2]}, {}, r"set verdicts=\{'1': 'a', '2': 'b'\} or verdicts=\{'0': 'a', "),
        ({**TEXTS, "winner": ["model_a", None]}, {}, r"row 2, column winner.*leave them out with on_bad_row='drop'$"),
        ({**TEXTS, "label": [0, 1]}, {"columns": {"promt": "x"}}, "columns: unknown column 'promt'; did you mean"),
        ({**TEXTS, "label": [0, 1]}, {"columns": {"model_a": "x"}}, r"columns=\{'model_a': 'x'\}: no such column"),
        ({**TEXTS, "label": [0, 1]}, {"on_bad_row": "skip"}, "on_bad_row='skip'; choose one of error, drop"),
        ({**TEXTS, "label": [0, 1]}, {"typo": 1}, "unknown key"),
        ({"question": ["p"], "answer_a": ["a"], "answer_b": ["b"]}, {}, r"set columns=\{'prompt': 'question', "),
        (TEXTS, {"fold": True}, "no verdicts: missing columns winner_model_a.*in columns$"),
        ({**TEXTS, "label": [0, 1]}, {"fold": True}, "k=5: the 2 train battles form only .*lower k to at most"),
        ({**TEXTS, "label": [0, 1]}, {"fold": True, "k": 1}, "k=1"),
        ({**TEXTS, "label": [0, 1]}, {"fold": True, "threshold": 3.0}, r"threshold=3\.0"),
        ({name: [] for name in (*TEXTS, "label")}, {}, "no row that can be used"),
        ([1, 2], {}, "expected a data frame of pandas, polars, pyarrow or the like, not a list"),
        (pl.LazyFrame(TEXTS), {}, "a lazy frame; collect it first"),
        ("missing.csv", {}, r"missing\.csv"),
    ],
)
def test_a_message_names_the_row_and_an_argument_that_helps(
    source: Any, arguments: dict[str, Any], message: str
) -> None:
    function = group_folds if arguments.pop("fold", False) else read_battles
    with pytest.raises(UserError, match=message):
        function(pl.DataFrame(source) if isinstance(source, dict) else source, **arguments)


def test_the_arguments_of_a_message_help() -> None:
    signed = pl.DataFrame({**TEXTS, "score": [1.0, -2.0]})
    columns = {"signed_score": "score"}
    with pytest.raises(UserError, match="positive_score='a' or positive_score='b'"):
        read_battles(signed, columns)
    assert read_battles(signed, columns, positive_score="b")["label"].to_list() == [1, 0]
    both = pl.DataFrame({**TEXTS, "winner": ["model_a", "tie (bothbad)"]})
    assert read_battles(both, both_bad="drop").height == 1


def test_rankings_are_folded_after_reading() -> None:
    answers = [{"model": m, "response": m, "overall_score": float(i)} for i, m in enumerate("xyz")]
    rankings = pl.DataFrame({"instruction": [f"What is a {w}?" for w in WORDS[:9]], "completions": [answers] * 9})
    with pytest.raises(UserError, match=r"rankings.*read_battles\(frame\)"):
        group_folds(rankings, 3)
    table = read_battles(rankings)
    assert table.height == 27
    assert len(group_folds(table, 3)) == 27


@pytest.mark.filterwarnings("error::UserWarning")
def test_rare_verdicts_are_one_logged_sentence_each(caplog: pytest.LogCaptureFixture) -> None:
    """scikit-learn's own warning of a rare class, and any other of a library, is not the user's."""
    battles = {
        "prompt": list("abcdefg"),
        "response_a": ["x"] * 7,
        "response_b": ["y"] * 7,
        "winner": [*"aaabbb", "tie"],
    }
    assert set(group_folds(pl.DataFrame(battles), 3).tolist()) == {0, 1, 2}
    assert caplog.messages == ["class 'tie' occurs in only 1 group(s), so some of the 3 folds have no battle of it"]


def test_importing_the_package_imports_nothing_else() -> None:
    code = """
import sys, oof
assert not {"polars", "numpy", "yaml", "narwhals", "torch"} & set(sys.modules)
from oof import group_folds, read_battles
assert not {"torch", "transformers", "sklearn", "pandas", "pyarrow"} & set(sys.modules)
assert {"group_folds", "read_battles"} <= set(dir(oof))
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)  # noqa: S603
    with pytest.raises(AttributeError, match="read_batles"):
        _ = oof.read_batles  # type: ignore[attr-defined]
