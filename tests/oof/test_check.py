"""Check of battle files: documented counts of real files, every problem with place and remedy, the exit status."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from oof.__main__ import main
from oof.check import check_files
from oof.common.errors import UserError
from oof.config import load
from tests.fixtures.demo_run import ROOT

DATA = ROOT.parent / "shared" / "data"
HEADER = "id,prompt,response_a,response_b,winner\n"


def run(capsys: pytest.CaptureFixture[str], *paths: str | Path, **options: str) -> tuple[int, str]:
    status = check_files([str(path) for path in paths], **options)  # type: ignore[arg-type]
    return status, capsys.readouterr().out


@pytest.mark.skipif(not DATA.is_dir(), reason="the development data is not here")
@pytest.mark.parametrize(
    ("file", "lines"),
    [
        (
            "pandalm_testset.csv",
            [
                "999 read",
                "a 422 (42.2 %), b 472 (47.2 %), tie 105 (10.5 %)",
                "54 battles with an empty response",
                "99 rows repeat an earlier row's prompt, A and B",
                "170 distinct",
                "to 10 battles",
            ],
        ),
        (
            "tulu_human_eval.csv",
            [
                "1,150 read",
                "a 423 (36.8 %), b 351 (30.5 %), tie 376 (32.7 %)",
                "40 battles with identical responses",
                "127 pairs of responses are judged more than once, in either order, 60 with conflicting",
                "(52.8 % agree)",
                "332 distinct",
                "to 6 battles",
            ],
        ),
        ("ukpconvarg1_dev.csv", ["6,000 read", "16 distinct", "16 groups"]),
        ("lmsys_test_3rows.csv", ["3 read", "Kaggle LMSYS without winners", "verdicts    none"]),
    ],
)
def test_real_files_have_their_documented_counts(
    file: str, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    status, out = run(capsys, DATA / file)
    assert status == 0
    assert "can be used as it is" in out
    for line in lines:
        assert line in out


def test_every_problem_has_file_row_column_and_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["1,p,a,b,tie", "2,p,a,b,nobody", "3,p,a,b", "1,p,a,c,tie", ",p,a,b,tie"]
    (tmp_path / "a.csv").write_text(HEADER + "\n".join(rows) + "\n")
    status, out = run(capsys, tmp_path / "a.csv")
    file = f"{tmp_path}/a.csv"
    assert status == 1
    assert f"{file}, row 2, column winner: 'nobody' is not a verdict" in out
    assert f"{file}, row 3: 4 fields, but the header has 5 (line 4)" in out
    assert f"{file}, row 1, column id: row 4 has the same id, but another battle" in out
    assert f"{file}, row 4, column id: row 1 has the same id, but another battle" in out
    assert f"{file}, row 5, column id: the id is missing" in out
    for remedy in ("write model_a, model_b or tie", "quote each text", "give each battle a unique id"):
        assert remedy in out
    assert "cannot be used as it is" in out


def test_equal_errors_are_grouped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = HEADER + "".join(f"{i},p,a,b,{'tie' if i == 700 else 'x'}\n" for i in range(1, 901))
    (tmp_path / "b.csv").write_text(bad)
    status, out = run(capsys, tmp_path / "b.csv")
    assert status == 1
    assert "899 rows, e.g. rows 1, 2, 3, column winner: 'x' is not a verdict" in out
    assert len(out.splitlines()) < 40
    (tmp_path / "b.csv").write_text(HEADER + "".join(f"{i},p,a,b,x{i}\n" for i in range(1, 31)))
    status, out = run(capsys, tmp_path / "b.csv")
    assert "row 20, column winner: 'x20'" in out
    assert "and 10 other reasons in rows 21-30" in out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEADER, "no rows"),
        ("", "is empty"),
        ("x,y\n1,2\n", "missing columns prompt, response_a, response_b"),
        ("id,prompt,response_a,response_b,winner_model_a,winner_tie\n1,p,a,b,1,0\n", "missing columns winner_model_b"),
    ],
)
def test_the_reason_is_printed_if_a_file_cannot_be_used(
    tmp_path: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text(text)
    status, out = run(capsys, tmp_path / "a.csv")
    assert status == 1
    assert words in out


def test_a_column_with_nearly_a_known_name_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("id,prompt,response_a,response_b,winer\n1,p,a,b,tie\n")
    status, out = run(capsys, tmp_path / "a.csv")
    assert status == 0  # it can be predicted; the check cannot know that the column holds verdicts
    assert "column 'winer' is not read; did you mean 'winner'?; rename it, or set data.columns.winner=winer" in out


def test_wrong_arguments_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEADER + "1,p,a,b,tie\n")
    for paths, options in (
        ([], {}),
        (["nothing.csv"], {}),
        ([str(tmp_path)], {}),
        ([str(tmp_path / "a.csv")], {"tokenizer": str(tmp_path)}),
    ):
        with pytest.raises(UserError):
            check_files(paths, **options)  # type: ignore[arg-type]


def test_the_profile_counts_verdicts_turns_and_repetitions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long: Any = ["x" * 5000, "y"]
    battles: list[tuple[Any, ...]] = [
        (["What is 2+2?"], "4", "5", "model_a"),
        (["what is 2+2"], "5", "4", "model_b"),
        (["What is 2+2?"], "5", "4", "tie"),
        (["Name a tree", None], long, long, "tie"),
    ]
    names = ("prompt", "response_a", "response_b", "winner")
    rows = [{"id": i, **dict(zip(names, battle, strict=True))} for i, battle in enumerate(battles)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    status, out = run(capsys, tmp_path / "a.jsonl")
    assert status == 0
    assert "a 1 (25.0 %), b 1 (25.0 %), tie 2 (50.0 %)" in out
    assert f"{1.5 * math.log(2):.3f}" in out
    assert "1: 75.0 %, 2: 25.0 %; at most 2" in out
    assert "1 null turns; 1 battles with identical responses" in out
    assert "0 rows repeat" in out
    assert "1 pairs of responses are judged more than once, in either order, 1 with conflicting verdicts" in out
    assert "3 distinct" in out
    assert "2 groups" in out
    assert "characters" in out
    assert "25.0 % over 1,024, 25.0 % over 2,048 tokens if a token has 4 characters" in out


def test_tokens_are_counted_with_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "a.csv").write_text(HEADER + "1,one two,a b c d,a b c,tie\n2,one,a,,tie\n")
    _, out = run(capsys, tmp_path / "a.csv", tokenizer=str(tmp_path))
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert lines["tokens"] == ["mean", "median", "p90", "p99", "max"]
    assert (lines["together"][-1], lines["response_a"][-1], lines["prompt"][0]) == ("9", "4", "2")


def test_several_files_are_also_checked_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text(HEADER + "1,p,a,b,tie\n")
    (tmp_path / "b.csv").write_text(HEADER + "1,p,a,c,model_a\n")
    (tmp_path / "c.csv").write_text(HEADER + "1,p,a,b,model_b\n")
    status, out = run(capsys, tmp_path / "a.csv", tmp_path / "b.csv")
    assert status == 0
    assert "all 2 files together" in out
    assert "2 ids occur in another file or role, too" in out
    status, out = run(capsys, tmp_path / "a.csv", tmp_path / "c.csv")
    assert status == 1
    assert "has the same id, but another verdict" in out


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "-s", "-C", str(ROOT), "-o", ".venv/.ready-dev", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)  # noqa: S603


needs_make = pytest.mark.skipif(not (ROOT / ".venv").is_dir() or not shutil.which("make"), reason="no .venv or make")


@needs_make
def test_make_check_passes_a_mapping_on_and_a_pasted_suggestion_works(tmp_path: Path) -> None:
    folder = tmp_path / "mein Ordner ä"
    folder.mkdir()
    rows = ["question,answer_1,answer_2,preference", *(f"p{i},a,b,{1 + i % 2}" for i in range(60))]
    (folder / "my dätä.csv").write_text("\n".join(rows))
    first = make("check", f"DATA={folder}/my dätä.csv")
    columns = "data.columns={prompt: question, response_a: answer_1, response_b: answer_2, label: preference}"
    lines = [line.strip() for line in first.stdout.splitlines() if line.startswith("  data.columns=")]
    assert lines == [f"{columns} data.verdicts={verdicts}" for verdicts in ("{1: a, 2: b}", "{0: a, 1: b, 2: tie}")]
    second = make("check", f"DATA={folder}/my dätä.csv", f"ARGS={columns}")
    assert "data.verdicts={1: a, 2: b} or data.verdicts={0: a, 1: b, 2: tie}" in second.stdout
    settings = f"{lines[0]} --write {tmp_path}/read.yaml"
    third = make("check", f"DATA={folder}/my dätä.csv", f"ARGS={settings}")
    assert "a 30 (50.0 %), b 30 (50.0 %), tie 0 (0.0 %)" in third.stdout
    assert "preference: 1 → A, 2 → B" in third.stdout
    assert 'row 1: A wins (preference \'1\'): prompt "p0", response_a "a", response_b "b"' in third.stdout
    assert third.returncode == 0
    assert load(tmp_path / "read.yaml").data.verdicts == {"1": "a", "2": "b"}
    assert load(tmp_path / "read.yaml").data.columns["label"] == "preference"


@pytest.mark.parametrize(
    ("header", "values", "counts"),
    [
        ("question,answer_1,answer_2,preference", ["1", "2"], ["a 30 (50.0 %)", "a 0 (0.0 %)"]),
        ("instruction,text_left,text_right,choice", ["left", "right", "draw"], ["a 20 (33.3 %)"]),
        ("question,response1,response2,score", ["-2", "3", "0"], ["a 20 (33.3 %)", "a 20 (33.3 %)"]),
        ("question,response1,response2,preferred_by_user", ["left", "right"], ["a 30 (50.0 %)"]),
        ("question,response1,response2,opinion", ["left", "right"], None),
        ("id,question,answer_1,answer_2,winner", ["model_a", "tie"], ["a 30 (50.0 %)"]),  # not ids without texts
        ("question,response1,response2,preference", ["-2", "3", "0"], ["a 20 (33.3 %)", "a 20 (33.3 %)"]),
        ('"my, question",answer_1,answer_2,preference', ["a>b", "b>a", "a=b"], ["a 20 (33.3 %)"]),
        ("question,response1,response2,winner", ["first", "second"], ["a 30 (50.0 %)"]),
        ("prompt,response_a,response_b,vote", ["1", "2"], ["a 30 (50.0 %)", "a 0 (0.0 %)"]),
    ],
)
def test_the_suggested_line_holds_columns_and_verdicts_and_works_when_pasted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    header: str,
    values: list[str],
    counts: list[str] | None,
) -> None:
    folder = tmp_path / "mein Ordner ä"
    folder.mkdir()
    monkeypatch.chdir(folder)
    ids = "{},".format if header.startswith("id,") else lambda i: ""
    rows = [header, *(f"{ids(i)}p{i},a,b,{values[i % len(values)]}" for i in range(60))]
    Path("my dätä.csv").write_text("\n".join(rows))
    main(["check", "my dätä.csv"])
    out = capsys.readouterr().out
    lines = re.findall(r"(?:set |^  )('?data\.columns=.*)", out, flags=re.MULTILINE)
    assert len(lines) == (1 if counts is None else len(counts))
    for line, expected in zip(lines, counts or ["verdicts    none"], strict=True):
        assert main(["check", "my dätä.csv", *shlex.split(line)]) == 0
        assert expected in capsys.readouterr().out


def test_what_cannot_be_guessed_is_a_question_mark_and_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["stuff,other,answer_1,answer_2,preference", *(f"x,y,a,b,{word}" for word in ("gut", "schlecht"))]
    (tmp_path / "a.csv").write_text("\n".join(rows))
    status, out = run(capsys, tmp_path / "a.csv", write=str(tmp_path / "read.yaml"))
    assert status == 1
    assert "data.columns={prompt: ?, response_a: answer_1, response_b: answer_2, label: preference}" in out
    assert "data.verdicts={gut: ?, schlecht: ?} (a column of the file for ?) (a, b, tie or both_bad for each ?)" in out
    data = load(tmp_path / "read.yaml").data
    assert data.columns == {"response_a": "answer_1", "response_b": "answer_2", "label": "preference"}
    assert data.verdicts == {}


@pytest.mark.parametrize(
    ("header", "row", "suggestion"),
    [
        ("question,responses,ranks", "p,a,1", "data.columns={prompt: question, response_a: ?, response_b: ?}"),
        ("prompt,response_a,response_b,n_a,n_b,n_tie", "p,a,b,2,1,3", "{votes_a: n_a, votes_b: n_b, votes_tie: n_tie}"),
        ("prompt,response_a,response_b,p_a,p_b", "p,a,b,0.5,0.5", "{prob_a: p_a, prob_b: p_b}"),
    ],
)
def test_a_suggestion_names_all_columns_of_a_form_and_no_wrong_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], header: str, row: str, suggestion: str
) -> None:
    (tmp_path / "a.csv").write_text(f"{header}\n{row}\n")
    assert suggestion in run(capsys, tmp_path / "a.csv")[1]
