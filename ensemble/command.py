"""The command ``arena-distill``: every subcommand of both packages, the demo and the shipped recipes.

``arena-distill --help`` lists them by task. Make targets call the same command.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ensemble.__main__ import SUBCOMMANDS as LATER_STAGES
from oof.__main__ import SUBCOMMANDS as STAGE_ONE
from oof.command_line import add_config_arguments, run_subcommand
from oof.common import interrupts
from oof.common.atomic_files import replacing
from oof.common.digests import file_digest
from oof.common.progress import progress
from oof.common.stage_end import GOALS
from oof.common.wording import called_by_make, in_words_of_the_command
from oof.config.load import parse_overrides
from oof.config.shipped_recipes import FOLDER, recipes_folder, shipped_recipe
from oof.subcommand import PROGRAM, Subcommand, build_parser

DESCRIPTION = (
    "From pairwise judgements of chatbot answers to one small, calibrated model that predicts them. "
    "'arena-distill demo' runs all three stages on a synthetic arena, on a CPU, in a few minutes."
)
DEMO = ("oof", "stack", "distill", "predict", "table", "report")  # subcommands, in this order
DEMO_RUN = "runs/demo"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit status (:data:`oof.subcommand.EXIT_STATUSES`)."""
    parser = build_parser(PROGRAM, DESCRIPTION, SUBCOMMANDS)
    return run_subcommand(parser, argv, str if called_by_make() else in_words_of_the_command)


def _demo(arguments: argparse.Namespace) -> int:
    run = parse_overrides(arguments.overrides).get("run") or DEMO_RUN
    settings = [arguments.config or shipped_recipe("demo"), *arguments.overrides, f"run={json.dumps(run)}"]
    if arguments.redo:
        settings.append("--redo")
    for subcommand in DEMO:
        status = _call([subcommand, *([str(run)] if subcommand == "report" else settings)])
        if status:
            return status if status > 0 else 128 - status  # ended by a signal, as a shell reports it
    return 0


def _call(words: list[str]) -> int:
    """Run a subcommand in a process of its own, as make does: results do not depend on what ran before it."""
    environment = {**os.environ, GOALS: " ".join(DEMO)}
    # The installed script, because with -m a user's ensemble.py in the working folder would come first.
    script = Path(sys.argv[0])
    start = [str(script)] if script.name == PROGRAM and script.is_file() else ["-m", "ensemble.command"]
    process = subprocess.Popen([sys.executable, *start, *words], env=environment)  # noqa: S603  # our own command
    try:
        with progress("demo", silent=True):  # the stage writes lines of its own
            return process.wait()
    except (interrupts.Stopped, KeyboardInterrupt):
        process.terminate()  # the stage saves its work
        return process.wait()


def _init(arguments: argparse.Namespace) -> None:
    source, target = recipes_folder(), Path(arguments.target) / FOLDER
    kept = []
    for path in sorted(path for pattern in ("*.yaml", "bases/*/*") for path in source.glob(pattern)):
        copy = target / path.relative_to(source)
        if copy.exists() and file_digest(copy) != file_digest(path) and not arguments.redo:
            kept.append(copy)
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        with replacing(copy) as temporary:
            shutil.copyfile(path, temporary)
    for copy in kept:
        print(f"init: kept {copy}, which differs from the shipped file (--redo replaces it)")
    print(f"init: {len(list(source.glob('*.yaml')))} recipes and the demo's base checkpoints in {target}")


def _init_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", nargs="?", default=".", metavar="FOLDER", help=f"FOLDER/{FOLDER} (default: here)")
    parser.add_argument("--redo", action="store_true", help="replace files that differ from the shipped ones")


SUBCOMMANDS = (
    Subcommand(
        "demo", _demo, "get started", "all three stages on a synthetic arena, on a CPU: runs/demo",
        "arena-distill demo", add_config_arguments, ("data.synth.battles", "stack.trials", "jobs.workers"),
    ),
    Subcommand(
        "init", _init, "get started", "write the shipped recipes, configs/*.yaml, into a folder",
        "arena-distill init my-project", _init_arguments,
    ),
    *STAGE_ONE,
    *LATER_STAGES,
)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
