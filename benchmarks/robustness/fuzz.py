"""Hostile input at length: broken battles, configurations, logits, weights and texts; docs/results-fuzz.md.

    python -m benchmarks.robustness.fuzz [--seed 1] [--files 2000] [--write docs/results-fuzz.md]      (about ten minutes a core)

Each case must end in one clear sentence or in a right result: the tests named in the table say what that is for each
kind of input. Hypothesis draws its cases from the seed, and so does the fuzzer of battle files. Exit status 1 if any
case ends otherwise.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree  # reads what pytest has just written

from benchmarks.common import commit, machine
from oof.common.atomic_files import replacing

ROOT = Path(__file__).resolve().parents[2]
FUZZER = "tests/fixtures/fuzz_battles.py"
TESTS = {
    "tests/oof/config/test_hostile_config.py": "configurations: any value of any setting, overrides, broken YAML, bombs, "
    "deep nesting, huge numbers, run and member names with `../`",
    "tests/ensemble/stacking/test_hostile_logits.py": "files of logits: NaN, Inf, lost, repeated and unknown ids, another "
    "order, broken bytes, 10^7 rows",
    "tests/oof/model/test_hostile_weights.py": "checkpoints and adapters: truncated and flipped safetensors, wrong shapes, "
    "headers and settings that lie, folders that ask for their own code",
    "tests/oof/model/test_no_code.py": "pickles, chat templates and special tokens that would do something",
    "tests/ensemble/report/test_page.py::test_hostile_battles_stay_text": "HTML and script in every text field "
    "of a report",
}


@dataclass
class Row:
    """What came of one kind of input: cases, those refused in one sentence (None: not counted), failures, seconds."""

    cases: int
    refused: int | None
    failures: int
    seconds: float


def battles(files: int, seed: int) -> Row:
    begun = time.monotonic()
    command = [sys.executable, FUZZER, "--files", str(files), "--seed", str(seed)]
    done = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True, check=False)
    print(done.stdout, end="", flush=True)
    last = done.stdout.splitlines()[-1] if done.stdout else ""
    refused, failures = re.search(r"(\d+) refused", last), re.search(r"(\d+) failures", last)
    if failures is None:
        sys.exit(f"{FUZZER} did not end: {done.stderr[-1000:]}")
    return Row(files, int(refused[1]) if refused else 0, int(failures[1]), time.monotonic() - begun)


def tests(path: str, seed: int) -> Row:
    """Run one file of tests; of each Hypothesis test, the examples are the cases."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.xml"
        command = [sys.executable, "-m", "pytest", path, "-m", "slow or not slow", "-p", "no:cacheprovider"]
        command += ["--hypothesis-show-statistics", f"--hypothesis-seed={seed}", f"--junitxml={result}"]
        done = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True, check=False)
        if not result.is_file():
            sys.exit(f"{path}: no result: {done.stdout[-500:]}{done.stderr[-500:]}")
        found = ElementTree.parse(result).getroot().iter("testcase")
        plain = [case for case in found if case.find("skipped") is None]
    failures = sum(case.find("failure") is not None or case.find("error") is not None for case in plain)
    cases, refused, drawn, said = len(plain), 0, 0, False
    for part in re.split(r"\n(?=\S+::\S+:\n)", done.stdout):
        examples = sum(int(n) for n in re.findall(r"- (\d+) passing, ", part))
        shares = re.findall(r"\* ([\d.]+)%, refused", part)
        said |= bool(shares)
        refused += round(sum(float(share) for share in shares[-1:]) / 100 * examples)
        drawn += bool(examples)
        cases += examples
    print(f"{path}: {cases - drawn} cases, {failures} failures", flush=True)
    if failures:
        print(done.stdout[-6000:])
    return Row(cases - drawn, refused if said else None, failures, time.monotonic() - begun)


def _environment() -> dict[str, str]:
    return {**os.environ, "HYPOTHESIS_PROFILE": "explore", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def page(rows: dict[str, Row], words: dict[str, str], arguments: argparse.Namespace) -> str:
    lines = [
        "# Hostile input at length",
        "",
        f"Written by `python -m benchmarks.robustness.fuzz --seed {arguments.seed} --files {arguments.files}` on "
        f"{datetime.now(UTC):%Y-%m-%d} from commit {commit()} ({machine()}).",
        "",
        "A case is one file, value, folder or text that was broken or written to do harm. It must end in one clear "
        "sentence (refused) or in a right result; a traceback, a crash, a hang, lost rows, a file left behind or code "
        "that runs is a failure. What is right is said by the test that is named.",
        "",
        "| input | cases | refused, of those that were drawn | failures | seconds | test |",
        "|---|---|---|---|---|---|",
    ]
    for path, row in rows.items():
        refused = "" if row.refused is None else f"{row.refused:,}"
        lines.append(f"| {words[path]} | {row.cases:,} | {refused} | {row.failures} | {row.seconds:,.0f} | `{path}` |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--files", type=int, default=2000, help="broken battle files")
    parser.add_argument("--write", type=Path, help="page for the table")
    arguments = parser.parse_args()
    words = {FUZZER: "battle files: nine schemas in four formats; cells, columns, rows and bytes broken"} | TESTS
    rows = {FUZZER: battles(arguments.files, arguments.seed)}
    rows |= {path: tests(path, arguments.seed) for path in TESTS}
    text = page(rows, words, arguments)
    print(text)
    if arguments.write:
        with replacing(arguments.write) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return int(any(row.failures for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
