"""Run of one subcommand: where settings may come in a command line, and the sentence and status that errors become."""

from __future__ import annotations

import argparse
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from oof.__main__ import main as oof_main
from oof.command_line import add_config_arguments, add_run_argument, parse, run_folder, run_subcommand
from oof.common import progress
from oof.common.errors import UserError
from oof.config.load import parse_overrides
from tests.fixtures.demo_run import ROOT


def parser_of(subcommand: object = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add_config_arguments(parser)
    parser.set_defaults(subcommand=subcommand)
    return parser


@pytest.mark.parametrize(
    ("words", "config", "overrides"),
    [
        (["distill.yaml", "run=a"], "distill.yaml", ["run=a"]),
        (["run=a", "stack.trials=3"], None, ["run=a", "stack.trials=3"]),
        (["run=a", "--redo", "stack.logits={a:", "b.csv}"], None, ["run=a", "stack.logits={a: b.csv}"]),
        (["a=b.yaml"], "a=b.yaml", []),
        ([], None, []),
    ],
)
def test_a_setting_in_place_of_the_configuration_file_is_an_override(
    words: list[str], config: str | None, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.yaml").touch()  # a file of this name is a configuration
    arguments = parse(parser_of(), words)
    assert (arguments.config, arguments.overrides) == (config, overrides)


@pytest.mark.parametrize(
    ("words", "config", "overrides"),
    [
        (["--config", "a.yaml", "--run", "it's a run"], "a.yaml", ['run="it\'s a run"']),
        (["run=b", "--run", "a"], None, ['run="a"', "run=b"]),  # the setting counts, as the later word
        (
            ["--data", "a.csv", "b c.csv", "--test", "t.csv"],
            None,
            ['data.train=["a.csv", "b c.csv"]', 'data.test=["t.csv"]'],
        ),
        (["--data", "a.csv b c.csv"], None, ['data.train=["a.csv", "b c.csv"]']),  # as make's DATA
        (["--data", "a.csv", "stack.trials=3"], None, ['data.train=["a.csv"]', "stack.trials=3"]),
        (["--data", "x=1.csv"], None, ['data.train=["x=1.csv"]']),  # a file of this name
        (["--data", "a.csv", "stack.logits={a:", "b.csv}"], None, ['data.train=["a.csv"]', "stack.logits={a: b.csv}"]),
        (["--run", "Läufe", "mine.yaml", "seed=1"], "mine.yaml", ['run="Läufe"', "seed=1"]),
    ],
)
def test_options_are_settings_and_come_before_those_of_the_command_line(
    words: list[str], config: str | None, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.csv", "b c.csv", "x=1.csv"):
        (tmp_path / name).touch()
    arguments = parse(parser_of(), words)
    assert (arguments.config, arguments.overrides) == (config, overrides)
    assert parse_overrides(arguments.overrides)  # each of them is valid YAML


@pytest.mark.parametrize(
    "words",
    [["runs/a"], ["--run", "runs/a"], ["--corpus", "c", "--column", "x", "runs/a"], ["runs/a", "--corpus", "c"]],
)
def test_a_run_may_be_named_before_or_after_an_option(words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    add_run_argument(parser)
    parser.add_argument("--corpus", nargs="+")
    parser.add_argument("--column")
    assert run_folder(parse(parser, words)) == Path("runs/a")


def test_a_missing_run_is_one_sentence() -> None:
    parser = argparse.ArgumentParser()
    add_run_argument(parser)
    with pytest.raises(UserError, match="name a run"):
        run_folder(parse(parser, []))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fold", "1", "stack.trails=3"], "did you mean"),  # an override is recognised after an option too
        (["--fold", "1", "stack.trials"], "unrecognized arguments: stack.trials"),
        (["--fold", "1", "--stack.trials=3"], "unrecognized arguments: --stack.trials=3"),
    ],
)
def test_overrides_may_follow_an_option(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["job", "configs/demo.yaml", "run=nowhere", "--member", "gemma2", *words]
    try:
        status: object = oof_main(command)
    except SystemExit as refused:  # argparse exits on a usage error
        status = refused.code
    assert status == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["configs/nowhere.yaml"], "nowhere.yaml"),
        (["configs/demo.yaml", "stack.trails=3"], "did you mean"),
        (["configs/demo.yaml", "data.train=[nowhere.csv]"], "nowhere.csv"),
        (["configs/demo.yaml", "data.train=[README.md]"], "README.md"),
        (["configs/demo.yaml", "run=/proc/nowhere/run"], "RUN"),
    ],
)
def test_a_user_error_is_one_sentence_and_status_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    extra = [] if any(a.startswith("run=") for a in arguments) else [f"run={tmp_path / 'run'}"]
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "oof", "oof", *arguments, *extra], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert message in done.stderr.splitlines()[-1]


def test_a_bug_is_one_sentence_and_its_traceback_is_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(_: argparse.Namespace) -> None:
        raise ZeroDivisionError("in two\nlines")

    assert run_subcommand(parser_of(broken), []) == 3
    sentence = capsys.readouterr().err
    assert sentence.startswith("error: ZeroDivisionError: in two lines; this is a bug: please report it with ")
    found = re.search(r"with (\S+\.txt)$", sentence)
    assert found
    path = Path(found[1])
    assert "in broken" in path.read_text("utf-8")
    path.unlink()


def test_output_into_head_ends_quietly(tmp_path: Path) -> None:
    rows = ["id,prompt,response_a,response_b,winner", *(f"{i},p{i},a,b,x{i}" for i in range(2000))]
    for i in range(40):
        (tmp_path / f"{i}.csv").write_text("\n".join(rows))
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "oof", "check", str(tmp_path / "*.csv")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=120) == 141
    assert process.stderr.read() == ""


def test_a_subcommand_that_takes_long_is_heard(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def grouping(_: argparse.Namespace) -> None:
        while not caplog.messages:  # pytest-timeout ends it otherwise
            time.sleep(0.01)

    monkeypatch.setattr(progress, "LINE_SECONDS", 0.05)
    caplog.set_level(logging.INFO, logger=progress.__name__)
    assert run_subcommand(parser_of(grouping), []) == 0
    assert caplog.messages[0].startswith("grouping: at work, ")


WARNS = """
import argparse, logging, warnings
from oof.command_line import run_subcommand

def stage(arguments):
    for fold in range(3):
        logging.getLogger("oof").warning("gemma2 fold %d: float16 is slow", fold)
        warnings.warn("class 'tie' never occurs")
    arguments.call.end("stage", "done")
    arguments.call.remember_next("stage", "stack", "runs/demo")

parser = argparse.ArgumentParser()
parser.set_defaults(subcommand=stage)
raise SystemExit(run_subcommand(parser, []))
"""


def test_a_subcommand_says_a_warning_once_and_ends_with_the_next_command() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ARENA_DISTILL")}
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", WARNS],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment, check=True,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if not line.startswith("stage: done, ")]
    assert lines == [
        "warning: gemma2 fold 0: float16 is slow",
        "warning: class 'tie' never occurs",
        "this warning came 3 times: gemma2 fold 0: float16 is slow",
        "next: arena-distill stack --run runs/demo",
    ]
