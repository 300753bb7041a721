"""Files of votes are joined to the train battles by id: soft labels, counts of what fits nowhere, errors with place."""

from __future__ import annotations

import csv
import gzip
import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from oof.__main__ import main
from oof.common.errors import UserError
from oof.config import Data
from oof.data.battles import BattleSet, read_battles
from tests.fixtures.demo_run import ROOT

SHARED = ROOT.parent / "shared" / "data"
TEXTS = "id,prompt,response_a,response_b\n" + "".join(f"{i},p{i},a,b\n" for i in range(1, 5))
COUNTS = "id,votes_a,votes_b,votes_tie\n1,2,1,0\n2,0,3,1\n3,1,1,1\n4,0,0,2\n"
Files = Callable[..., Data]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    """Write train.csv and votes.csv into a new working folder; return the settings that name them."""
    folder = tmp_path / "mein Ordner ä"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def write(votes: str, train: str = TEXTS, **settings: object) -> Data:
        Path("my träin.csv").write_text(train)
        Path("my vötes.csv").write_text(votes)
        return Data(train=["my träin.csv"], votes=["my vötes.csv"], **settings)  # type: ignore[arg-type]

    return write


def soft(battles: BattleSet) -> list[tuple[float, ...]]:
    return battles.table.select("soft_a", "soft_b", "soft_tie").rows()


def check(capsys: pytest.CaptureFixture[str], arguments: str) -> tuple[int, str]:
    status = main(["check", *shlex.split(arguments)])
    return status, capsys.readouterr().out


def test_counts_become_soft_labels_and_the_majority_is_the_label(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    battles = read_battles(files(COUNTS), seed=0)
    assert battles.table["label"].to_list() == [0, 1, 2, 2]
    assert soft(battles) == [(2 / 3, 1 / 3, 0.0), (0.0, 0.75, 0.25), (1 / 3, 1 / 3, 1 / 3), (0.0, 0.0, 1.0)]
    assert battles.problems == []
    status, out = check(capsys, "'my träin.csv' 'data.votes=my vötes.csv'")
    assert status == 0
    assert "coding      votes of my vötes.csv: votes_a, votes_b, votes_tie: most votes win, equal → tie" in out
    assert 'row 2: B wins (votes_a 0, votes_b 3, votes_tie 1): prompt "p2"' in out
    assert "a 1 (25.0 %), b 1 (25.0 %), tie 2 (50.0 %)" in out
    assert "votes       on 4 of the battles above" in out


def test_one_row_a_vote_gives_the_same_as_counts(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    expected = read_battles(files(COUNTS), seed=0).table.drop("file")
    words = {"votes_a": "model_a", "votes_b": "model_b", "votes_tie": "tie"}
    votes = [
        (row["id"], word)
        for row in csv.DictReader(COUNTS.splitlines())
        for name, word in words.items()
        for _ in range(int(row[name]))
    ]
    rows = "".join(f"{name},w{i},{word}\n" for i, (name, word) in enumerate(reversed(votes)))
    data = files(f"id,annotator,winner\n{rows}")
    assert read_battles(data, seed=0).table.drop("file").equals(expected)
    assert "one row a vote: most votes win" in check(capsys, "'my träin.csv' 'data.votes=my vötes.csv'")[1]


def test_the_suggested_line_reads_a_file_of_votes_with_other_columns(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    files("battle_id,worker,choice\n1,x,left\n1,y,right\n2,x,left\n3,x,draw\n4,x,draw\n")
    status = main(["check", "my träin.csv", "data.votes=my vötes.csv"])
    error = capsys.readouterr().err.strip()
    assert status != 0
    assert error.startswith("error: my vötes.csv: missing columns id, label")
    line = error.split("; set ")[1]
    assert line == "data.columns={id: battle_id, label: choice} data.verdicts={draw: tie, left: a, right: b}"
    status, out = check(capsys, f"'my träin.csv' 'data.votes=my vötes.csv' {shlex.join(shlex.split(line))}")
    assert status == 0
    assert "a 1 (25.0 %), b 0 (0.0 %), tie 3 (75.0 %)" in out


def test_what_fits_nowhere_is_counted_and_the_first_vote_of_an_annotator_counts(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    votes = "id,annotator,winner\n1,x,model_a\n1,x,model_b\n1,y,tie\n1,y,tie\n9,x,tie\n2,x,model_a\n"
    train = "id,prompt,response_a,response_b,winner\n" + "".join(f"{i},p{i},a,b,model_b\n" for i in range(1, 5))
    battles = read_battles(files(votes, train), seed=0)
    assert battles.table["label"].to_list() == [2, 0, 1, 1]
    assert soft(battles)[:2] == [(0.5, 0.0, 0.5), (1.0, 0.0, 0.0)]
    assert soft(battles)[2] == (None, None, None)
    status, out = check(capsys, "'my träin.csv' 'data.votes=my vötes.csv'")
    assert status == 0
    for words in (
        "1 of 3 ids with votes are no train battle's: '9' (my vötes.csv, row 5)",
        "rows 2, 4: an annotator's second vote on one battle; the first counts",
        "2 train battles have no votes and keep the verdict of their file",
        "2 train battles have another verdict in their file; the votes count",
    ):
        assert words in out
        assert any(words in str(problem) for problem in battles.problems)


@pytest.mark.parametrize(
    ("votes", "message"),
    [
        (COUNTS + "5,x,0,1\n", r"my vötes.csv, row 5, column votes_a..votes_tie: 'x' is not a number.*1 of 5 rows"),
        (COUNTS + "1,0,0,1\n", r"my vötes.csv, row 5, column id: the votes on '1' are in my vötes.csv, row 1"),
        (COUNTS[:-8], r"my träin.csv, row 4, column id: '4' has no votes in my vötes.csv, and no verdict of its own"),
        ("id,votes_a,votes_b\nx1,1,0\n", r"none of its ids \('x1'\) is an id of a train battle.*set data.columns.id"),
        ("id,model_a\n1,x\n", r"my vötes.csv: is no file of votes; it needs id and votes_a, votes_b, votes_tie, or id"),
    ],
)
def test_a_bad_file_of_votes_is_an_error_with_place_and_remedy(files: Files, votes: str, message: str) -> None:
    train = TEXTS.replace("response_b\n", "response_b,winner\n").replace("a,b\n", "a,b,tie\n")
    with pytest.raises(UserError, match=message):
        read_battles(files(votes, train if "x1" in votes else TEXTS), seed=0)


def test_bad_votes_are_left_out_and_named_if_asked(files: Files) -> None:
    battles = read_battles(files(COUNTS + "5,x,0,1\n", on_bad_row="drop"), seed=0)
    assert battles.table.height == 4
    assert any("1 of 5 rows of votes are left out: row 5" in str(problem) for problem in battles.problems)


def test_rows_of_one_battle_in_the_train_file_are_its_votes(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "id,prompt,response_a,response_b,annotator,winner\n"
    rows += "".join(f"{i},p{i},a,b,{w},{'model_a' if w != i else 'model_b'}\n" for i in (1, 2) for w in (1, 2, 3))
    files("id,votes_a,votes_b\n1,1,0\n", rows)
    status, out = check(capsys, "'my träin.csv'")
    assert status == 1
    assert "or name the file in data.votes, too, if its rows are several votes on a battle" in out
    status, out = check(capsys, "'my träin.csv' 'data.votes=my träin.csv'")
    assert status == 0
    assert "soft labels 2 battles, 2 of them not unanimous; mean shares a 66.7 %, b 33.3 %, tie 0.0 %" in out
    assert "4 of 6 rows are left out" in out


def test_a_run_depends_on_its_file_of_votes(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    train = "id,prompt,response_a,response_b\n" + "".join(f"{i},prompt {i * 7919},a,b\n" for i in range(40))
    files("id,votes_a,votes_b\n" + "".join(f"{i},{1 + i % 3},{2 - i % 2}\n" for i in range(40)), train)
    call = ["prepare", str(ROOT / "configs" / "demo.yaml"), "data.train=my träin.csv", "data.votes=my vötes.csv"]
    main([*call, "run=run ö", "data.test=my träin.csv"])
    text = Path("my vötes.csv").read_text()
    Path("my vötes.csv").write_text(text.replace("\n0,1,2", "\n0,2,1"))
    assert main([*call, "run=run ö", "data.test=my träin.csv"]) != 0
    assert "my vötes.csv (data.votes) has changed since the run was made from it" in capsys.readouterr().err
    Path("my vötes.csv").write_text(text)
    main(["prepare", "run=run ö"])
    assert "40 battles" in capsys.readouterr().out


def test_votes_without_battles_are_refused_before_anything_is_written(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    files(COUNTS)
    assert main(["prepare", str(ROOT / "configs" / "demo.yaml"), "data.votes=my vötes.csv", "run=läuf"]) != 0
    assert "data.votes needs the battles that were voted on: set data.train" in capsys.readouterr().err
    assert not Path("läuf").exists()


def independent_counts(name: str) -> tuple[Counter[str], dict[str, tuple[float, ...]]]:
    """Return the majorities and the shares of a real file of votes, read with nothing of ours."""
    majorities: Counter[str] = Counter()
    shares = {}
    with (SHARED / f"{name}_votes.csv").open() as file:
        for row in csv.DictReader(file):
            votes = [int(row[f"votes_{side}"]) for side in ("a", "b", "tie")]
            best = [side for side, n in zip(("a", "b", "tie"), votes, strict=True) if n == max(votes)]
            majorities[best[0] if len(best) == 1 else "tie"] += 1
            shares[row["id"]] = tuple(n / sum(votes) for n in votes)
    return majorities, shares


@pytest.mark.skipif(not SHARED.is_dir(), reason="the development data is not here")
@pytest.mark.parametrize("name", ["vicuna80_human", "llmfao_crowd"])
def test_real_votes_are_the_soft_labels_of_the_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    majorities, shares = independent_counts(name)
    folder = tmp_path / "mein Ordner ä"
    folder.mkdir()
    with gzip.open(SHARED / f"{name}.csv.gz", "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    with (folder / "texts.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "prompt", "response_a", "response_b"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    votes = SHARED / f"{name}_votes.csv"
    assert main(["check", str(folder / "texts.csv"), f"data.votes={votes}"]) == 0
    out = capsys.readouterr().out
    counts = (f"{side} {majorities[side]:,} ({majorities[side] / len(rows):.1%}" for side in ("a", "b", "tie"))
    for words in counts:
        assert words.replace("%", " %") in out
    assert f"votes       on {len(rows):,} of the battles above" in out
    table = read_battles(Data(train=[str(folder / "texts.csv")], votes=[str(votes)]), seed=0).table
    read = dict(zip(table["id"], table.select("soft_a", "soft_b", "soft_tie").rows(), strict=True))
    assert read.keys() == shares.keys()
    assert all(read[battle] == pytest.approx(shares[battle], abs=1e-12) for battle in shares)
