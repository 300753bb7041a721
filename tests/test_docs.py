"""What the documents say is true: commands run as they stand, links and names lead somewhere.

A fenced block of commands or Python runs, unless the line above it is ``<!-- not run: REASON -->`` with one of
``REASONS``. They run, document after document, in a copy of the repository whose demo is cut down, beside the files
that the documents speak of (``train.csv`` and so on). ``make test`` only collects there: what it runs is this suite.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fixtures.demo_run import ROOT
from tests.fixtures.sandbox import DOCUMENTS, cut_down_copy, run

REASONS = ("needs a GPU", "needs a cluster", "needs Slurm", "needs Kaggle", "installs packages")
FENCE = re.compile(r"^(?:<!-- not run: (?P<why>[^>]+?) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
LINK = re.compile(r"\[[^\]]+\]\(([^)#\s]*)(#[^)\s]+)?\)")
SPOKEN = re.compile(r"(?:`|^)((?:make|python -m|python) [^`\n]+)", re.M)  # also of commands inside a sentence
NAMED_FILES = re.compile(r"`((?:oof|ensemble|tests|benchmarks|configs|docs)/[\w./-]+\.\w+)`")


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


by_name = {"ids": lambda path: path.name if isinstance(path, Path) else None}


@pytest.mark.parametrize("path", DOCUMENTS, **by_name)
def test_what_is_not_run_says_why(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("<!-- not run:") == sum(block.why is not None for block in blocks(path))
    for block in blocks(path):
        assert block.why is None or block.why in REASONS, block.text
        assert block.kind in ("bash", "python", ""), "a fence of commands says bash or python, so that it is run"


@pytest.mark.parametrize("path", DOCUMENTS, **by_name)
def test_links_lead_somewhere(path: Path) -> None:
    for file, anchor in LINK.findall(path.read_text(encoding="utf-8")):
        if "://" in file:
            continue
        target = path.parent / file if file else path
        assert target.exists(), f"{path.name} -> {file}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            slugs = {"#" + re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs, f"{path.name} -> {file}{anchor}"


@pytest.mark.parametrize("path", DOCUMENTS, **by_name)
def test_commands_and_files_that_a_document_names_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    scripts = dict(re.findall(r"^([a-z-]+):.*\n\t@\$\(PY\) (benchmarks/\w+\.py)", makefile, re.M))
    verbs = {p: set(re.findall(r'"([a-z]+)"', (ROOT / p / "__main__.py").read_text())) for p in ("oof", "ensemble")}
    for command in SPOKEN.findall(text):
        words = command.split("#")[0].split()
        script = ""
        if words[0] == "make":
            script = scripts.get(words[1], "")
            named = [w for w in words[1:] if re.fullmatch(r"[a-z][a-z-]*", w)]
            assert set(named[:1]) <= targets, command
        elif words[1] == "-m" and words[2] in verbs:
            assert words[3] in verbs[words[2]], command
        elif words[1].endswith(".py"):
            script = words[1]
            assert (ROOT / script).is_file(), command
        known = (ROOT / script).read_text("utf-8") if script else ""
        for option in re.findall(r"(?<=[ \"])--[a-z-]+", command) if script else []:
            assert f'add_argument("{option}"' in known, f"{path.name}: {command}: {script} has no {option}"
    for file in (name for name in NAMED_FILES.findall(text) if "MEMBER" not in name):
        assert (ROOT / file).is_file(), f"{path.name}: {file}"


def test_the_tree_in_the_readme_names_modules_that_exist_and_all_of_them() -> None:
    tree = next(b.text for b in blocks(ROOT / "README.md") if b.text.startswith("Makefile"))
    for package in ("oof", "ensemble"):
        part = re.search(rf"^{package}/.*\n((?: +.*\n)+)", tree, re.M)[1]
        said = set(re.findall(r"[a-z_]+", part))
        modules = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__", "__main__"}
        assert modules <= said, f"not in the tree: {sorted(modules - said)}"
        first = re.findall(r"^  ((?:[a-z_]+, )*[a-z_]+)  ", part, re.M)
        named = {name for line in first for name in line.split(", ")}
        assert named <= modules, f"in the tree, but not in {package}/: {sorted(named - modules)}"


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cut_down_copy(tmp_path_factory.mktemp("docs") / "repository")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", [p for p in DOCUMENTS if runnable(p) or p.name == "formats.md"], **by_name)
def test_what_a_document_says_to_type_works(path: Path, sandbox: Path) -> None:
    # What one document changes in the demo's run is not the next one's business.
    shutil.rmtree(sandbox / "runs" / "demo")
    shutil.copytree(sandbox / "runs" / "as-made", sandbox / "runs" / "demo")
    script = sandbox / "from_document.py"
    for file in re.findall(r"^\| `([\w./-]+)` \|", path.read_text(), re.M) if path.name == "formats.md" else []:
        named = file.replace("MEMBER", "gemma2").replace("-K", "-0")
        assert (sandbox / "runs" / "demo" / named).exists(), f"{file} is not in a run"
    for block in runnable(path):
        if block.kind == "bash":
            run(sandbox, block.text)
    script.write_text("\n".join(block.text for block in runnable(path) if block.kind == "python"))
    run(sandbox, f"python {script.name}")
