"""The command arena-distill: help and example of every subcommand, recipes that it writes, exit statuses, the wheel."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
import yaml

from ensemble.command import DEMO, SUBCOMMANDS, main
from oof.command_line import READER_GONE
from oof.common import interrupts
from oof.common.atomic_files import write_parquet
from oof.common.logits_format import logits_frame
from oof.common.wording import CALLER
from oof.subcommand import EXIT_STATUSES, GROUPS, Subcommand
from tests.fixtures.arenas import make_arena
from tests.fixtures.command_line import digests
from tests.fixtures.demo_run import ROOT, SMALL
from tests.fixtures.sandbox import run, write_command

SLOW = {"ablate", "bases", "cascade", "demo", "int8", "judge", "oof", "plan", "report", "stack"}
# They need a server or a file: tests/ensemble/serving, test_hub.py and test_stress_card.py run them.
ELSEWHERE = {"serve", "verify", "push", "stress"}
NAMES = [subcommand.name for subcommand in SUBCOMMANDS]


def examples() -> Iterator[object]:
    for subcommand in (subcommand for subcommand in SUBCOMMANDS if subcommand.name not in ELSEWHERE):
        marks = [pytest.mark.slow, pytest.mark.timeout(900)] if subcommand.name in SLOW else []
        yield pytest.param(subcommand, id=subcommand.name, marks=marks)


@pytest.fixture(scope="module")
def folder(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a user's folder: a finished run and the files that the examples name."""
    folder = tmp_path_factory.mktemp("user") / "mein Ordner"
    shutil.copytree(small_run, folder / "runs" / "demo")
    for name in ("train", "test"):
        shutil.copy(small_run / "synth" / f"{name}.csv", folder / f"{name}.csv")
    battles = pl.read_parquet(small_run / "battles.parquet", glob=False)
    texts = {"prompt": "Why?", "response_a": "Because.", "response_b": "Who knows."}
    pl.DataFrame([{"id": i, **texts} for i in range(3)]).write_ndjson(folder / "battles.jsonl")
    pl.DataFrame({"text": [turns[0] for turns in battles["prompt"].head(20)]}).write_ndjson(folder / "corpus.jsonl")
    write_command(folder / "bin")
    return folder


def stack_larger_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stack two members' logits of 240 battles in a folder: ablations need more battles than the small run has."""
    monkeypatch.chdir(folder)
    arena = make_arena(240)
    table = arena.table.select("id", label=pl.Series(arena.labels))
    table.write_csv("labels.csv")
    for name, logits in arena.logits.items():
        write_parquet(folder / f"{name}.parquet", logits_frame(table["id"], logits, 0).drop("fold"))
    named = [f"stack.logits.{name}={name}.parquet" for name in arena.logits]
    words = ["stack", "--config", "demo", "--run", "runs/demo", "--data", "labels.csv"]
    assert main([*words, "stack.trials=2", "stack.rounds=20", *named]) == 0
    return folder


@pytest.mark.parametrize("subcommand", list(examples()))
def test_the_example_of_each_help_works(
    subcommand: Subcommand,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = shlex.split(subcommand.example)
    assert words[:2] == ["arena-distill", subcommand.name]
    if "<" in words:
        run(folder, subcommand.example)
        assert len((folder / words[-1]).read_text("utf-8").splitlines()) == 3
        return
    if subcommand.name == "ablate":
        folder = stack_larger_run(tmp_path, monkeypatch)
    elif subcommand.name == "demo":
        folder = tmp_path  # empty: the run in the other folder has settings of its own
    monkeypatch.chdir(folder)
    assert main(words[1:]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("subcommand", SUBCOMMANDS, ids=NAMES)
def test_each_help_shows_the_example_and_the_main_settings(
    subcommand: Subcommand, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as end:
        main([subcommand.name, "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert f"example:\n  {subcommand.example}\n" in text
    for name in subcommand.settings:
        assert re.search(rf"^  {re.escape(name)}=\S+ +\w.{{10}}", text, re.M), name
    assert max(map(len, text.splitlines())) <= 100


def test_the_help_lists_every_subcommand_once_under_its_task(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert re.findall(rf"^({'|'.join(GROUPS)}):$", text, re.M) == list(GROUPS)
    for subcommand in SUBCOMMANDS:
        section = text.split(f"\n{subcommand.group}:\n")[1].split("\n\n")[0]
        assert len(re.findall(rf"^  {subcommand.name} ", section, re.M)) == 1
        assert len(re.findall(rf"^  {subcommand.name} ", text, re.M)) == 1
    assert len(set(NAMES)) == len(NAMES)


def test_help_and_version_import_no_slow_library() -> None:
    slow = ("torch", "transformers", "lightgbm", "optuna", "sklearn", "scipy", "matplotlib")
    code = (
        "import sys; from ensemble.command import main\n"
        "for words in (['--help'], ['stack', '--help'], ['--version']):\n"
        "    try: main(words)\n"
        "    except SystemExit as end: assert end.code == 0\n"
        f"print([name for name in {slow} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.splitlines()[-1] == "[]"
    assert "arena-distill 0." in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stak"], "unknown subcommand 'stak'; did you mean stack?"),
        (["destill", "--run", "x"], "unknown subcommand 'destill'; did you mean distill?"),
        (["xyzzy"], "choose one of demo, init, "),
        ([], "required: SUBCOMMAND"),
        (["stack", "--rnu", "x"], "unrecognized arguments: --rnu"),
        (["stack", "demo.yaml", "--config", "demo"], "two configurations: demo.yaml and --config demo"),
    ],
)
def test_a_mistyped_command_is_refused_with_a_suggestion(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_the_exit_statuses_of_the_reference_are_those_of_the_command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of a bug, a time limit and ``| head`` are in tests/oof/test_command_line.py and tests/oof/jobs."""
    assert {READER_GONE, interrupts.EXIT_STATUS, 0, 1, 2, 3, 130} == set(EXIT_STATUSES)
    (tmp_path / "bad.csv").write_text("id,prompt,response_a,response_b,winner\n1,p,a,b,\n")
    monkeypatch.chdir(tmp_path)
    assert main(["check", "bad.csv"]) == 1
    assert main(["check"]) == main(["audit"]) == main(["report"]) == main(["stack"]) == 2
    assert main(["features"]) == 0
    monkeypatch.chdir(folder)
    shutil.copytree(folder / "runs" / "demo", tmp_path / "broken")
    folds = tmp_path / "broken" / "oof" / "gemma2" / "fold-0" / "logits.parquet"
    pl.read_parquet(folds, glob=False).head(3).write_parquet(folds)
    assert main(["audit", str(tmp_path / "broken")]) == 1
    capsys.readouterr()


def test_errors_name_options_and_under_make_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(CALLER, raising=False)
    assert main(["stack"]) == 2
    assert "(--config configs/demo.yaml), or a run that remembers its own (--run runs/demo)" in capsys.readouterr().err
    monkeypatch.setenv(CALLER, "make")
    assert main(["stack"]) == 2
    assert "(CONFIG=configs/demo.yaml), or a run that remembers its own (RUN=runs/demo)" in capsys.readouterr().err


def test_init_writes_the_recipes_and_never_replaces_a_changed_file_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mein Projekt"]) == 0
    written, shipped = digests(tmp_path / "mein Projekt" / "configs"), digests(ROOT / "configs")
    assert written == shipped
    mine = tmp_path / "mein Projekt" / "configs" / "lmsys.yaml"
    mine.write_text("seed: 7\n")
    assert main(["init", "--redo", str(tmp_path / "other")]) == 0
    assert main(["init", "mein Projekt"]) == 0
    assert f"kept {mine.relative_to(tmp_path)}, which differs" in capsys.readouterr().out
    assert mine.read_text() == "seed: 7\n"
    assert main(["init", "mein Projekt", "--redo"]) == 0
    assert digests(tmp_path / "mein Projekt" / "configs") == shipped


def test_a_written_recipe_works_where_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0
    assert main(["prepare", "--config", "configs/demo.yaml", "--run", "it's mine", *SMALL]) == 0
    stored = yaml.safe_load((tmp_path / "it's mine" / "config.yaml").read_text("utf-8"))
    assert stored["members"]["gemma2"]["checkpoint"] == "configs/bases/tiny-gemma2"
    capsys.readouterr()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_wheel_alone_runs_the_demo_in_an_empty_folder(tmp_path: Path) -> None:
    """A cut-down demo, with recipe and base checkpoints out of the wheel. A user's modules do not disturb it."""
    pytest.importorskip("hatchling")
    copy, site, empty = tmp_path / "copy", tmp_path / "site", tmp_path / "empty folder"
    for name in ("oof", "ensemble", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=copy, check=True, capture_output=True)  # noqa: S603
    wheel = next(tmp_path.glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    assert {"oof/recipes/demo.yaml", "oof/py.typed", "ensemble/report/templates/report.css"} <= set(names)
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"oof", "ensemble"}
    assert wheel.stat().st_size < 3e6
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)  # noqa: S603
    empty.mkdir()
    (empty / "ensemble.py").write_text("raise SystemExit('a module of the user')")
    (empty / "oof.py").write_text("raise SystemExit('a module of the user')")
    demo = shlex.join([str(site / "bin" / "arena-distill"), "demo", *SMALL])
    output = run(empty, f"export PYTHONPATH={site}; {demo}")
    assert "calibrated - best member" in output
    assert (empty / "runs" / "demo" / "report" / "index.html").is_file()
    stored = yaml.safe_load((empty / "runs" / "demo" / "config.yaml").read_text("utf-8"))
    assert Path(stored["members"]["gemma2"]["checkpoint"]) == site / "oof" / "recipes" / "bases" / "tiny-gemma2"
    again = run(empty, f"export PYTHONPATH={site}; {demo}")
    assert len(re.findall("up to date", again)) >= len(DEMO) - 2  # the table and the report are always written
