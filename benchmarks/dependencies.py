"""Source files that a benchmark's command depends on, and those that have changed since a commit.

Read from the source, nothing is run: imports, those inside functions included; modules and files that benchmarks name
in strings, because they start them as processes; configurations and their base checkpoints. A change of comments,
docstrings or layout alone is none, and neither is one of tests or documents.
"""

from __future__ import annotations

import ast
import hashlib
import re
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache

import yaml

from benchmarks.common import ROOT

PACKAGES = ("oof", "ensemble", "benchmarks", "tests")
PATH = r"(oof|ensemble|benchmarks|tests|configs)/[\w./-]+|pyproject\.toml|constraints\.txt"
STARTED = ("benchmarks/", "tests/")  # source whose strings may name what it starts
COMMON = "benchmarks/common.py"  # its strings are defaults of options that most benchmarks lack
# What makes the runs that commands read.
RUNS = {
    "runs/demo": (
        "configs/demo.yaml",
        "oof.jobs.launch",
        "oof.jobs.run_fold_job",
        "ensemble.stacking.stage",
        "ensemble.distillation.stage",
    )
}


def dependencies(words: Iterable[str]) -> set[str]:
    """Return the files, relative to the repository, on which the result of a command with these words depends."""
    waiting = [file for word in words for file in _named(word)]
    found: set[str] = set()
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += _named_by(file)
    return {file for file in found if not file.startswith(("tests/", "docs/"))}


def git(*arguments: str) -> str | None:
    """Return what git prints, or None where git, the repository or the commit is missing."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    except OSError:
        return None
    return None if done.returncode else done.stdout.decode("utf-8", "replace")


def age(commit: str) -> int | None:
    """Return how many commits were made since a commit, or None where it is not in this clone."""
    count = git("rev-list", "--count", f"{commit}..HEAD")
    return None if count is None else int(count)


def changed_since(commit: str, files: Iterable[str]) -> set[str]:
    """Return those of the files that are not, in meaning, what they were at a commit."""
    before = _blobs(commit)
    return {file for file in files if _changed(file, before.get(file))}


# Which files


@cache
def _module_file(name: str) -> str | None:
    base = name.replace(".", "/")
    if name.split(".")[0] not in PACKAGES or not re.fullmatch(r"\w+(\.\w+)*", name):
        return None
    return next((file for file in (f"{base}.py", f"{base}/__init__.py") if (ROOT / file).is_file()), None)


def _with_packages(file: str | None) -> list[str]:
    """Return a file and the ``__init__.py`` of its packages, which run before it."""
    if file is None:
        return []
    parents = (f"{parent}/__init__.py" for parent in ROOT.joinpath(file).relative_to(ROOT).parents if parent.name)
    return [file, *(parent for parent in parents if (ROOT / parent).is_file())]


def _named(word: str) -> list[str]:
    """Return the files of a dotted module, of a path of the repository, or of a known run."""
    if "." in word and (module := _module_file(word)):
        return _with_packages(module)
    made = [file for run, names in RUNS.items() if word.startswith(run) for name in names for file in _named(name)]
    path = word.split("::")[0]
    if made or not re.fullmatch(PATH, path):
        return made
    if (ROOT / path).is_dir():
        return [str(file.relative_to(ROOT)) for file in sorted((ROOT / path).rglob("*")) if file.is_file()]
    return [path] if (ROOT / path).is_file() else []


@cache
def _named_by(file: str) -> tuple[str, ...]:
    """Return the files that a file imports, starts or names."""
    path = ROOT / file
    if file.startswith("configs/") and path.suffix == ".yaml":
        bases = re.findall(r"checkpoint: (bases/[\w-]+)", path.read_text("utf-8"))
        return tuple(name for base in bases for name in _named(f"configs/{base}"))
    if path.suffix != ".py":
        return ()
    nodes = list(_run_nodes(ast.parse(path.read_text("utf-8"))))
    named = _with_packages(file) + [name for node in nodes for name in _imported(node)]
    beside = [near for pattern in ("*", "templates/*") for near in path.parent.glob(pattern)]  # what the package brings
    named += [str(near.relative_to(ROOT)) for near in beside if near.suffix in (".html", ".j2", ".css", ".js")]
    if any(isinstance(node, ast.Name) and node.id == "add_run_arguments" for node in nodes):
        named += _named("runs/demo")  # the default of --run
    if file.startswith(STARTED) and file != COMMON:
        strings = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        named += [name for string in strings for word in _words(string) for name in _named(word)]
        if "-m" in strings:  # python -m oof, python -m ensemble
            mains = (_module_file(f"{string}.__main__") for string in strings if string in PACKAGES)
            named += [name for main in mains for name in _with_packages(main)]
    return tuple(named)


def _words(string: str) -> list[str]:
    """Return the words of a string of one line, which may be a command; of a longer one, such as a docstring, none."""
    return [] if "\n" in string else re.split(r"[\s=]+", string)


def _run_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a node and all below it, without the blocks for type checkers."""
    yield node
    checked = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    for child in node.orelse if checked and isinstance(node, ast.If) else ast.iter_child_nodes(node):
        yield from _run_nodes(child)


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [file for alias in node.names for file in _with_packages(_module_file(alias.name))]
    if isinstance(node, ast.ImportFrom) and node.module:
        package = _module_file(node.module)
        files = (_module_file(f"{node.module}.{alias.name}") or _exporter(package, alias.name) for alias in node.names)
        return [name for file in (package, *files) for name in _with_packages(file)]
    return []


def _exporter(package: str | None, name: str) -> str | None:
    """Return the module from which a package's ``__init__.py`` takes a name, also if it does so on first use only."""
    if package and package.endswith("/__init__.py"):
        for node in ast.walk(ast.parse((ROOT / package).read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
                return _module_file(node.module or "")
    return None


# What has changed


@cache
def _blobs(commit: str) -> dict[str, str]:
    """Return git's id of the content of every file at a commit."""
    lines = (git("ls-tree", "-r", "-z", commit) or "").split("\0")
    entries = (line.split("\t", 1) for line in lines if line)
    return {file: fields.split()[2] for fields, file in entries}


def _changed(file: str, before: str | None) -> bool:
    path = ROOT / file
    if before is None or not path.is_file():
        return True
    now = path.read_bytes()
    if before == hashlib.sha1(b"blob %d\0" % len(now) + now, usedforsecurity=False).hexdigest():
        return False
    if path.suffix not in (".py", ".yaml"):
        return True
    return _digest(path.suffix, now.decode("utf-8")) != _digest_of_blob(path.suffix, before)


@cache
def _digest_of_blob(suffix: str, blob: str) -> str:
    return _digest(suffix, git("cat-file", "blob", blob) or "")


@cache
def _digest(suffix: str, text: str) -> str:
    """Return a digest of what a file means: of YAML the values, of Python the syntax tree without docstrings."""
    meaning = repr(yaml.safe_load(text)) if suffix == ".yaml" else ast.dump(_without_docstrings(ast.parse(text)))
    return hashlib.sha256(meaning.encode()).hexdigest()


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return tree
