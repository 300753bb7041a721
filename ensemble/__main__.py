"""Command line of stages two and three: ``python -m ensemble SUBCOMMAND …``.

Each subcommand imports what it needs only when it runs, so that ``--help`` and commands without work start at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ensemble.serving.subcommands import SERVING, add_student_arguments
from oof.command_line import add_config_arguments, add_run_argument, load_config, locked_run, run_folder, run_subcommand
from oof.common.atomic_files import rewrite_json
from oof.common.errors import UserError
from oof.common.json_output import add_json_option, print_json
from oof.common.progress import progress
from oof.common.steps import locked
from oof.config import Config
from oof.config.load import OVERRIDE
from oof.config.other_stages import refuse_other_stages
from oof.config.stored import load_for_run
from oof.config.user_values import split_paths
from oof.subcommand import Subcommand, build_parser

UP_TO_DATE = "up to date, nothing to do"

if TYPE_CHECKING:
    from ensemble.serving.submission import Prediction


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit status (:func:`oof.command_line.run_subcommand` lists them)."""
    description = "Stages two and three: stacking, distillation, prediction, evaluation."
    return run_subcommand(build_parser("python -m ensemble", description, SUBCOMMANDS), argv)


@contextmanager
def _checked_run(config: Config, arguments: argparse.Namespace, reads: bool = False) -> Iterator[None]:
    """Hold the lock of a run; refuse other data files than those it was made from, and settings of other stages."""
    from oof.jobs.source_files import check_files

    with locked_run(config):
        check_files(config, reads, arguments.redo)
        refuse_other_stages(config, arguments.overrides, arguments.name)
        yield


def _stack(arguments: argparse.Namespace) -> None:
    config = load_config(arguments)

    from ensemble.stacking.stage import load_inputs, run_stack

    own = None
    with _checked_run(config, arguments, reads=bool(config.stack.logits)):
        inputs = load_inputs(config)
        if config.stack.logits and config.stack.test_logits:
            from ensemble.serving.own_logits import OwnLogitsTest
            from ensemble.serving.submission import run_predict

            own = OwnLogitsTest.read(config, inputs)  # before the fits, which take long
        ran = run_stack(config, inputs)
        prediction = run_predict(config, arguments.redo, own) if own is not None else None
    if prediction is not None:
        print(f"predict: {_print_submission(config, prediction)}")
    following = "report" if config.stack.logits or not config.distill.student.checkpoint else "distill"
    arguments.call.end(
        "stack", f"{'done' if ran else UP_TO_DATE} ({Path(config.run) / 'stack'})", following, config.run
    )


def _distill(arguments: argparse.Namespace) -> None:
    config = load_config(arguments)

    from ensemble.distillation.stage import run_distill
    from oof.jobs.finished_training import NO_TRAINING

    with _checked_run(config, arguments):
        words = [word for word in arguments.overrides if not word.startswith(NO_TRAINING)]
        ran = run_distill(config, arguments.redo, asked=any(word.startswith(("distill.", "stack.")) for word in words))
    following = "predict" if config.data.test or not config.data.train else "table"
    student = Path(config.run) / "distill" / "student"
    arguments.call.end("distill", f"{'done' if ran else UP_TO_DATE} ({student})", following, config.run)


def _predict(arguments: argparse.Namespace) -> None:
    config = load_config(arguments)

    from ensemble.serving.submission import run_predict
    from oof.common.process_tuning import prepare_process

    prepare_process()
    with _checked_run(config, arguments):
        prediction = run_predict(config, arguments.redo)
    outcome = _print_submission(config, prediction)
    following = "table" if (Path(config.run) / "distill" / "manifest.json").is_file() else "report"
    arguments.call.end("predict", outcome, following, config.run)


def _print_submission(config: Config, prediction: Prediction) -> str:
    """Print where the submission is; return what was predicted, in words."""
    from ensemble.serving.submission_file import COLUMNS

    print(f"predict: {Path(config.run) / 'submission.csv'}, columns {', '.join(COLUMNS[config.predict.format])}")
    if prediction.kept is not None:
        print(f"predict: the submission of other battles is kept in {prediction.kept}")
    battles = f"{prediction.n:,} battles of {', '.join(prediction.files)} by the {prediction.model}"
    return f"{'written' if prediction.ran else UP_TO_DATE}: {battles}"


def _judge(arguments: argparse.Namespace) -> None:
    from ensemble.serving.json_lines import judge_lines
    from ensemble.serving.judge import Judge
    from oof.common.process_tuning import prepare_process

    prepare_process()
    judge = Judge.from_pretrained(arguments.folder, arguments.dtype, revision=arguments.revision)
    sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    with progress("judge", silent=True):  # it waits for lines
        for line in judge_lines(judge, sys.stdin, max_error=arguments.max_error):
            print(line, flush=True)


def _table(arguments: argparse.Namespace) -> None:
    config = load_config(arguments)

    from ensemble.evaluation.run_table import compute_metrics, print_table

    with _checked_run(config, arguments):
        metrics = compute_metrics(config)
        rewrite_json(Path(config.run) / "metrics.json", metrics)
    if arguments.json:
        print_json(metrics)
        return
    print_table(metrics)
    arguments.call.end("table", f"written to {Path(config.run) / 'metrics.json'}", "report", config.run)


def _slices(arguments: argparse.Namespace) -> None:
    config = load_config(arguments)

    from ensemble.report.student_slices import print_slices, student_slices

    path = Path(config.run) / "student_slices.json"
    with _checked_run(config, arguments):
        content = student_slices(config)
        rewrite_json(path, content)
    if arguments.json:
        print_json(content)
        return
    print_slices(content)
    arguments.call.end("slices", f"written to {path}", "report", config.run)


def _report(arguments: argparse.Namespace) -> None:
    from ensemble.report.make import write_reports

    given = [*arguments.words, *arguments.run]
    words = [word for word in given if OVERRIDE.match(word) and not Path(word).is_dir()]
    runs = [run for word in given if word not in words for run in split_paths(word)]
    if not runs:
        raise UserError("name a run: arena-distill report runs/demo")
    for run in runs if words else []:
        with chdir("."):  # where the run was made, its remembered paths start
            refuse_other_stages(load_for_run(None, [f"run={run}", *words]), words, "report")
    for page in write_reports([Path(run) for run in runs], arguments.price_per_hour, arguments.format):
        print(f"report: {page}")
    arguments.call.end("report", "written")


def _seen(arguments: argparse.Namespace) -> None:
    from ensemble.contamination.check import check_contamination

    run = run_folder(arguments)
    with locked(run):
        matches = check_contamination(run, arguments.corpus, arguments.threshold, arguments.column)
    outcome = f"{int(matches['seen'].sum()):,} of {matches.height:,} battles ({run / 'seen' / 'seen.parquet'})"
    arguments.call.end("seen", outcome, "report", run)


def _ablate(arguments: argparse.Namespace) -> None:
    config = load_config(arguments)

    from ensemble.evaluation.ablations import print_ablations, run_ablations

    with _checked_run(config, arguments):
        content = run_ablations(config)
    print_ablations(content)
    arguments.call.end("ablate", f"written to {Path(config.run) / 'stack' / 'ablations.json'}", "report", config.run)


def _cascade(arguments: argparse.Namespace) -> None:
    config = load_config(arguments)

    from ensemble.cascade.run import CURVE, print_curve, run_cascade
    from oof.common.process_tuning import prepare_process

    prepare_process()
    path = Path(config.run) / "cascade" / CURVE
    with _checked_run(config, arguments):
        content = run_cascade(config)
    print_curve(content)
    arguments.call.end("cascade", f"written to {path}", "report", config.run)


def _features(_: argparse.Namespace) -> None:
    from ensemble.features.design_matrix import describe

    print("# Features of the stacker\n")
    print("Families of columns, from the docstrings of `ensemble/features/battle_features.py` and")
    print("`ensemble/features/design_matrix.py`. Columns ending in `_a` and `_b` swap when the responses swap; columns")
    print("ending in `_diff` change sign. Nothing is fitted.\n")
    print("| family | meaning |\n|---|---|")
    for family, meaning in describe().items():
        print(f"| {family} | {meaning} |")


def _judge_arguments(parser: argparse.ArgumentParser) -> None:
    add_student_arguments(parser)
    parser.add_argument(
        "--max-error",
        type=float,
        metavar="SHARE",
        help="of wrong verdicts among the answered ones, such as 0.2: adds answered and warnings to each verdict",
    )


def _table_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    add_json_option(parser)


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="RUN", help="run folders, and settings that they have")
    parser.add_argument("--run", action="append", default=[], metavar="RUN", help="run folder, too")
    parser.add_argument(
        "--price-per-hour", type=float, default=0.0, help="price of the machine per hour, for the cost of each stage"
    )
    parser.add_argument(
        "--format",
        choices=("html", "md"),
        default="html",
        help="html: one page; md: Markdown and figures as files",
    )


def _seen_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_argument(parser)
    parser.add_argument("--corpus", nargs="+", required=True, metavar="FILE", help="Parquet, JSONL (.gz, .zst) or CSV")
    parser.add_argument("--column", help="column of the text (default: conversation, or the first known one)")
    parser.add_argument("--threshold", type=float, help="Jaccard similarity (default: the run's groups.threshold)")


SUBCOMMANDS = (
    Subcommand(
        "seen", _seen, "data", "contamination check: mark battles whose prompt is in a training corpus",
        "arena-distill seen runs/demo --corpus corpus.jsonl", _seen_arguments,
    ),
    Subcommand(
        "stack", _stack, "stages", "stage two: stack and calibrate the out-of-fold logits",
        "arena-distill stack --run runs/demo stack.trials=3", add_config_arguments,
        ("stack.trials", "stack.final", "stack.calibrator", "stack.order", "stack.logits", "stack.workers"),
    ),
    Subcommand(
        "distill", _distill, "stages", "stage three: distil the ensemble into one student and export it",
        "arena-distill distill --run runs/demo", add_config_arguments,
        (
            "distill.student.checkpoint", "distill.student.train.epochs", "distill.teacher", "distill.final",
            "distill.temperature", "distill.variants",
        ),
    ),
    Subcommand(
        "predict", _predict, "use", "predict the test battles: write RUN/submission.csv",
        "arena-distill predict --run runs/demo --test test.csv --redo", add_config_arguments,
        (
            "predict.model", "predict.format", "predict.chunk", "predict.cascade.budget", "predict.cascade.time",
        ),
    ),
    Subcommand(
        "judge", _judge, "use", "judge pairs of answers: JSON lines in, verdicts out",
        "arena-distill judge runs/demo/distill/student < battles.jsonl > verdicts.jsonl", _judge_arguments,
    ),
    *SERVING,
    Subcommand(
        "table", _table, "look at", "print the log loss of each stage and write metrics.json",
        "arena-distill table --run runs/demo", _table_arguments,
    ),
    Subcommand(
        "slices", _slices, "look at", "print where the student loses against the ensemble, by slice of the battles",
        "arena-distill slices --run runs/demo", _table_arguments,
    ),
    Subcommand(
        "report", _report, "look at", "write RUN/report/index.html; several runs are also compared",
        "arena-distill report runs/demo", _report_arguments,
    ),
    Subcommand(
        "ablate", _ablate, "look at", "measure what each part of stage two contributes",
        "arena-distill ablate --run runs/demo", add_config_arguments, ("stack.trials", "stack.workers"),
    ),
    Subcommand(
        "cascade", _cascade, "look at", "loss against cost where only uncertain battles go on to dearer models",
        "arena-distill cascade --run runs/demo", add_config_arguments,
    ),
    Subcommand(
        "features", _features, "tools", "print the stacker's families of features and their meaning",
        "arena-distill features",
    ),
)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
