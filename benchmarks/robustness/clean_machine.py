"""Clean-machine drill: a new user with nothing but git, make and Python runs what the README says.

    python -m benchmarks.robustness.clean_machine --pythons python3.11 python3.12 python3.13  # 15 minutes each

Each Python gets a fresh clone of the last commit and an empty home folder; of the environment it sees the search path
alone. The wheel is built from the clone and installed into an environment outside it, where ``arena-distill demo`` runs
in an empty folder. ``make test`` includes the notebooks.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.common import ROOT, argument_parser, paragraphs, run_script, timed, write_page

WHEEL = "{python} -m venv {out} && {out}/bin/pip install -q -c constraints.txt . && mkdir {out}/empty && cd {out}/empty"
STEPS = {
    "`make demo`": "make demo PYTHON={python}",
    "`make audit`": "make audit RUN=runs/demo",
    "`make test`": "make test",
    "`make docs`": "make docs",
    "wheel: `arena-distill demo`": f"{WHEEL} && {{out}}/bin/arena-distill demo",
}


def minutes_of(python: str, scratch: Path) -> Iterator[float | None]:
    """Yield the minutes of each step with a Python; None of a step that failed, whose end is printed."""
    clone, home = scratch / "arena-distill", scratch / "home"
    home.mkdir(parents=True)
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    for name, step in STEPS.items():
        command = ["bash", "-c", step.format(python=python, out=scratch / "outside")]
        call = partial(subprocess.run, command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
        done, seconds = timed(call)
        print(f"{python}: {name}: status {done.returncode}, {seconds / 60:.1f} min", file=sys.stderr, flush=True)
        if done.returncode:
            print((done.stdout + done.stderr)[-3000:], file=sys.stderr, flush=True)
        yield None if done.returncode else seconds / 60


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--pythons", nargs="+", default=[sys.executable], metavar="PYTHON", help="programs")
    parser.add_argument("--write", type=Path, default=Path("docs/evidence/clean-machine.md"), help="the page")
    arguments = parser.parse_args()
    lines = [paragraphs(__doc__, 2), "", "Minutes of each step, the installation included:", ""]
    lines += [f"| | {' | '.join(STEPS)} |", "|---" * (len(STEPS) + 1) + "|"]
    failed = False
    for python in arguments.pythons:
        with tempfile.TemporaryDirectory() as folder:
            minutes = list(minutes_of(python, Path(folder)))
        version = subprocess.run([python, "--version"], capture_output=True, text=True, check=True).stdout.strip()
        cells = ["**failed**" if step is None else f"{step:.1f}" for step in minutes]
        lines.append(f"| {version} | {' | '.join(cells)} |")
        failed |= None in minutes
    print(write_page(arguments.write, "Clean machine", lines))
    return int(failed)


if __name__ == "__main__":
    run_script(main)
