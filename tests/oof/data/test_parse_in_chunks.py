"""Parsing in chunks gives what parsing the whole file gives: table, messages, counts and dropped rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oof.common.errors import UserError
from oof.config import Data
from oof.data import chunks, parse_in_chunks
from oof.data.build_table import build_table
from oof.data.parse_file import ParsedFile, parse_file
from tests.fixtures.fuzz_battles import make_case

N_FILES = 30


@pytest.fixture(autouse=True)
def joined(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Cut every file into chunks of four rows; return the numbers of chunks that were joined."""
    monkeypatch.setattr(chunks, "WHOLE_BYTES", 0)
    monkeypatch.setattr(parse_in_chunks, "ROWS", 4)
    numbers: list[int] = []
    join = parse_in_chunks._joined

    def counted(parts: list[ParsedFile]) -> ParsedFile:
        numbers.append(len(parts))
        return join(parts)

    monkeypatch.setattr(parse_in_chunks, "_joined", counted)
    return numbers


def outcome(path: Path, on_bad_row: str, whole: bool) -> object:
    try:
        read = parse_file if whole else parse_in_chunks.parse_in_chunks
        battles = build_table(read(str(path), "unlabelled", Data(), 0), on_bad_row)
    except UserError as error:
        return str(error)
    table = battles.table.to_dict(as_series=False), battles.dropped.to_dict(as_series=False)
    return table, list(map(str, battles.problems)), battles.counts, battles.schemas, battles.shown


def test_broken_files_of_every_schema_read_as_a_whole(tmp_path: Path, joined: list[int]) -> None:
    for number in range(N_FILES):
        case = make_case(1, number, tmp_path, parquet=0.0)
        expected = outcome(case.path, case.on_bad_row, whole=True)
        assert outcome(case.path, case.on_bad_row, whole=False) == expected, case.path.name
    assert len(joined) > N_FILES // 4
    assert max(joined) > 3


@pytest.mark.parametrize(
    "odd",
    [
        {"id": 9, "prompt": '["p"]', "response_a": '["a"]', "response_b": '["b"]'},  # a list of turns among plain texts
        {"prompt": "p", "response_a": "a", "response_b": "b"},  # an id that is missing
        {"id": 9, "prompt": "p", "response_a": "a", "response_b": "b", "language": "English"},
    ],
)
def test_chunks_of_other_meaning_make_the_file_read_as_a_whole(
    odd: dict[str, object], tmp_path: Path, joined: list[int]
) -> None:
    rows = [{"id": i, "prompt": "p", "response_a": "a", "response_b": "b"} for i in range(8)]
    path = tmp_path / "battles.jsonl"
    path.write_text("\n".join(map(json.dumps, [*rows, odd])), encoding="utf-8")
    assert outcome(path, "drop", whole=False) == outcome(path, "drop", whole=True)
    assert joined == []
