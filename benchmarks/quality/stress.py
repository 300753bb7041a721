"""Stress test of a student that learned from real chats: LLMBar, most of whose worse responses have the better style.

    python -m benchmarks.quality.stress runs/peers/chats-report/run distill.start=member --data DIR

The run is one whose stack ``benchmarks/quality/peers.py`` or ``students.py`` has made. ``arena-distill distill``, with
the settings that are named, makes its student first, where that is missing. The table also goes into the student's
card, as by ``arena-distill stress``.

*Right* is the share of battles in which the better response has the greater probability; chance is 0.5, and a judge
that goes by style alone is below it. *Longer* takes the response of more characters. Intervals: 95 %, over prompts.

Source: Zeng et al., Evaluating large language models at evaluating instruction following, ICLR 2024.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from benchmarks.common import argument_parser, paragraphs, require, run_script, write_page
from ensemble import open_run
from ensemble.__main__ import main as ensemble_main
from ensemble.distillation.stress_card import add_stress_section
from ensemble.evaluation.open_run import Run
from ensemble.statistics.interval_words import in_words
from oof.common.errors import UserError
from oof.common.logging_setup import quiet_libraries

LLMBAR = "llmbar.csv.gz"


def about(run: Run) -> str:
    """Return a sentence about a run's student: what it learned from, and how well."""
    battles = run.battles().filter(pl.col("role") == "train").height
    losses = {row["predictor"]: row["log_loss"] for row in run.table().iter_rows(named=True)}
    with run.config() as config:
        base = Path(config.distill.student.checkpoint).name
    return (
        f"Student: {base}, from {battles:,} judged battles; log loss on these out of fold {losses['student']:.4f}, "
        f"shares of the classes {losses['prior']:.4f}."
    )


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of a run with a finished stack")
    parser.add_argument("settings", nargs="*", help="of its student, such as distill.start=member")
    parser.add_argument("--data", type=Path, default=Path("data"), help=f"folder of {LLMBAR}")
    parser.add_argument("--write", type=Path, help="the page, e.g. docs/evidence/stress.md; default: in the run")
    arguments = parser.parse_args()
    quiet_libraries()
    path = arguments.data / LLMBAR
    require([path, arguments.run], "RUN and --data")
    if status := ensemble_main(["distill", "--run", str(arguments.run), *arguments.settings]):
        raise UserError(f"distill failed with status {status}; see above")
    rows = add_stress_section(arguments.run, path)
    lines = [
        paragraphs(__doc__, 2),
        "",
        about(open_run(arguments.run)),
        "",
        "| battles | number | student right | longer right |",
        "|---|---|---|---|",
    ]
    lines += [f"| {r.name} | {r.n:,} | {in_words(r.student, '.3f')} | {in_words(r.longer, '.3f')} |" for r in rows]
    print(write_page(arguments.write or arguments.run / "stress.md", "Stress test", lines))


if __name__ == "__main__":
    run_script(main)
