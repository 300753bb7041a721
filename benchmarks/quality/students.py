"""All stages on synthetic and real battles, and the effect of each setting of the student.

    python -m benchmarks.quality.students                                # the synthetic arena; rerun to go on
    python -m benchmarks.quality.students --sets chats --data DIR --models DIR --minutes 60
    python -m benchmarks.quality.students --sets chats --half report --only 'start from the member'    # make quality

Each student is the plain one with one change: three folds, KL to the calibrated stack's out-of-fold probabilities,
from the base, labelled battles alone. Every figure is out of fold: a battle is scored by the fold student that was not
trained on its fold, at the temperature of the other folds. Differences are paired, with 95 % intervals over groups of
near-duplicate prompts, or over seeds from five on. ``above the floor`` is the distance from the best possible loss:
known of synthetic battles, and for battles with several votes the entropy of their majority
(``benchmarks/quality/vote_noise.py``). Minutes are those of training the fold students, whatever else the machine did.

The arena is the demo's, with its tiny bases, one for each ``--seeds``. Real battles (arguments: UKPConvArg1; chats:
Vicuna-80, LLMFAO, PandaLM, Tulu 1, with QA feedback to pseudo-label; members SmolLM2-135M and Gemma3-270M, student
Gemma3-270M; votes are soft labels of the members, wherever there are some) are split once by prompt: the half
``develop`` is there to choose settings on, and rows of ``report`` chose nothing. The defaults, among them the start
from a member, are those of the arenas. A first run on the report half of the chats had heads that started at random and
learned at twenty times the default rate, and members worse than guessing; both were mended, and the half run again.

``--finish`` makes the student of one setting the run's, as ``benchmarks.quality.cascade`` needs; ``--half both`` takes
all prompts, where no setting is chosen.

Every fold job and every student is kept in ``--out``, so a call can be stopped, and the next one goes on. The page has
what is finished of the sets, seeds and halves that the command names; ``--table`` runs nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import argument_parser, chosen, paragraphs, require, run_script, write_page
from benchmarks.quality.students_page import Measured, measured, section
from benchmarks.quality.students_runs import measure
from benchmarks.quality.students_settings import ARENA, BOTH, HALVES, MEMBERS, REAL, Part, arena, real
from oof.common import interrupts
from oof.common.logging_setup import quiet_libraries

ARENA_BATTLES = 2000


def parts(arguments: argparse.Namespace) -> list[Part]:
    """Return the parts that the command line asks for, with their files."""
    sizes = {name: getattr(arguments, name) for name in ("battles", "tokens", "epochs")}
    out, data, models = arguments.out, arguments.data, arguments.models
    found = []
    for name in arguments.sets:
        if name == ARENA:
            found += [arena(out, seed, arguments.battles or ARENA_BATTLES) for seed in arguments.seeds]
            continue
        files = [data / file for file in (*REAL[name].files, *REAL[name].unlabelled)]
        require([*files, *(models / folder for folder in MEMBERS.values())], "--data and --models")
        found += [real(name, half, out, data, models, sizes) for half in arguments.half]
    return found


def page(found: Sequence[Part]) -> list[str]:
    """Return the page's lines: a section for each section of the parts that has something finished."""
    sections: dict[str, list[Measured]] = {}
    for part in found:
        of_part = measured(part)
        if of_part is not None:
            sections.setdefault(part.section, []).append(of_part)
    lines = [paragraphs(__doc__, 2, 4), ""]
    for name, of_section in sections.items():
        lines += [*section(name, of_section), ""]
    return lines


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--sets", nargs="+", choices=[ARENA, *REAL], default=[ARENA])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the arenas")
    parser.add_argument("--half", nargs="+", choices=[*HALVES, BOTH], default=HALVES[:1], help="of the real prompts")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the real battles")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of smollm2-135m and gemma3-270m")
    parser.add_argument("--only", nargs="*", default=[], metavar="SETTING", help="default: all")
    parser.add_argument("--battles", type=int, default=0, help="scored ones of each part; 0: 2,000, 1,200 or 1,500")
    parser.add_argument("--tokens", type=int, default=0, help="of a real battle; 0: 256 or 384")
    parser.add_argument("--epochs", type=float, default=0.0, help="on real battles; 0: 2 or 1")
    parser.add_argument("--finish", default="", metavar="SETTING", help="finish the run's stage three with it first")
    parser.add_argument("--minutes", type=float, default=0.0, help="stop in good order after this time; 0: never")
    parser.add_argument("--table", action="store_true", help="run nothing, write the page of what is finished")
    parser.add_argument("--out", type=Path, default=Path("runs/students"))
    parser.add_argument("--write", type=Path, help="the page, e.g. docs/evidence/students.md; default: in --out")
    arguments = parser.parse_args()
    quiet_libraries()
    interrupts.install()
    deadline = time.monotonic() + 60 * arguments.minutes if arguments.minutes else float("inf")
    found = parts(arguments)
    known = dict.fromkeys(name for part in found for name in part.settings)
    names = chosen(arguments.only, known)
    finish = chosen([arguments.finish], known)[0] if arguments.finish else ""
    try:
        for part in [] if arguments.table else found:
            measure(part, [name for name in names if name in part.settings], deadline, finish)
    except interrupts.Stopped as stop:
        print(f"stopped by {stop}; run the same command again to go on", file=sys.stderr)
    title = "Settings of the student" if arguments.sets == [ARENA] else "Stack and student on real battles"
    print(write_page(arguments.write or arguments.out / "students.md", title, page(found)))


if __name__ == "__main__":
    run_script(main)
