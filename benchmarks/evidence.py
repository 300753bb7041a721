"""Pages of evidence: which command wrote each, when, and whether what it measures has changed since.

    python -m benchmarks.evidence [--files]
    python -m benchmarks.evidence --page NAME [options of the page's benchmark]

A page says its command, date, commit and machine in a paragraph that begins with "Written by"; rows with a commit of
their own count, too. Changes are counted by files: those that the benchmark reads (``benchmarks/dependencies.py``).
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import textwrap
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.common import ROOT, argument_parser, run_script
from benchmarks.dependencies import age, changed_since, dependencies, git
from oof.common.errors import UserError

PAGES = ROOT / "docs" / "evidence"
# Options that name what a command reads; each value must be there.
INPUTS = ("--data", "--models", "--run", "--gemma", "--smollm", "--speed-of", "--model", "--tokenizer")
# Options of one machine or one call, which have a default; --table would write old figures with a new date.
LEFT_OUT = ("--peer-python", "--cpu", "--table")
MAKE_DEMO = "runs/demo"


@dataclass(frozen=True)
class Origin:
    """Where a page, or a part of it, comes from; the command is empty where no command wrote it."""

    page: str
    command: str
    date: str
    commits: tuple[str, ...]
    dirty: bool
    by_hand: bool

    @property
    def module(self) -> str:
        return self.command.split()[2] if self.command else ""

    @property
    def written(self) -> bool:
        """Whether the command wrote the page and is still there."""
        return bool(self.command) and not self.by_hand and (ROOT / f"{self.module.replace('.', '/')}.py").is_file()


@dataclass(frozen=True)
class State:
    """How old an origin is in commits, and which files have changed since; None: not known here."""

    age: int | None
    changed: tuple[str, ...] | None

    def in_words(self, origin: Origin) -> str:
        if not origin.written:
            return "no command (by hand)" if origin.by_hand else "no command"
        if self.changed is None:
            return "not known"
        if self.changed:
            return f"stale ({len(self.changed)} {'file' if len(self.changed) == 1 else 'files'} changed)"
        return "stale (uncommitted code)" if origin.dirty else "current"


def origins(page: str, text: str) -> list[Origin]:
    """Return the origins that a page names, one for each part with a paragraph of its own."""
    begins = [match.start() for match in re.finditer(r"^Written by ", text, re.M)]
    parts = [text[begin:end] for begin, end in pairwise([*begins, len(text)])]
    return [_origin(page, part) for part in parts] or [Origin(page, "", "", (), False, False)]


def _origin(page: str, part: str) -> Origin:
    head = " ".join(part.split("\n\n")[0].split())
    command = re.search(r"`(python -m benchmarks\.[^`]+)`", head)
    date = re.search(r"20\d\d-\d\d-\d\d", head)
    commits = re.findall(r"commit (\w{7,12})\b", head) or re.findall(r"\bcommit ([0-9a-f]{7,12})\b", part)
    commits += re.findall(r"\| ([0-9a-f]{12}) \|$", part, re.M)  # rows that were measured at another one
    return Origin(
        page=page,
        command=command[1] if command else "",
        date=date[0] if date else "",
        commits=tuple(dict.fromkeys(commits)),
        dirty="-dirty" in head,
        by_hand=head.startswith("Written by hand"),
    )


def state(origin: Origin) -> State:
    """Return how old an origin is, by its oldest commit, and what has changed since any of its commits."""
    ages = [age(commit) for commit in origin.commits]
    if not ages or None in ages:
        return State(None, None)
    oldest = max(number for number in ages if number is not None)
    if not origin.written:
        return State(oldest, None)
    files = dependencies(shlex.split(origin.command))
    changed = set[str]().union(*(changed_since(commit, files) for commit in origin.commits))
    return State(oldest, tuple(sorted(changed)))


def pages() -> dict[str, list[Origin]]:
    """Return the origins of every page but the index."""
    paths = (path for path in sorted(PAGES.glob("*.md")) if path.stem != "index")
    return {path.stem: origins(path.stem, path.read_text("utf-8")) for path in paths}


def table(files: bool = False) -> str:
    """Return the table of all pages; with ``files`` also the files that have changed."""
    lines = [f"{'page':<21}  {'date':<10}  {'commit':<7}  {'age':>4}  state"]
    counts: Counter[str] = Counter()
    for page, parts in pages().items():
        for number, origin in enumerate(parts):
            of_origin = state(origin)
            words = of_origin.in_words(origin)
            counts[words.split(" (")[0]] += 1
            name, commit = page if number == 0 else "  and", (origin.commits or ("",))[0][:7]
            commits = "" if of_origin.age is None else str(of_origin.age)
            lines.append(f"{name:<21}  {origin.date:<10}  {commit:<7}  {commits:>4}  {words}")
            if origin.command:
                command = f"{'from the output of ' if origin.by_hand else ''}{origin.command}"
                lines += textwrap.wrap(
                    command, 78, initial_indent="    ", subsequent_indent="      ", break_on_hyphens=False
                )
            lines += [f"    ! {file}" for file in of_origin.changed or () if files]
    lines += ["", ", ".join(f"{count} {name}" for name, count in counts.most_common())]
    if git("rev-parse", "HEAD") is None or git("rev-parse", "--is-shallow-repository") != "false\n":
        lines.append("Without the whole history of git, ages and changes are not known.")
    return "\n".join(lines)


# Making a page again


def command_again(page: str, parts: list[Origin], extra: list[str]) -> list[str]:
    """Return the words after ``python`` that make a page again; options in ``extra`` replace the page's own.

    Raises:
        UserError: no command wrote the page, or its data or hardware are missing.
    """
    origin = parts[0]
    if len(parts) > 1 or not origin.written:
        how = (
            f"run {origin.command} and write its output into the page" if origin.by_hand else "none of them is complete"
        )
        raise UserError(f"{page}: no single command wrote this page; {how if origin.command else 'it names none'}")
    again = f"make evidence PAGE={page} ARGS="
    if len(origin.commits) > 1 and "--only" not in extra:
        raise UserError(f'{page}: its rows are of several calls; say which ones: {again}"--only SETTING …"')
    if origin.module.startswith("benchmarks.gpu."):
        import torch

        if not torch.cuda.is_available():
            raise UserError(f"{page}: needs a CUDA GPU, and there is none here")
    target = f"docs/evidence/{page}.md"
    replaced = {word for word in extra if word.startswith("--")}
    words, written = ["-m", origin.module], False
    for group in _groups(shlex.split(origin.command)[3:]):
        option, values = group[0], group[1:]
        if option in ("--write", "--report", "--out") and values:
            if values[0].endswith(".md"):
                words, written = [*words, option, target], True
        elif option not in replaced and option not in LEFT_OUT:
            words += group
            _require(page, option, values, again)
    source = (ROOT / f"{origin.module.replace('.', '/')}.py").read_text("utf-8")
    option = next((name for name in ("--write", "--report") if f'"{name}"' in source), "")
    return [*words, *([option, target] if option and not written else []), *extra]


def _groups(words: list[str]) -> list[list[str]]:
    """Return options with their values; words before the first option are groups of their own."""
    groups: list[list[str]] = []
    for word in words:
        if word.startswith("--") or not groups or not groups[-1][0].startswith("--"):
            groups.append([word])
        else:
            groups[-1].append(word)
    return groups


def _require(page: str, option: str, values: list[str], again: str) -> None:
    """Raise UserError for data, checkpoints or a run that are not there."""
    for name in values if option in INPUTS else [] if option.startswith("--") else [option]:
        if not (ROOT / name).exists():
            remedy = "run make demo first" if name.startswith(MAKE_DEMO) else f'say where: {again}"{option} FOLDER"'
            raise UserError(f"{page}: {name} is not there; {remedy}")


def make_page(name: str, extra: list[str]) -> int:
    """Make a page again by its command and return the command's exit status."""
    known = pages()
    if name not in known:
        raise UserError(f"there is no page {name!r} in docs/evidence; there are: {', '.join(known)}")
    words = command_again(name, known[name], extra)
    print(shlex.join(["python", *words]))
    print("What an earlier call has measured into runs/ is kept; to measure it again, remove it there.", flush=True)
    return subprocess.run([sys.executable, *words], cwd=ROOT, check=False).returncode


def main() -> int:
    parser = argument_parser(__doc__, whole_text=True)
    parser.add_argument("--page", help="make this page again by its command")
    parser.add_argument("--files", action="store_true", help="list the files that have changed")
    arguments, extra = parser.parse_known_args()
    if arguments.page:
        return make_page(Path(arguments.page).stem, extra)
    if extra:
        parser.error(f"unknown without --page: {' '.join(extra)}")
    print(table(arguments.files))
    return 0


if __name__ == "__main__":
    run_script(main)
