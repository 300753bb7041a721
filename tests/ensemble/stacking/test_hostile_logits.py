"""Broken files of logits: refused in one sentence, or read exactly as written; nothing else changes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.__main__ import main
from ensemble.stacking.inputs import external_inputs, read_logits
from oof.common.errors import UserError
from oof.common.logits_format import LOGIT_COLUMNS, logits_frame
from oof.config import load
from tests.fixtures.arenas import make_arena
from tests.fixtures.outcomes import record

N = 40
CELLS = ["nan", "NaN", "inf", "-inf", "1e39", "1e400", "", "null", "high", "0x10", "1_0", "-0.0", "5", "1e-320", "0.5"]
IDS = ["", "b0", "b1", "nan", "../b0", "<b>", "b0\t", "B0", "1.0", "b\u202e0"]
ARENA = make_arena(N)
FRAME = logits_frame(ARENA.table["id"], ARENA.logits["one"], ARENA.folds).drop("fold")
TRUE = {row[0]: np.array(row[1:], dtype=np.float32) for row in FRAME.rows()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hostile")
    pl.DataFrame({"id": ARENA.table["id"], "label": ARENA.labels}).write_csv(path / "labels.csv")
    return path


def inputs_of(folder: Path, file: Path) -> np.ndarray | None:
    """Return the member's (N, 6) logits, or None where the file was refused in one sentence that names it."""
    changes = [f"run={folder / 'run'}", f"data.train=[{folder / 'labels.csv'}]", f"stack.logits.one={file}"]
    refusal = ""
    try:
        inputs = external_inputs(load("configs/demo.yaml", changes))
    except UserError as error:
        refusal = str(error)
    if refusal:
        assert file.name in refusal
        assert refusal.isprintable()
        record("refused")
        return None
    record("read")
    assert np.isfinite(inputs.logits["one"]).all()
    assert inputs.table["id"].to_list() == sorted(TRUE)
    return inputs.logits["one"].reshape(N, 6)


edits = st.lists(
    st.one_of(
        st.tuples(st.just("cell"), st.integers(0, N - 1), st.sampled_from(LOGIT_COLUMNS), st.sampled_from(CELLS)),
        st.tuples(st.just("id"), st.integers(0, N - 1), st.just("id"), st.sampled_from(IDS)),
        st.tuples(st.sampled_from(["drop", "double", "move"]), st.integers(0, N - 1), st.just(""), st.just("")),
    ),
    min_size=1,
    max_size=4,
)


def broken_rows(folder: Path, changes: list[tuple[str, int, str, str]], ending: str) -> None:
    rows = [{name: str(cell) for name, cell in row.items()} for row in FRAME.rows(named=True)]
    for kind, at, column, cell in changes:
        at %= len(rows)
        if kind in ("cell", "id"):
            rows[at] = {**rows[at], column: cell}
        elif kind == "drop":
            del rows[at]
        elif kind == "double":
            rows.append(dict(rows[at]))
        else:
            rows.append(rows.pop(at))
    path = folder / f"broken.{ending}"
    frame = pl.DataFrame(rows)
    frame.write_csv(path) if ending == "csv" else frame.write_ndjson(path)
    read = inputs_of(folder, path)
    same_ids = sorted(row["id"] for row in rows) == sorted(TRUE)
    if read is None:
        return
    assert same_ids, "ids were lost, repeated or unknown, without an error"
    expected = {row["id"]: [float(row[name]) for name in LOGIT_COLUMNS] for row in rows}
    np.testing.assert_array_equal(read, np.array([expected[i] for i in sorted(TRUE)], dtype=np.float32))


@pytest.mark.slow
@given(edits, st.sampled_from(["csv", "jsonl"]))
@settings(max_examples=80)
def test_broken_rows_are_refused_or_read_as_written(
    folder: Path, changes: list[tuple[str, int, str, str]], ending: str
) -> None:
    broken_rows(folder, changes, ending)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@given(edits, st.sampled_from(["csv", "jsonl"]))
@settings(max_examples=2000)
def test_broken_rows_at_length(folder: Path, changes: list[tuple[str, int, str, str]], ending: str) -> None:
    broken_rows(folder, changes, ending)


@pytest.mark.slow
@given(st.data(), st.sampled_from(["csv", "jsonl"]))
@settings(max_examples=60)
def test_broken_bytes_are_refused_or_finite(folder: Path, data: st.DataObject, ending: str) -> None:
    path = folder / f"bytes.{ending}"
    FRAME.write_csv(path) if ending == "csv" else FRAME.write_ndjson(path)
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole)))
    put_in = data.draw(
        st.binary(max_size=6) | st.sampled_from([b'"', b"\n", b",", b"\0", b"\xff", b"{", b"\xed\xa0\x80"])
    )
    path.write_bytes(whole[:at] + put_in + whole[at + data.draw(st.integers(0, 40)) :])
    inputs_of(folder, path)


def test_rows_in_another_order_give_the_same_inputs(folder: Path) -> None:
    path = folder / "order.csv"
    FRAME.reverse().write_csv(path)
    read = inputs_of(folder, path)
    assert read is not None
    np.testing.assert_allclose(read, np.array([TRUE[i] for i in sorted(TRUE)]), rtol=1e-6)


def test_a_refused_file_leaves_an_earlier_stack_as_it_was(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arena = make_arena(120)
    labels, one = tmp_path / "labels.csv", tmp_path / "one.csv"
    pl.DataFrame({"id": arena.table["id"], "label": arena.labels}).write_csv(labels)
    good = logits_frame(arena.table["id"], arena.logits["one"], arena.folds).drop("fold")
    good.write_csv(one)
    run = tmp_path / "run"
    arguments = ["stack", "configs/demo.yaml", f"run={run}", f"data.train=[{labels}]", f"stack.logits.one={one}"]
    arguments += ["stack.trials=1", "stack.rounds=5", "stack.workers=1"]
    assert main(arguments) == 0

    def files() -> dict[str, str]:
        paths = [path for path in sorted(run.rglob("*")) if path.is_file() and not path.name.startswith(".lock")]
        return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}

    before = files()
    assert "stack/predictions.parquet" in before
    for bad in (good.head(3), good.with_columns(ab_a=pl.lit(float("nan"))), pl.concat([good, good.head(1)])):
        bad.write_csv(one)
        capsys.readouterr()
        assert main(arguments) == 2
        stderr = capsys.readouterr().err
        errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert "one.csv" in errors[0]
        assert "Traceback" not in stderr
        assert files() == before
    good.write_csv(one)
    assert main(arguments) == 0
    assert files() == before


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_million_rows_of_logits_are_read(tmp_path: Path) -> None:
    n = 10_000_000
    values = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    path = tmp_path / "large.parquet"
    pl.DataFrame(values, schema=["a", "b", "tie"]).with_columns(id=pl.int_range(n)).write_parquet(path)
    file = read_logits(str(path))
    assert file.frame.height == n
    rows = [0, 12_345, n - 1]
    np.testing.assert_array_equal(file.frame[rows].select("ab_a", "ab_b", "ab_tie").to_numpy(), values[rows])
