"""Hostile input: long runs of the tests with broken battles, configurations, logits, weights and texts.

    python -m benchmarks.robustness.fuzz [--seed 1] [--files 2000]                 # about ten minutes a core
    python -m benchmarks.robustness.fuzz --write docs/evidence/fuzz.md

Each case must end in one clear sentence or in a correct result, as the test named in the table defines it for each
kind of input. Hypothesis and the fuzzer of battle files draw their cases from the seed. Exit status 1 if any case ends
otherwise.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree import ElementTree  # reads only pytest's own output

from benchmarks.common import ROOT, argument_parser, run_script, timed, write_page

FUZZER = "tests/fixtures/fuzz_battles.py"
INPUTS = {
    FUZZER: "battle files: nine schemas in four formats; cells, columns, rows and bytes broken",
    "tests/oof/config/test_hostile_config.py": "configurations: any value of any setting, overrides, broken YAML, "
    "bombs, deep nesting, huge numbers, run and member names with `../`",
    "tests/ensemble/stacking/test_hostile_logits.py": "files of logits: NaN, Inf, lost, repeated and unknown ids, "
    "another order, broken bytes, 10^7 rows",
    "tests/oof/model/test_hostile_weights.py": "checkpoints and adapters: truncated and flipped safetensors, wrong "
    "shapes, false headers and settings, folders that ask for their own code",
    "tests/oof/model/test_no_code.py": "pickles, chat templates and special tokens with code in them",
    "tests/ensemble/report/test_page.py::test_hostile_battles_stay_text": "HTML and script in every text field "
    "of a report",
}


@dataclass
class Row:
    """Result for one kind of input: cases, refusals in one sentence (None: not counted), failures."""

    cases: int
    refused: int | None
    failures: int


def battles(files: int, seed: int) -> Row:
    """Run the fuzzer of battle files."""
    command = [sys.executable, "-m", FUZZER.removesuffix(".py").replace("/", "."), "--files", str(files)]
    command += ["--seed", str(seed)]
    done = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True, check=False)
    print(done.stdout, end="", flush=True)
    last = done.stdout.splitlines()[-1] if done.stdout else ""
    refused, failures = re.search(r"(\d+) refused", last), re.search(r"(\d+) failures", last)
    if failures is None:
        sys.exit(f"{FUZZER} did not end: {done.stderr[-1000:]}")
    return Row(files, int(refused[1]) if refused else 0, int(failures[1]))


def tests(path: str, seed: int) -> Row:
    """Run one file of tests; each example of a Hypothesis test is a case."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.xml"
        command = [sys.executable, "-m", "pytest", path, "-m", "slow or not slow", "-p", "no:cacheprovider"]
        command += ["--hypothesis-show-statistics", f"--hypothesis-seed={seed}", f"--junitxml={result}"]
        done = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True, check=False)
        if not result.is_file():
            sys.exit(f"{path}: no result: {done.stdout[-500:]}{done.stderr[-500:]}")
        test_cases = ElementTree.parse(result).getroot().iter("testcase")
        run = [case for case in test_cases if case.find("skipped") is None]
    failures = sum(case.find("failure") is not None or case.find("error") is not None for case in run)
    cases, refused, hypothesis_tests, counts_refusals = len(run), 0, 0, False
    for statistics in re.split(r"\n(?=\S+::\S+:\n)", done.stdout):
        examples = sum(int(n) for n in re.findall(r"- (\d+) passing, ", statistics))
        shares = re.findall(r"\* ([\d.]+)%, refused", statistics)
        counts_refusals |= bool(shares)
        refused += round(sum(float(share) for share in shares[-1:]) / 100 * examples)
        hypothesis_tests += bool(examples)
        cases += examples
    cases -= hypothesis_tests  # their examples count instead
    print(f"{path}: {cases} cases, {failures} failures", flush=True)
    if failures:
        print(done.stdout[-6000:])
    return Row(cases, refused if counts_refusals else None, failures)


def _environment() -> dict[str, str]:
    return {**os.environ, "HYPOTHESIS_PROFILE": "explore", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--files", type=int, default=2000, help="broken battle files")
    parser.add_argument("--write", type=Path, help="the page, for example docs/evidence/fuzz.md")
    arguments = parser.parse_args()
    lines = [
        "A case is one file, value, folder or text that was broken or written to do harm. It must end in one clear "
        "sentence (refused) or in a correct result, as the named test defines it. A traceback, a crash, a hang, lost "
        "rows, a leftover file or code that runs is a failure.",
        "",
        "| input | cases | refused, where counted | failures | seconds | test |",
        "|---|---|---|---|---|---|",
    ]
    failures = 0
    for path, description in INPUTS.items():
        run = partial(battles, arguments.files) if path == FUZZER else partial(tests, path)
        row, seconds = timed(partial(run, arguments.seed))
        refused = "" if row.refused is None else f"{row.refused:,}"
        lines.append(f"| {description} | {row.cases:,} | {refused} | {row.failures} | {seconds:,.0f} | `{path}` |")
        failures += row.failures
    print("\n".join(lines))
    if arguments.write:
        command = f"python -m benchmarks.robustness.fuzz --seed {arguments.seed} --files {arguments.files}"
        write_page(arguments.write, "Hostile input", lines, command)
    return int(failures > 0)


if __name__ == "__main__":
    run_script(main)
