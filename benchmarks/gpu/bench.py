"""Benchmark of the GPU path in one command: rates, training, Trainer, scoring, QLoRA, operations, all stages.

    python -m benchmarks.gpu.bench                              # make bench-gpu: at most 20 minutes on an 80 GB card
    python -m benchmarks.gpu.bench --only rates training        # some parts
    python -m benchmarks.gpu.bench --models DIR --data DIR      # with small pre-trained models on real judgements
    python -m benchmarks.gpu.bench --attn blockwise             # where the attention that "auto" takes crashes
    python -m benchmarks.gpu.bench --check                      # what is missing on this machine; measures nothing
    python -m benchmarks.gpu.bench --quick                      # tiny shapes; a CPU suffices

No network is needed: the 9B and 8B shapes have random weights, made on the card. Each part runs in a process of its own
with a time box. What does not fit into the memory, or needs a package that is not installed, is a row of its table.
Results are kept in ``runs/bench-gpu``, so that a rerun measures only what is missing; failed cases are tried again. The
page is written after every part.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, argument_parser, commit, run_script, write_page
from benchmarks.gpu.bench_page import TITLE, body
from benchmarks.gpu.card import describe, missing, result_key
from benchmarks.gpu.parts import OUT_OF_MEMORY, PARTS, PROBLEM, Case, Context, Row
from benchmarks.gpu.results import Results
from benchmarks.peer_environment import last_words
from oof.common.atomic_files import read_json, write_json
from oof.common.errors import UserError
from oof.common.logging_setup import quiet_libraries
from oof.distributed.gpus import see_one_gpu

PAGE = Path("docs/evidence/gpu.md")
SECONDS_TO_STOP = 20.0  # for an orderly stop at the end of a time box
OUR_PACKAGES = ("oof", "ensemble", "benchmarks")
SLOW_CPU = 5  # times the time boxes, for tiny shapes on a CPU that does other work, too
BROKEN = 3  # status of a process whose case failed in an unknown way, which may have broken its CUDA context


def measured_row(part: str, case: Case, context: Context) -> tuple[Row, bool]:
    """Return a case's row, or one that names its problem; and whether this process is fit for more cases."""
    try:
        row: Row = importlib.import_module(f"benchmarks.gpu.{PARTS[part].module}").measure(case, context)
        return row, True
    except Exception as error:
        return failed_row(error)


def failed_row(error: Exception) -> tuple[Row, bool]:
    """Return the row that names a case's problem; and whether its process is fit for more cases."""
    from torch import OutOfMemoryError

    if isinstance(error, OutOfMemoryError):
        return {PROBLEM: OUT_OF_MEMORY}, True
    if isinstance(error, UserError):
        return {PROBLEM: first_line(error)}, True
    if isinstance(error, ImportError) and (error.name or "").split(".")[0] not in OUR_PACKAGES:
        return {PROBLEM: f"not installed: {first_line(error)}"}, True
    return {PROBLEM: f"{type(error).__name__}: {first_line(error)}"}, False


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def measure_cases(part: str, context: Context, results: Results) -> int:
    """Measure every missing case of a part, in this process; return its exit status."""
    for case in results.missing(PARTS[part].cases(context)):
        write_json(marker(part, context), list(case))
        begun = time.perf_counter()
        row, fit = measured_row(part, case, context)
        row |= {"case_seconds": time.perf_counter() - begun, "commit": commit()}
        results.put(case, row)
        print(f"{part}: {', '.join(case)}: {row.get(PROBLEM, 'measured')}", flush=True)
        if not fit:
            return BROKEN
    return 0


def marker(part: str, context: Context) -> Path:
    """Return the file that names the case which is being measured, for the case that kills its process."""
    return context.folder / f"{part}.case.json"


def run_part(part: str, context: Context, key: dict[str, Any], seconds: float) -> None:
    """Measure a part in processes of their own until it is complete or its time box ends.

    A process that dies leaves a row with the reason for the case that it measured; the next one goes on behind it.
    """
    path, ends = context.folder / f"{part}.json", time.monotonic() + seconds
    Results(path, key).forget_problems()
    while left := Results(path, key).missing(PARTS[part].cases(context)):
        write_json(marker(part, context), list(left[0]))
        status = run_process(part, context, ends - time.monotonic())
        if status is None:
            print(f"{part}: its {seconds:.0f} s are over; run it again to go on", file=sys.stderr)
            return
        dead: Case = tuple(read_json(marker(part, context)))
        results = Results(path, key)
        if status not in (0, BROKEN) and dead in results.missing([dead]):
            said = last_words(log_file(part, context))[:200] or "no output"
            reason = f"the process ended with status {status}: {said}"
            results.put(dead, {PROBLEM: reason, "commit": commit()})


def run_process(part: str, context: Context, seconds: float) -> int | None:
    """Run one process of a part; return its status, or None if it was stopped at the end of the time box."""
    with log_file(part, context).open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            part_command(part, context), stdout=log, stderr=log, cwd=ROOT, start_new_session=True
        )
        try:
            return process.wait(max(seconds, 0.1))
        except subprocess.TimeoutExpired:
            return None
        finally:
            end_group(process)


def part_command(part: str, context: Context) -> list[str]:
    """Return the command of a process that does one part's work."""
    command = [sys.executable, "-m", "benchmarks.gpu.bench", "--part", part, "--folder", str(context.folder)]
    command += ["--attn", context.attention, *(["--quick"] if context.quick else [])]
    for option, path in (("--models", context.models), ("--data", context.data)):
        command += [option, str(path)] if path else []
    return command


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started, in good order where they can."""
    for number, patience in ((signal.SIGTERM, SECONDS_TO_STOP), (signal.SIGKILL, 1.0)):
        ends = time.monotonic() + patience
        try:
            os.killpg(process.pid, number)
            while time.monotonic() < ends:
                process.poll()  # or its entry would stay among the processes
                os.killpg(process.pid, 0)
                time.sleep(0.1)
        except ProcessLookupError:
            return


def log_file(part: str, context: Context) -> Path:
    return context.folder / f"{part}.log"


def read_card(context: Context) -> dict[str, Any]:
    """Return the machine's description, made by a process of its own so that this one holds no memory of the card."""
    subprocess.run(part_command("card", context), cwd=ROOT, check=True)
    card: dict[str, Any] = read_json(context.folder / "card.json")
    return card


def page_path(arguments: argparse.Namespace, card: dict[str, Any], context: Context) -> Path:
    """Return where the page is written: among the documents only when the real sizes ran on a GPU."""
    if arguments.out:
        return Path(arguments.out)
    return PAGE if card["gpu"] and not context.quick else context.folder / "gpu.md"


def make_command(arguments: argparse.Namespace) -> str:
    """Return the make command without the folders of this machine."""
    options = [f"--only {','.join(arguments.only)}"] if arguments.only else []
    options += [f"--attn {arguments.attn}"] if arguments.attn != "auto" else []
    options += ["--models DIR --data DIR"] if arguments.models and arguments.data else []
    variables = ["QUICK=1"] if arguments.quick else []
    variables += [f'ARGS="{" ".join(options)}"'] if options else []
    return " ".join(["make bench-gpu", *variables])


def chosen_parts(words: list[str]) -> list[str]:
    """Return the parts that are named, with commas or spaces between them, in the order in which they run.

    Raises:
        UserError: there is no such part.
    """
    names = [name for word in words for name in word.split(",") if name]
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise UserError(f"no part {unknown[0]!r}; there are: {', '.join(PARTS)}")
    return [name for name in PARTS if name in names or not names]


def main() -> None:
    parser = argument_parser(__doc__, whole_text=True)
    parser.add_argument("--only", nargs="*", default=[], help=f"parts: {', '.join(PARTS)}")
    parser.add_argument("--models", type=Path, help="folder of smollm2-135m and gemma3-270m")
    parser.add_argument("--data", type=Path, help="folder of the real judgements")
    parser.add_argument("--attn", default="auto", help="attention where a case names none; default: auto")
    parser.add_argument("--out", type=Path, help=f"the page; default: {PAGE} on a GPU, else in --folder")
    parser.add_argument("--folder", type=Path, help="of results; default: runs/bench-gpu, quick: runs/bench-gpu-quick")
    parser.add_argument("--redo", action="store_true", help="measure the chosen parts again")
    parser.add_argument("--check", action="store_true", help="print what is missing on this machine, and end")
    parser.add_argument("--quick", action="store_true", help="tiny shapes; a CPU suffices")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.only = chosen_parts(arguments.only) if arguments.only else []
    folder = arguments.folder or Path("runs/bench-gpu-quick" if arguments.quick else "runs/bench-gpu")
    models, data = (path.resolve() if path else None for path in (arguments.models, arguments.data))
    context = Context(folder.resolve(), arguments.quick, models, data, arguments.attn)
    see_one_gpu(0)
    if arguments.part:
        quiet_libraries()
        sys.exit(run_here(arguments.part, context))
    if arguments.check:
        print("\n".join(missing(context)) or "nothing is missing")
        return
    context.folder.mkdir(parents=True, exist_ok=True)
    card = read_card(context)
    if not card["gpu"] and not context.quick:
        raise UserError("no GPU here; QUICK=1 (--quick) runs tiny shapes on a CPU")
    run_all(arguments, context, card)


def run_here(part: str, context: Context) -> int:
    """Do the work of a part's process; return its status."""
    if part == "card":
        write_json(context.folder / "card.json", describe())
        return 0
    results = Results(context.folder / f"{part}.json", result_key(read_json(context.folder / "card.json"), context))
    return measure_cases(part, context, results)


def run_all(arguments: argparse.Namespace, context: Context, card: dict[str, Any]) -> None:
    """Run the chosen parts and write the page after each."""
    key, target = result_key(card, context), page_path(arguments, card, context)
    text = ""
    for part in arguments.only or list(PARTS):
        path = context.folder / f"{part}.json"
        if arguments.redo:
            path.unlink(missing_ok=True)
        seconds = PARTS[part].seconds * (SLOW_CPU if context.quick else 1)
        print(f"{part}: up to {seconds:.0f} s", file=sys.stderr, flush=True)
        run_part(part, context, key, seconds)
        rows = {name: ordered_rows(name, context, key) for name in PARTS}
        text = write_page(target, TITLE, body(card, rows, context), make_command(arguments))
    print(text)
    print(f"written: {target}", file=sys.stderr)


def ordered_rows(part: str, context: Context, key: dict[str, Any]) -> dict[Case, Row]:
    """Return a part's rows in the order of its cases."""
    rows = Results(context.folder / f"{part}.json", key).rows
    return {case: rows[case] for case in dict.fromkeys([*PARTS[part].cases(context), *rows]) if case in rows}


if __name__ == "__main__":
    run_script(main)
