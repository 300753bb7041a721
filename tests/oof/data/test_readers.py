"""Readers: a damaged record is named and its neighbours are kept; a damaged file is one error."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from oof.common.errors import UserError
from oof.data.raw_table import RawTable
from oof.data.readers import expand, read_raw

WANTED = {"id", "prompt", "response_a", "response_b"}
CSV = "id,prompt,response_a,response_b\n1,p,a,b\n2,q,c,d\n"


def read(path: Path, data: bytes | str) -> RawTable:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    (raw,) = read_raw(path, WANTED)
    return raw


@pytest.mark.parametrize(
    ("data", "prompts"),
    [
        (CSV, ["p", "q"]),
        ("\ufeff" + CSV, ["p", "q"]),
        (CSV.replace("\n", "\r\n"), ["p", "q"]),
        (CSV.replace("\n", "\r"), ["p", "q"]),
        (CSV.rstrip("\n"), ["p", "q"]),
        (CSV.replace("\n", "\n\n"), ["p", "q"]),
        (CSV.replace(",", "\t"), ["p", "q"]),
        (CSV.replace(",", ";"), ["p", "q"]),
        (CSV.replace("1,p", '1,"line\r\none, ""two"""'), ['line\r\none, "two"', "q"]),
        (CSV.replace("1,p", "1,x\0y"), ["x\0y", "q"]),
        (CSV.replace("1,p", '1,5" nails'), ['5" nails', "q"]),
        (CSV.replace("1,p", "1,"), ["", "q"]),
    ],
)
def test_csv_dialects_give_the_same_cells(tmp_path: Path, data: str, prompts: list[str]) -> None:
    raw = read(tmp_path / "a.csv", data)
    assert raw.columns["prompt"] == prompts
    assert (raw.rows, raw.faults) == ([1, 2], [])


def test_a_cell_of_a_megabyte_is_read(tmp_path: Path) -> None:
    raw = read(tmp_path / "a.csv", CSV.replace("1,p", f"1,{'x' * 1_000_000}"))
    assert len(raw.columns["prompt"][0]) == 1_000_000


@pytest.mark.parametrize(
    ("old", "new", "column", "words"),
    [
        (b"1,p,a,b", b"1,p,a", None, "3 fields, but the header has 4 (line 2)"),
        (b"1,p,a,b", b"1,p,a,b,c", None, "5 fields, but the header has 4"),
        (b"1,p,", b'1,"p"x",', None, "broken quoting from line 2"),
        (b"1,p,", b"1,\xff,", "prompt", "byte 0xff is not UTF-8"),
        (b"1,p,", b"1,\xed\xa0\xbd,", "prompt", "byte 0xed is not UTF-8"),
    ],
)
def test_a_damaged_csv_row_is_named_and_its_neighbour_is_kept(
    tmp_path: Path, old: bytes, new: bytes, column: str | None, words: str
) -> None:
    raw = read(tmp_path / "a.csv", CSV.encode().replace(old, new))
    assert [(fault.row, fault.column) for fault in raw.faults] == [(1, column)]
    assert words in raw.faults[0].reason
    assert raw.rows == [2]
    assert raw.columns["prompt"] == ["q"]


def test_an_open_quote_never_loses_rows_silently(tmp_path: Path) -> None:
    raw = read(tmp_path / "a.csv", 'id,prompt\n1,"p\n2,q\n3,"r"\n4,s\n')
    assert "1" not in raw.columns["id"]
    assert raw.faults
    assert "line 2" in raw.faults[0].reason


def test_json_lines_name_each_bad_line(tmp_path: Path) -> None:
    lines = [b'{"id": 1, "prompt": "p"}', b"", b'{"id": 2', b"[1]", b'{"id": "\xff"}', b'{"id": 5, "response_a": "a"}']
    raw = read(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + b"\r\n".join(lines))
    assert raw.rows == [1, 5]  # blank lines are no rows
    assert [fault.row for fault in raw.faults] == [2, 3, 4]
    assert raw.columns == {"id": [1, 5], "prompt": ["p", None], "response_a": [None, "a"]}


def test_a_json_array_and_json_lines_are_the_same(tmp_path: Path) -> None:
    rows = [{"id": 1, "prompt": ["p"]}, {"id": 2, "prompt": None}]
    array = read(tmp_path / "a.json", json.dumps(rows))
    lines = read(tmp_path / "b.jsonl", "\n".join(map(json.dumps, rows)))
    assert (array.columns, array.rows) == (lines.columns, lines.rows)


@pytest.mark.parametrize("ending", [".gz", ".zst", ".zip"])
@pytest.mark.parametrize("form", ["csv", "parquet", "jsonl"])
def test_packed_files_equal_plain_ones(tmp_path: Path, form: str, ending: str) -> None:
    frame = pl.DataFrame({"id": ["1", "2"], "prompt": ["p", "naïve 🦙"]})
    buffer = io.BytesIO()
    writers: dict[str, Callable[[io.BytesIO], object]] = {
        "csv": frame.write_csv,
        "parquet": frame.write_parquet,
        "jsonl": frame.write_ndjson,
    }
    writers[form](buffer)
    plain = read(tmp_path / f"a.{form}", buffer.getvalue())
    packers: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.compress,
        ".zst": zstandard.compress,
        ".zip": zip_of(f"a.{form}"),
    }
    raw = read(tmp_path / f"a.{form}{ending}", packers[ending](buffer.getvalue()))
    assert (raw.columns, raw.rows) == (plain.columns, plain.rows)
    assert raw.columns["prompt"] == ["p", "naïve 🦙"]


def zip_of(name: str) -> Callable[[bytes], bytes]:
    def pack(data: bytes) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(name, data)
            archive.writestr("__MACOSX/._a", b"rubbish")
        return buffer.getvalue()

    return pack


def test_an_archive_gives_one_table_per_member(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("two.csv", CSV)
        archive.writestr("one.csv", CSV)
    names = [raw.name for raw in read_raw(tmp_path / "a.zip", WANTED)]
    assert names == [f"{tmp_path}/a.zip/one.csv", f"{tmp_path}/a.zip/two.csv"]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b" \n \n", "is empty"),
        ("a.csv", b",,\n1,2,3\n", "no column names"),
        ("a.csv", b"id,id\n1,2\n", "occurs twice"),
        ("a.csv", CSV.encode("utf-16"), "UTF-16"),
        ("a.csv", b"\x80\x04\x95pickle\0", "not UTF-8 text"),
        ("a.csv", b'{"id": 1}\n', "name it .jsonl"),
        ("a.csv", b"PAR1 and so on", "real ending"),
        ("a.parquet", b"\x80\x04\x95 a pickle named parquet", "real ending"),
        ("a.parquet", b"PAR1 and so on PAR1", "damaged Parquet"),
        ("a.jsonl", CSV.encode(), "no row is a JSON object"),
        ("a.json", b"[1, 2", "not valid JSON"),
        ("a.json", b"[" * 100_000, "not valid JSON"),
        ("a.csv.gz", b"not gzip", "damaged gzip"),
        ("a.csv.gz", gzip.compress(CSV.encode() * 99, mtime=0)[:-20], "damaged compressed"),
        ("a.csv.zst", b"not zstd", "damaged .zst"),
        ("a.zip", b"not zip", "damaged compressed"),
    ],
)
def test_an_unreadable_file_is_one_error(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read(tmp_path / name, data)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("at", [169, 494])
def test_a_damaged_parquet_file_never_aborts_this_process(
    tmp_path: Path, at: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of these files, polars 2.1 aborts the process on the first and panics on the second."""
    buffer = io.BytesIO()
    pl.DataFrame({"id": [[1], [2, 3]], "prompt": ["p", None]}).write_parquet(buffer, compression="uncompressed")
    data = bytearray(buffer.getvalue())
    data[at] ^= 0x41
    with pytest.raises(UserError, match="damaged Parquet file"):
        read(tmp_path / "a.parquet", bytes(data))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("accident", ["import os; os.abort()", "raise SystemExit(3)", "1/0"])
def test_a_parquet_decoder_that_dies_is_one_error(
    tmp_path: Path, accident: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pl.DataFrame({"id": [1]}).write_parquet(tmp_path / "a.parquet")
    monkeypatch.setattr("oof.data.formats.DECODE", accident)
    with pytest.raises(UserError, match="its lengths make no sense"):
        read_raw(tmp_path / "a.parquet", WANTED)
    assert capfd.readouterr().err == ""


def test_expand_sorts_globs_keeps_order_and_drops_repetitions(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "c[1].csv"):
        (tmp_path / name).touch()
    pattern, a, odd = str(tmp_path / "[ab].csv"), str(tmp_path / "a.csv"), str(tmp_path / "c[1].csv")
    assert expand([odd, pattern, a]) == [odd, a, str(tmp_path / "b.csv")]


@pytest.mark.parametrize("pattern", ["nothing.csv", "*.nothing", "", "a\0b"])
def test_a_missing_file_is_an_error(tmp_path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        expand([pattern])


@settings(max_examples=60)
@given(rows=st.lists(st.tuples(*[st.text(st.characters(exclude_categories=["Cs"]), max_size=8)] * 3), max_size=6))
def test_csv_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]]) -> None:
    """Cells written by Python's own writer are read back unchanged."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerows([("id", "prompt", "response_a"), *rows])
    raw = read(tmp_path_factory.mktemp("csv") / "a.csv", text.getvalue())
    assert not raw.faults
    assert list(zip(raw.columns["id"], raw.columns["prompt"], raw.columns["response_a"], strict=True)) == rows
