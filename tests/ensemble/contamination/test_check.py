"""Contamination check: prompts in a corpus are marked, in any corpus format, and an interrupted check continues."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ensemble.__main__ import main
from ensemble.contamination import check
from ensemble.contamination.corpus import read_prompts
from oof.common.atomic_files import write_json, write_parquet
from oof.common.digests import file_digest
from oof.common.errors import UserError
from tests.fixtures.small_tables import words

RNG = np.random.default_rng(0)
WORDS = ["".join(RNG.choice(list("abcdefghijklmnopqrstuvwxyz"), size=n)) for n in RNG.integers(3, 9, 800)]


def sentence(rng: np.random.Generator, n: int = 14) -> str:
    return words(rng, n, WORDS)


def write_battles(folder: Path, prompts: list[list[str]]) -> Path:
    n = len(prompts)
    table = pl.DataFrame({"id": [f"b{i}" for i in range(n)], "role": ["train"] * n, "prompt": prompts})
    write_parquet(folder / "battles.parquet", table)
    write_json(folder / "battles.json", {"files": {"battles.parquet": file_digest(folder / "battles.parquet")}})
    return folder


def conversations(texts: list[list[str]]) -> list[list[dict[str, str]]]:
    return [
        [
            message
            for turn in turns
            for message in ({"role": "user", "content": turn}, {"role": "assistant", "content": "so"})
        ]
        for turns in texts
    ]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """300 battles, a third of them with a near-copy in a corpus of 3,000 conversations."""
    rng = np.random.default_rng(1)
    prompts = [[sentence(rng)] if i % 5 else [sentence(rng), sentence(rng, 6)] for i in range(300)]
    corpus = [[sentence(rng)] for _ in range(3000)]
    for i in range(0, 300, 3):
        copy = list(prompts[i]) if i % 2 else [prompts[i][0]]  # of some only the first turn is in the corpus
        copy[0] = copy[0].upper() + "!" if i % 4 else copy[0].replace(" ", "  ", 3) + " please"
        corpus[10 * i] = copy
    run = write_battles(tmp_path_factory.mktemp("seen") / "run", prompts)
    return {"run": run, "corpus": corpus, "expected": [i % 3 == 0 for i in range(300)]}


def write_corpus(path: Path, texts: list[list[str]]) -> Path:
    rows = conversations(texts)
    if path.suffix == ".parquet":
        pl.DataFrame({"conversation_id": range(len(rows)), "conversation": rows}).write_parquet(
            path, row_group_size=500
        )
    elif path.suffix == ".csv":
        pl.DataFrame({"text": [turns[0] for turns in texts]}).write_csv(path)
    else:
        lines = "".join(json.dumps({"conversation": row}) + "\n" for row in rows)
        path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    return path


@pytest.mark.parametrize("name", ["c[1].parquet", "c.jsonl", "c.jsonl.gz", "c[1].csv"])
def test_exactly_the_planted_prompts_are_marked(name: str, planted: dict[str, Any], tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / name, planted["corpus"])
    frame = check.check_contamination(planted["run"], [str(corpus)])
    assert frame["seen"].to_list() == planted["expected"]
    rows = frame.filter("seen")
    assert rows["row"].to_list() == [10 * i + 1 for i in range(0, 300, 3)]
    assert rows["file"].unique().to_list() == [name]
    assert rows["similarity"].min() >= 0.7
    ids = pl.Series(["b3", "b1"])
    flags = check.read_contaminated(planted["run"], ids)
    assert flags is not None
    assert flags.tolist() == [True, False]


def test_an_interrupted_check_continues_and_gives_the_same_result(
    planted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    halves = [write_corpus(tmp_path / f"{k}.jsonl", planted["corpus"][k * 1500 : (k + 1) * 1500]) for k in range(2)]
    paths = [str(path) for path in halves]
    whole = check.check_contamination(planted["run"], paths)
    (planted["run"] / "seen" / "manifest.json").unlink()
    (planted["run"] / "seen" / "seen.parquet").unlink()
    monkeypatch.setattr(check, "CHUNK", 200)
    monkeypatch.setattr(check, "CHUNKS_PER_STATE", 2)
    read: list[int] = []

    def stopping(path: Path, column: str | None, start: int, size: int) -> Any:
        for k, chunk in enumerate(read_prompts(path, column, start, size)):
            if len(read) == 9:
                raise KeyboardInterrupt
            read.append(start + k * size)
            yield chunk

    monkeypatch.setattr(check, "read_prompts", stopping)
    with pytest.raises(KeyboardInterrupt):
        check.check_contamination(planted["run"], paths)
    starts: list[tuple[str, int]] = []

    def recording(path: Path, column: str | None, start: int, size: int) -> Any:
        starts.append((path.name, start))
        return read_prompts(path, column, start, size)

    monkeypatch.setattr(check, "read_prompts", recording)
    continued = check.check_contamination(planted["run"], paths)
    assert starts == [("1.jsonl", 0)]  # the finished first file is not opened again
    assert continued.equals(whole)
    assert not list((planted["run"] / "seen").glob("state.*"))


def test_reading_from_a_middle_row_gives_the_rest_of_the_file(planted: dict[str, Any], tmp_path: Path) -> None:
    for name in ("c.parquet", "c.jsonl", "c.csv"):
        path = write_corpus(tmp_path / name, planted["corpus"])
        whole = [row for chunk in read_prompts(path, None, 0, 700) for row in chunk]
        rest = [row for chunk in read_prompts(path, None, 1234, 256) for row in chunk]
        assert rest == whole[1234:]


def test_a_conversation_gives_its_first_user_turn_and_all_user_turns_joined(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "c.jsonl", [["one", "two"], ["three"], [""]])
    assert list(read_prompts(path, None, 0, 10)) == [[("one", "one\ntwo"), ("three",), ()]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.jsonl", b'{"conversation": []}\n{oops\n', "line 2"),
        ("c.jsonl", b'{"other": 1}\n', "--column"),
        ("c.parquet", b"PAR1 but no more", "cannot be read"),
        ("c.bin", b"", "not a .parquet"),
    ],
)
def test_an_unreadable_corpus_is_a_user_error(
    name: str, content: bytes, message: str, planted: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        check.check_contamination(planted["run"], [str(tmp_path / name)])


def test_the_command_prints_the_number_of_marked_battles(
    planted: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = write_corpus(tmp_path / "c.parquet", planted["corpus"])
    assert main(["seen", str(planted["run"]), "--corpus", str(corpus)]) == 0
    assert "100 of 300 battles" in capsys.readouterr().out
    assert main(["seen", str(planted["run"]), "--corpus", str(tmp_path / "no.parquet")]) == 2
