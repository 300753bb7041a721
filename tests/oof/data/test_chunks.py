"""Chunks of a large file: each reads like its part of the whole file, and errors name the file and its row."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oof.common.errors import UserError
from oof.data import chunks
from oof.data.battles import read_file
from oof.data.chunks import cut_file

WHOLE_BYTES = chunks.WHOLE_BYTES
TRICKY = ["plain", "two\nlines", 'say "x"', "a,b", "", "ünï", "\r\n", "é" * 50]


@pytest.fixture(autouse=True, scope="module")
def _cut_small_files() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "WHOLE_BYTES", 0)
        yield


def write_csv(path: Path, texts: list[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "prompt", "response_a", "response_b"])
        for i, text in enumerate(texts):
            writer.writerow([i, *(json.dumps([t]) for t in (text, text + "a", "b" + text))])


def write_parquet(path: Path, texts: list[str]) -> None:
    columns = {"prompt": texts, "response_a": [t + "a" for t in texts], "response_b": ["b" + t for t in texts]}
    pl.DataFrame(
        {"id": range(len(texts)), **{k: [json.dumps([t]) for t in v] for k, v in columns.items()}}
    ).write_parquet(path)


def write_jsonl(path: Path, texts: list[str]) -> None:
    rows = [{"id": i, "prompt": [t], "response_a": [t + "a"], "response_b": ["b" + t]} for i, t in enumerate(texts)]
    path.write_text("\n\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")


@given(st.lists(st.sampled_from(TRICKY), min_size=1, max_size=12), st.integers(1, 5))
def test_chunks_of_a_csv_file_read_like_the_whole_file(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], n: int
) -> None:
    folder = tmp_path_factory.mktemp("csv")
    write_csv(folder / "test.csv", texts)
    assert_same(folder / "test.csv", n, len(texts))


@pytest.mark.parametrize(("name", "write"), [("test.parquet", write_parquet), ("test.jsonl", write_jsonl)])
def test_chunks_of_other_formats_read_like_the_whole_file(
    tmp_path: Path, name: str, write: Callable[[Path, list[str]], None]
) -> None:
    write(tmp_path / name, TRICKY[:7])
    assert_same(tmp_path / name, 3, 7)


def assert_same(path: Path, rows: int, n: int) -> None:
    columns = ["id", "prompt", "response_a", "response_b"]
    tables = []
    for chunk in cut_file(path, rows, path.parent / "chunks"):
        table = read_file(chunk.path, "test").table
        assert table.height <= rows
        assert table["row"].to_list() == list(range(1, table.height + 1))
        assert chunk.first == sum(earlier.height for earlier in tables)
        tables.append(table)
    whole = read_file(path, "test").table.select(columns)
    assert pl.concat(tables).select(columns).equals(whole)
    assert whole.height == n
    assert len(tables) == -(-n // rows)
    assert not list((path.parent / "chunks").iterdir())


def test_an_error_in_a_chunk_names_the_file_and_its_row(tmp_path: Path) -> None:
    path = tmp_path / "test.csv"
    write_csv(path, TRICKY[:3])
    with path.open("a", encoding="utf-8") as file:
        file.write("7,only,three\n")
    [message] = chunk_errors(path)
    assert str(path) in message
    assert "row 1 here is row 4 of the file" in message


def chunk_errors(path: Path) -> list[str]:
    errors = []
    for chunk in cut_file(path, 3, path.parent / "chunks"):
        try:
            read_file(chunk.path, "test")
        except UserError as error:
            errors.append(str(chunk.error(error)))
    return errors


def test_a_small_file_is_not_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "WHOLE_BYTES", WHOLE_BYTES)
    write_csv(tmp_path / "test.csv", TRICKY)
    assert [chunk.path for chunk in cut_file(tmp_path / "test.csv", 2, tmp_path / "p")] == [tmp_path / "test.csv"]
    assert not (tmp_path / "p").exists()
