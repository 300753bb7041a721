"""Installation in fresh environments, and which versions of other packages fit beside this one.

    python -m benchmarks.robustness.installation --write docs/evidence/installation.md     # 20 minutes, 15 GB of disk

Each environment is a new one without pip's cache, as after ``git clone``. Versions beside it are resolved by uv without
an installation: first with this package, then the newest alone.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.common import ROOT, argument_parser, run_script, timed, write_page
from oof.common.errors import UserError

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PYPI = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": ""}  # no settings of this machine
ENVIRONMENTS = (  # what, extras, whether torch is the build for CPUs
    ("`make demo`, `make setup`", "", False),
    ("`make demo CPU=1`", "", True),
    ("`make test`, `make lint`, `make docs`", "[dev]", False),
    ("`make test CPU=1`", "[dev]", True),
)
NEIGHBOURS = ("scikit-learn", "torch", "vllm", "sglang", "trl", "autogluon.tabular", "ray")
MEGABYTES = {"kB": 1e-3, "MB": 1.0, "GB": 1e3}


def install(folder: Path, extras: str, cpu: str | None) -> tuple[float, float, int, float]:
    """Install the repository into a new environment; return MB downloaded, MB on disk, packages and seconds.

    Args:
        folder: of the environment.
        extras: of the requirement.
        cpu: an index, or a folder of wheels, with builds of torch for CPUs; None = the build of PyPI.
    """
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    before, python = size(folder), str(folder / "bin" / "python")
    source = [] if cpu is None else ["--extra-index-url" if "://" in cpu else "--find-links", cpu]
    command = [python, "-m", "pip", "install", "--no-cache-dir", "--disable-pip-version-check", "--progress-bar", "off"]
    command += [*source, "-c", "constraints.txt", f".{extras}"]
    output, seconds = timed(lambda: call(command, PYPI))
    downloads = re.findall(r"Downloading \S+ \(([\d.]+) (kB|MB|GB)\)", output)
    listed = call([python, "-m", "pip", "list", "--format", "freeze"], PYPI).splitlines()
    return sum(float(n) * MEGABYTES[unit] for n, unit in downloads), size(folder) - before, len(listed), seconds


def call(command: list[str], environment: Mapping[str, str]) -> str:
    """Return the output of a command that must succeed.

    Raises:
        UserError: it fails; the last line says why.
    """
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"{' '.join(command[:5])} …: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    return done.stdout


def size(folder: Path) -> float:
    """Return the megabytes of the files below a folder; a file of several names counts once."""
    files = {(s.st_dev, s.st_ino): s.st_size for p in folder.rglob("*") if p.is_file() for s in [p.lstat()]}
    return sum(files.values()) / 1e6


def versions(uv: str, sources: list[str], name: str) -> str:
    """Return the version of a package that uv resolves for several requirement files."""
    command = [uv, "pip", "compile", "-q", "--no-header", "--no-annotate", "--python-version", "3.11", *sources]
    resolved = call([*command, "--no-build"], {})
    found = re.search(rf"^{re.escape(name.replace('.', '-'))}==(\S+)", resolved, re.M)
    return found[1] if found else "-"


def neighbour_rows(scratch: Path) -> Iterator[str]:
    """Yield one table row per package: the version beside this one, and the newest."""
    subprocess.run([sys.executable, "-m", "venv", str(scratch / "uv")], check=True)
    call([str(scratch / "uv" / "bin" / "python"), "-m", "pip", "install", "-q", "uv"], {})
    for name in NEIGHBOURS:
        requirement = scratch / "requirement.txt"
        requirement.write_text(f"{name}\n", encoding="utf-8")
        sources = (["pyproject.toml", str(requirement)], [str(requirement)])
        beside, newest = (versions(str(scratch / "uv" / "bin" / "uv"), files, name) for files in sources)
        print(f"{name}: {beside} beside this package, {newest} alone", file=sys.stderr)
        yield f"| `{name}` | {beside} | {newest} | {'yes' if beside == newest else '**no**'} |"


def environment_rows(scratch: Path, arguments: argparse.Namespace) -> Iterator[str]:
    """Yield one table row per environment."""
    for number, (what, extras, cpu) in enumerate(ENVIRONMENTS):
        folder = scratch / f"environment-{number}"
        downloaded, disk, packages, seconds = install(folder, extras, arguments.cpu if cpu else None)
        row = f"| {what} | {packages} | {downloaded:,.0f} | {disk:,.0f} | {seconds / 60:.1f} |"
        print(row, file=sys.stderr)
        yield row


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--cpu", default=CPU_INDEX, help="index or folder with the builds of torch for CPUs")
    parser.add_argument("--only", choices=["environments", "neighbours"], help="measure one of the two tables")
    parser.add_argument("--write", type=Path, help="the page, for example docs/evidence/installation.md")
    arguments = parser.parse_args()
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        if arguments.only != "neighbours":
            lines += ["New environments, pip without a cache, the versions of `constraints.txt`:", ""]
            lines += ["| command | packages | MB downloaded | MB on disk | minutes |", "|---|---|---|---|---|"]
            lines += [*environment_rows(Path(folder), arguments), ""]
        if arguments.only != "environments":
            lines += [
                "Versions that uv resolves for Python 3.11, with this package's requirements and without them:",
                "",
            ]
            lines += ["| package | beside arena-distill | alone | its newest fits |", "|---|---|---|---|"]
            lines += neighbour_rows(Path(folder))
    print("\n".join(lines))
    if arguments.write:
        write_page(arguments.write, "Installation", lines)


if __name__ == "__main__":
    run_script(main)
