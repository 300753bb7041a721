"""Commands, links, names and the module tree of the documents are correct.

A fenced block of commands or Python runs, unless the line above it is ``<!-- not run: REASON -->`` with one of
``REASONS``. Blocks run document after document in a copy of the repository with a cut-down demo, beside the files that
the documents name (``train.csv`` and so on). There ``make test`` only collects, because it would run this suite again.

Pages in docs/evidence are records of older commits: of them only the links are checked here.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from docs.hooks import reference
from ensemble.__main__ import SUBCOMMANDS as ENSEMBLE
from ensemble.command import SUBCOMMANDS
from oof.__main__ import SUBCOMMANDS as OOF
from oof.subcommand import PROGRAM
from tests.fixtures.demo_run import ROOT
from tests.fixtures.sandbox import DOCUMENTS, cut_down_copy, run

REASONS = (
    "needs a GPU",
    "needs a cluster",
    "needs Slurm",
    "needs Kaggle",
    "needs an account of the hub",
    "needs Docker",
    "installs packages",
)
FENCE = re.compile(r"^(?:<!-- not run: (?P<why>[^>]+?) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
LINK = re.compile(r"\[[^\]]+\]\(([^)#\s]*)(#[^)\s]+)?\)")
COMMAND = re.compile(r"(?:`|^)((?:make|arena-distill|python -m|python) [^`\n]+)", re.M)  # also inside a sentence
FILE = re.compile(r"`((?:oof|ensemble|tests|benchmarks|configs|docs)/[\w./-]+\.\w+)`")
CURRENT = [path for path in DOCUMENTS if path.parent.name != "evidence"]
FORMATS = ROOT / "docs" / "reference" / "file-formats.md"


@dataclass(frozen=True)
class Block:
    kind: str
    text: str
    why: str | None


def blocks(path: Path) -> Iterator[Block]:
    for match in FENCE.finditer(path.read_text(encoding="utf-8")):
        yield Block(match["kind"], match["text"], match["why"])


def runnable(path: Path) -> list[Block]:
    return [block for block in blocks(path) if block.kind in ("bash", "python") and block.why is None]


by_name = {"ids": lambda path: str(path.relative_to(ROOT)) if isinstance(path, Path) else None}


@pytest.mark.parametrize("path", DOCUMENTS, **by_name)
def test_a_block_that_does_not_run_gives_its_reason(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("<!-- not run:") == sum(block.why is not None for block in blocks(path))
    for block in blocks(path):
        assert block.why is None or block.why in REASONS, block.text
        commands = re.findall(r"^(?:\$ )?(?:make|python|arena-distill) .*$", block.text, re.M)
        assert block.kind == "bash" or not commands, "a fence of commands is marked bash, so that it is run"


@pytest.mark.parametrize("path", DOCUMENTS, **by_name)
def test_links_lead_to_files_and_headings(path: Path) -> None:
    for file, anchor in LINK.findall(path.read_text(encoding="utf-8")):
        if "://" in file:
            continue
        target = path.parent / file if file else path
        assert target.exists(), f"{path.name} -> {file}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", reference.on_page_markdown(target.read_text(encoding="utf-8")), re.M)
            slugs = {"#" + re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs, f"{path.name} -> {file}{anchor}"


def makefile() -> str:
    return (ROOT / "Makefile").read_text(encoding="utf-8")


def subcommands() -> dict[tuple[str, str], argparse.ArgumentParser]:
    """Return the parsers by (command or package, subcommand)."""
    lists = {PROGRAM: SUBCOMMANDS, "oof": OOF, "ensemble": ENSEMBLE}
    return {(name, s.name): reference.parser_of(s) for name, members in lists.items() for s in members}


def benchmark_options(module: str) -> set[str]:
    """Return the options of a benchmark, those of the shared helpers included."""
    sources = [ROOT / f"{module.replace('.', '/')}.py", ROOT / "benchmarks" / "common.py"]
    return {option for path in sources for option in re.findall(r'add_argument\("(--[\w-]+)"', path.read_text("utf-8"))}


def check_command(command: str) -> None:
    """Fail unless the make target, the subcommand or the module of a command exists and has its options."""
    words = command.split("#")[0].split()
    options = re.findall(r"(?<=[ \"])--[a-z-]+", command)
    module = words[2] if words[:2] == ["python", "-m"] else ""
    if words[0] == "make":
        targets = set(re.findall(r"^([a-z-]+):", makefile(), re.M))
        assert set([w for w in words[1:] if re.fullmatch(r"[a-z][a-z-]*", w)][:1]) <= targets, command
        recipe = re.search(rf"^{words[1]}:.*\n\t@\$\(PY\) -m (benchmarks[\w.]+)", makefile(), re.M)
        module = recipe[1] if recipe else ""
    elif words[0] == PROGRAM or module in ("oof", "ensemble"):
        name = (PROGRAM, words[1]) if words[0] == PROGRAM else (module, words[3])
        if name[1] in ("--help", "--version", "SUBCOMMAND"):
            return
        parser = subcommands().get(name)
        assert parser is not None, command
        assert set(options) <= set(parser._option_string_actions), command
    elif not module:
        assert (ROOT / words[1]).is_file(), command
    if module.split(".")[0] in ("benchmarks", "tests"):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), command
        assert set(options) <= benchmark_options(module), command


@pytest.mark.parametrize("path", CURRENT, **by_name)
def test_commands_and_files_that_a_document_names_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for command in COMMAND.findall(text):
        check_command(command)
    for file in (name for name in FILE.findall(text) if "MEMBER" not in name):
        assert (ROOT / file).is_file(), f"{path.name}: {file}"


def modules_of_the_architecture_page(package: str) -> set[str]:
    """Return the modules that the page names, as ``folder/module`` or, in the package itself, ``module``."""
    page = ROOT / "docs" / "contributing" / "architecture.md"
    tree = next(block.text for block in blocks(page) if block.text.startswith("Makefile"))
    lines = re.search(rf"^{package}/.*\n((?: +.*\n)+)", tree, re.M)
    assert lines, f"no lines below {package}/"
    modules: set[str] = set()
    folder = ""
    for line in lines[1].splitlines():
        indent, names = len(line) - len(line.lstrip()), re.split(r"  +", line.strip())[0]
        if names.endswith("/"):
            folder = names
        else:
            modules |= {f"{folder if indent > 2 else ''}{name}" for name in names.split(", ")}
    return modules


@pytest.mark.parametrize("package", ["oof", "ensemble"])
def test_architecture_page_names_each_module_in_its_folder(package: str) -> None:
    paths = (path.relative_to(ROOT / package).with_suffix("") for path in (ROOT / package).rglob("*.py"))
    modules = {str(path) for path in paths if path.name not in ("__init__", "__main__")}
    named = modules_of_the_architecture_page(package)
    assert (sorted(modules - named), sorted(named - modules)) == ([], []), "not on the page; only on the page"


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cut_down_copy(tmp_path_factory.mktemp("docs") / "repository")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", [p for p in CURRENT if runnable(p)], **by_name)
def test_commands_of_a_document_work(path: Path, sandbox: Path) -> None:
    fresh_demo(sandbox)
    for block in runnable(path):
        if block.kind == "bash":
            run(sandbox, block.text)
    script = sandbox / "from_document.py"
    script.write_text("\n".join(block.text for block in runnable(path) if block.kind == "python"))
    run(sandbox, f"python {script.name}")


# Of checkpoints from a hub, of stage two on its own, and of commands that the demo does not run.
NOT_OF_THE_DEMO = ("checkpoints.json", "stack/battles.parquet", "report/markdown/report.md")
NOT_OF_THE_DEMO += ("cascade/curve.json", "cascade/costs.json")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_files_of_the_formats_page_are_in_a_run(sandbox: Path) -> None:
    fresh_demo(sandbox)
    section = FORMATS.read_text("utf-8").split("## Run folder\n")[1].split("\n## ")[0]
    files = re.findall(r"^\| `([\w./-]+)` \|", section, re.M)
    assert len(files) > 10
    for file in files:
        name = file.replace("MEMBER", "gemma2").replace("-K", "-0")
        if file not in NOT_OF_THE_DEMO:
            assert (sandbox / "runs" / "demo" / name).exists(), f"{file} is not in a run"


def fresh_demo(sandbox: Path) -> None:
    """Undo the changes of other documents to the demo's run."""
    shutil.rmtree(sandbox / "runs" / "demo")
    shutil.copytree(sandbox / "runs" / "as-made", sandbox / "runs" / "demo")
