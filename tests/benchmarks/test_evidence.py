"""The list of evidence pages: origins, changes since by files, and pages that are made again by their command."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import dependencies, evidence
from oof.common.errors import UserError

FILES = {
    "benchmarks/__init__.py": "",
    "benchmarks/common.py": "RUN = 'runs/demo'\n",
    "benchmarks/of_a_run.py": "from benchmarks.common import add_run_arguments\nadd_run_arguments()\n",
    "benchmarks/rate.py": "import benchmarks.common, oof.lazy\nSTARTED = ['-m', 'benchmarks.peer', 'ensemble']\n"
    "CONFIG = 'configs/a.yaml'\nOPTIONS = [\"--write\"]\n",
    "benchmarks/peer.py": "from tests.fixtures import helper\n",
    "benchmarks/drill.py": '"""Title.\n\nBeside oof.unused\n"""\nSTEP = "make audit RUN=runs/demo"\nHELP = "of oof."\n',
    "benchmarks/unused.py": "",
    "oof/__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from oof.public import name\n",
    "oof/public.py": "name = 1\n",
    "oof/lazy.py": 'def f() -> None:\n    """Text."""\n    from oof.inner import g\n\n    g()\n',
    "oof/inner.py": "g = print\n",
    "oof/reached_by_a_test.py": "",
    "oof/unused.py": "",
    "oof/jobs/launch.py": "",
    "ensemble/__init__.py": "",
    "ensemble/page.html": "",
    "ensemble/deeper/other.css": "",
    "ensemble/__main__.py": "from oof import name\n",
    "tests/fixtures/helper.py": "import oof.reached_by_a_test\n",
    "configs/a.yaml": "checkpoint: bases/tiny\n",
    "configs/bases/tiny/config.json": "{}",
}
OTHERS = {"benchmarks/unused.py", "benchmarks/of_a_run.py", "benchmarks/drill.py", "oof/unused.py"}
OTHERS |= {"oof/jobs/launch.py", "ensemble/deeper/other.css", "tests/fixtures/helper.py"}
Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Return a function that writes a file of a small repository with one commit and no page."""
    for module in (dependencies, evidence):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(evidence, "PAGES", tmp_path / "docs" / "evidence")
    for function in vars(dependencies).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()

    def write(file: str, text: str) -> None:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text, encoding="utf-8")

    for file, text in FILES.items():
        write(file, text)
    git(tmp_path, "init", "--quiet")
    return write


def git(folder: Path, *arguments: str) -> str:
    settings = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    command = ["git", *settings, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603


def committed(folder: Path) -> str:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "a")
    return git(folder, "rev-parse", "--short=12", "HEAD")


def page(commit: str, options: str = "", how: str = "") -> str:
    return f"# T\n\nWritten by {how}`python -m benchmarks.rate{options}` on 2026-01-02 from commit {commit} (x86_64).\n"


def test_imports_started_modules_configurations_and_checkpoints_are_dependencies(write: Write) -> None:
    assert dependencies.dependencies(["python", "-m", "benchmarks.rate"]) == set(FILES) - OTHERS


@pytest.mark.parametrize("words", [["benchmarks.of_a_run"], ["benchmarks.unused", "--run", "runs/demo"]])
def test_a_command_that_reads_the_demo_depends_on_what_trains_it(write: Write, words: list[str]) -> None:
    assert "oof/jobs/launch.py" in dependencies.dependencies(words)


def test_words_of_a_started_command_are_dependencies_and_docstrings_are_none(write: Write) -> None:
    made_by_the_demo = {"oof/jobs/launch.py", "oof/__init__.py"}
    drill = {"benchmarks/drill.py", "benchmarks/__init__.py"}
    assert dependencies.dependencies(["benchmarks.drill"]) == drill | made_by_the_demo


@pytest.mark.parametrize(
    ("file", "text", "changes"),
    [
        ("oof/inner.py", "g = repr\n", True),
        ("oof/inner.py", '"""Title."""\n\n# why\ng = (\n    print\n)\n', False),
        ("oof/lazy.py", "def f() -> None:\n    from oof.inner import g\n\n    g()\n", False),
        ("oof/unused.py", "a = 1\n", False),
        ("configs/a.yaml", "# note\ncheckpoint: bases/tiny\n", False),
        ("configs/a.yaml", "checkpoint: bases/tiny\nlr: 1\n", True),
        ("configs/bases/tiny/config.json", "{ }", True),
        ("tests/fixtures/helper.py", "import oof.reached_by_a_test\na = 1\n", False),
    ],
)
def test_a_change_of_meaning_in_a_dependency_makes_a_page_stale(
    write: Write, tmp_path: Path, file: str, text: str, changes: bool
) -> None:
    write("docs/evidence/rate.md", page(committed(tmp_path)))
    assert "age  state" in evidence.table()
    assert "0  current" in evidence.table()
    write(file, text)
    committed(tmp_path)
    (origin,) = evidence.pages()["rate"]
    assert evidence.state(origin) == evidence.State(1, (file,) if changes else ())
    assert ("1  stale (1 file changed)" if changes else "1  current") in evidence.table()
    assert (f"! {file}" in evidence.table(files=True)) == changes


def test_rows_of_an_earlier_commit_count(write: Write, tmp_path: Path) -> None:
    earlier = committed(tmp_path)
    write("oof/inner.py", "g = repr\n")
    write("docs/evidence/rate.md", page(committed(tmp_path)) + f"\n| row | commit |\n|---|---|\n| a | {earlier} |\n")
    assert "1  stale (1 file changed)" in evidence.table()


def test_without_history_nothing_is_called_current(write: Write) -> None:
    write("docs/evidence/rate.md", page("0123456789ab"))
    assert "not known" in evidence.table()
    assert "Without the whole history of git, ages and changes are not known." in evidence.table()


def test_a_page_of_changed_code_or_without_a_command_is_not_current(write: Write, tmp_path: Path) -> None:
    commit = committed(tmp_path)
    write("docs/evidence/dirty.md", page(f"{commit}-dirty"))
    write("docs/evidence/hand.md", page(commit, how="hand from the output of "))
    write("docs/evidence/none.md", "# T\n\nFigures.\n")
    words = {name: evidence.state(parts[0]).in_words(parts[0]) for name, parts in evidence.pages().items()}
    assert words == {"dirty": "stale (uncommitted code)", "hand": "no command (by hand)", "none": "no command"}


def again(options: str, *extra: str, how: str = "") -> list[str]:
    return evidence.command_again("rate", evidence.origins("rate", page("0123456789ab", options, how)), list(extra))


def test_a_page_is_made_by_its_own_options_into_its_own_file(write: Write, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    target = ["--write", "docs/evidence/rate.md"]
    assert again(" --n 2 --data data --table") == ["-m", "benchmarks.rate", "--n", "2", "--data", "data", *target]
    assert again(" --write rate.md --out kept") == ["-m", "benchmarks.rate", *target]
    assert again(" --data lost --n 2", "--data", "x") == ["-m", "benchmarks.rate", "--n", "2", *target, "--data", "x"]


@pytest.mark.parametrize(
    ("options", "how", "message"),
    [
        (" --data lost", "", 'rate: lost is not there; say where: make evidence PAGE=rate ARGS="--data FOLDER"'),
        (" runs/demo/distill/student", "", "runs/demo/distill/student is not there; run make demo first"),
        ("", "hand from the output of ", "no single command wrote this page; run python -m benchmarks.rate and write"),
    ],
)
def test_a_page_that_cannot_be_made_is_refused_with_the_remedy(
    write: Write, options: str, how: str, message: str
) -> None:
    with pytest.raises(UserError) as refused:
        again(options, how=how)
    assert message in str(refused.value)


def test_an_unknown_page_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"no page 'x' in docs/evidence; there are: .*choice, .*students"):
        evidence.make_page("x", [])


def test_every_page_of_this_repository_names_its_date_and_a_benchmark() -> None:
    without = {page for page, parts in evidence.pages().items() for part in parts if not (part.date and part.command)}
    assert not without
