"""Make targets of a run that remembers its settings: RUN alone is enough, CONFIG counts only where it is given."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.command_line import digests
from tests.fixtures.demo_run import ROOT

DEFAULT = ["--default", "configs/demo.yaml"]


def make(*words: str, dry: bool = False) -> subprocess.CompletedProcess[str]:
    """Call make in the repository, with this interpreter and without an installation."""
    finished = ["-o", ".venv/.ready-dev", "-o", ".venv/.ready-run"]
    command = ["make", *finished, f"PY={sys.executable}", *(["-n"] if dry else []), *words]
    return subprocess.run(command, cwd=ROOT, env=outside_make(), capture_output=True, text=True, check=False)  # noqa: S603


def outside_make() -> dict[str, str]:
    """Return the environment without what `make test` adds, which would change what an inner make prints and does."""
    return {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}


def words_of(*target: str) -> list[str]:
    """Return the words of the command that a target calls, after the subcommand."""
    line = make(*target, dry=True).stdout.splitlines()[-1]
    return shlex.split(line.split(f"{sys.executable} -m ")[1])[2:]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (["stack"], ["run=runs/demo"]),
        (["stack", "RUN=runs/a b"], ["run=runs/a b"]),
        (["oof", "RUN=runs/a"], ["run=runs/a", *DEFAULT]),
        (["predict", "RUN=runs/a", "TEST=t.csv", "REDO=1"], ["run=runs/a", "data.test=t.csv", "--redo"]),
        (["stack", "RUN=runs/a", "DATA=it's my.csv b.csv"], ["run=runs/a", "data.train=it's my.csv b.csv"]),
        (["distill", "CONFIG=configs/lmsys.yaml"], ["configs/lmsys.yaml"]),
        (["ablate", "ARGS=stack.trials=5"], ["run=runs/demo", "stack.trials=5"]),
        (["audit", "RUN=runs/a b"], ["runs/a b"]),
        (["audit", "RUN=runs/it's"], ["runs/it's"]),
        (["distill", "RUN=runs/it's", "CONFIG=my 'best'.yaml"], ["my 'best'.yaml", "run=runs/it's"]),
        (["stack", "LOGITS=a=it's.csv"], ["run=runs/logits", "stack.logits=a=it's.csv", *DEFAULT]),
        (["stack", "LOGITS=a=b.csv c=d e.csv", "RUN=c"], ["run=c", "stack.logits=a=b.csv c=d e.csv", *DEFAULT]),
        (["predict", "RUN=c", "TEST_LOGITS=a=it's new.csv"], ["run=c", "stack.test_logits=a=it's new.csv"]),
        (["report", "RUN=runs/l'été 2", "PRICE=2"], ["runs/l'été 2", "--price-per-hour", "2"]),
        (["serve", "RUN=runs/it's", "ARGS=--port 0"], ["runs/it's/distill/student", "--port", "0"]),
        (["evidence", "PAGE=it's", "ARGS=--seeds 2"], ["it's", "--seeds", "2"]),
        (["report", "RUN=a b", "ARGS=stack.trials=5"], ["a b", "stack.trials=5"]),
    ],
)
def test_a_target_names_the_run_and_only_a_configuration_that_is_given(target: list[str], words: list[str]) -> None:
    assert words_of(*target) == words


@pytest.mark.parametrize(
    "target", ["oof", "stack", "ablate", "distill", "predict", "table", "report", "plan", "check", "audit"]
)
def test_paths_with_an_apostrophe_and_a_space_reach_every_target_whole(target: str) -> None:
    """Each given to make as one variable, as a user types it."""
    paths = {name: f"/my/l'été 2/{name}" for name in ("RUN", "DATA", "TEST", "CONFIG", "LOGITS")}
    words = words_of(target, *(f"{name}={path}" for name, path in (paths | {"LOGITS": f"a={paths['LOGITS']}"}).items()))
    used = {"report": ["RUN"], "audit": ["RUN"], "check": ["DATA"]}.get(target, list(paths))
    settings = {"RUN": "run=", "DATA": "data.train=", "TEST": "data.test=", "CONFIG": "", "LOGITS": "stack.logits=a="}
    prefixes = settings if len(used) > 1 else {used[0]: ""}
    assert {f"{prefixes[name]}{paths[name]}" for name in used} <= {*words}
    assert len(words) == len(used) + 2 * (target in ("oof", "stack", "plan"))


@pytest.mark.parametrize("word", ["run=runs/mine", "stack.trials=5", "redo=1"])
def test_a_word_that_no_target_reads_is_refused(word: str) -> None:
    refused = make("stack", "RUN=runs/mine", word, dry=True)
    assert refused.returncode == 2
    assert f"{word.split('=')[0]} is no variable here: these are RUN, CONFIG" in refused.stderr
    assert 'ARGS="stack.trials=5"' in refused.stderr


def installs(folder: Path, *words: str) -> list[str]:
    """Return the requirements that make would install for targets into the environment of a folder."""
    command = ["make", "-n", f"VENV={folder}", *words]
    done = subprocess.run(command, cwd=ROOT, env=outside_make(), capture_output=True, text=True, check=True)  # noqa: S603
    lines = [line for line in done.stdout.splitlines() if " -e " in line and "uv pip" not in line]
    return [line.split(" -e ")[1].strip(" ;\\'") for line in lines]


def test_a_run_installs_no_development_tools_and_tests_do(tmp_path: Path) -> None:
    run, dev, gpu, both = (tmp_path / name for name in ("run", "dev", "gpu", "both"))
    for target in ("demo", "oof", "stack", "predict", "plan", "check", "audit", "setup"):
        assert installs(run, target) == ["."]
    for target in ("test", "lint", "docs", "format", "fuzz"):
        assert installs(dev, target) == [".[dev]"]
    assert installs(gpu, "demo", "EXTRAS=gpu") == [".[gpu]"]
    assert installs(both, "test", "EXTRAS=gpu") == installs(both, "test", "EXTRAS=dev,gpu") == [".[dev,gpu]"]


def test_what_is_installed_is_not_installed_again(tmp_path: Path) -> None:
    (tmp_path / ".ready-dev").touch()
    for targets in (["demo"], ["test", "lint", "docs"], ["setup"], ["oof", "EXTRAS=dev"]):
        assert installs(tmp_path, *targets) == []
    assert installs(tmp_path, "oof", "EXTRAS=gpu") == [".[gpu]"]
    os.utime(tmp_path / ".ready-dev", (0, 0))  # older than pyproject.toml: the same extras again
    assert installs(tmp_path, "demo") == installs(tmp_path, "test") == [".[dev]"]


def test_torch_without_cuda_comes_from_its_own_index(tmp_path: Path) -> None:
    lines = make("setup", f"VENV={tmp_path}", "CPU=1", dry=True).stdout
    assert "--extra-index-url https://download.pytorch.org/whl/cpu" in lines
    assert "whl/cpu" not in make("setup", f"VENV={tmp_path}", dry=True).stdout


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ([], ["demo", "configs/demo.yaml", "run=runs/demo"]),
        (["RUN=runs/it's", "ARGS=stack.trials=5"], ["demo", "configs/demo.yaml", "run=runs/it's", "stack.trials=5"]),
        (["REDO=1"], ["demo", "configs/demo.yaml", "run=runs/demo", "--redo"]),
    ],
)
def test_the_demo_names_its_configuration(words: list[str], call: list[str]) -> None:
    assert ["demo", *words_of("demo", *words)] == call


@pytest.mark.slow
def test_run_alone_is_enough_after_the_first_command(small_run: Path, tmp_path: Path) -> None:
    """On a run that was made elsewhere and copied to a path with a space and a letter that is not ASCII."""
    run = tmp_path / "Läufe 1" / "l'été 2"
    shutil.copytree(small_run, run)
    for target, says in (
        (["stack", "ARGS=stack.rounds=21"], "stack: done"),
        (["stack"], "stack: up to date"),
        (["audit"], "0 violated"),
        (["report"], f"report: {run}/report/index.html"),
    ):
        done = make(*target, f"RUN={run}")
        assert done.returncode == 0, done.stderr
        assert says in done.stdout
    before = digests(run)
    refused = make("oof", f"RUN={run}", "CONFIG=configs/demo.yaml")  # the settings of the small run were forgotten
    assert refused.returncode == 2
    assert "data.synth.battles: 120 before, 2000 now" in refused.stderr
    assert digests(run) == before
