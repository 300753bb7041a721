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

from oof.command_line import add_config_arguments, load_config, locked_run, run_subcommand
from oof.common.atomic_files import rewrite_json
from oof.common.steps import locked
from oof.config import Config
from oof.config.load import OVERRIDE
from oof.config.other_stages import refuse_other_stages
from oof.config.stored import load_for_run
from oof.config.user_values import split_paths

if TYPE_CHECKING:
    from ensemble.serving.submission import Prediction


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit status (:func:`oof.command_line.run_subcommand` lists them)."""
    return run_subcommand(_parser(), argv)


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

    own, prediction = None, None
    with _checked_run(config, arguments, reads=bool(config.stack.logits)):
        inputs = load_inputs(config)
        if config.stack.logits and config.stack.test_logits:
            from ensemble.serving.own_logits import OwnLogitsTest
            from ensemble.serving.submission import run_predict

            own = OwnLogitsTest.read(config, inputs)  # before the fits, which take long
        ran = run_stack(config, inputs)
        if own is not None:
            prediction = run_predict(config, arguments.redo, own)
    print(f"stack: {'done' if ran else 'up to date, nothing to do'} ({Path(config.run) / 'stack'})")
    if prediction is not None:
        _print_prediction(config, prediction)


def _distill(arguments: argparse.Namespace) -> None:
    config = load_config(arguments)

    from ensemble.distillation.stage import run_distill
    from oof.jobs.finished_training import NO_TRAINING

    with _checked_run(config, arguments):
        words = [word for word in arguments.overrides if not word.startswith(NO_TRAINING)]
        ran = run_distill(config, arguments.redo, asked=any(word.startswith(("distill.", "stack.")) for word in words))
    print(f"distill: {'done' if ran else 'up to date, nothing to do'} ({Path(config.run) / 'distill' / 'student'})")


def _predict(arguments: argparse.Namespace) -> None:
    config = load_config(arguments)

    from ensemble.serving.submission import run_predict
    from oof.common.process_tuning import prepare_process

    prepare_process()
    with _checked_run(config, arguments):
        prediction = run_predict(config, arguments.redo)
    _print_prediction(config, prediction)


def _print_prediction(config: Config, prediction: Prediction) -> None:
    from ensemble.serving.submission_file import COLUMNS

    path = Path(config.run) / "submission.csv"
    battles = f"{prediction.n:,} battles of {', '.join(prediction.files)} by the {prediction.model}"
    print(f"predict: {'written' if prediction.ran else 'up to date, nothing to do'}: {battles}")
    print(f"predict: {path}, columns {', '.join(COLUMNS[config.predict.format])}")
    if prediction.kept is not None:
        print(f"predict: the submission of other battles is kept in {prediction.kept}")


def _judge(arguments: argparse.Namespace) -> None:
    from ensemble.serving.judge import Judge, judge_lines
    from oof.common.process_tuning import prepare_process

    prepare_process()
    judge = Judge.from_pretrained(arguments.folder, arguments.dtype)
    sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    for line in judge_lines(judge, sys.stdin):
        print(line, flush=True)


def _table(arguments: argparse.Namespace) -> None:
    config = load_config(arguments)

    from ensemble.evaluation.run_table import compute_metrics, print_table

    with _checked_run(config, arguments):
        metrics = compute_metrics(config)
        rewrite_json(Path(config.run) / "metrics.json", metrics)
    print_table(metrics)


def _report(arguments: argparse.Namespace) -> None:
    from ensemble.report.make import write_reports

    words = [word for word in arguments.runs if OVERRIDE.match(word) and not Path(word).is_dir()]
    runs = [run for word in arguments.runs if word not in words for run in split_paths(word)]
    for run in runs if words else []:
        with chdir("."):  # where the run was made, its remembered paths start
            refuse_other_stages(load_for_run(None, [f"run={run}", *words]), words, "report")
    for page in write_reports([Path(run) for run in runs], arguments.price_per_hour):
        print(f"report: {page}")


def _seen(arguments: argparse.Namespace) -> None:
    from ensemble.contamination.check import check_contamination

    run = Path(arguments.run)
    with locked(run):
        matches = check_contamination(run, arguments.corpus, arguments.threshold, arguments.column)
    print(f"seen: {int(matches['seen'].sum()):,} of {matches.height:,} battles ({run / 'seen' / 'seen.parquet'})")


def _ablate(arguments: argparse.Namespace) -> None:
    config = load_config(arguments)

    from ensemble.evaluation.ablations import print_ablations, run_ablations

    with _checked_run(config, arguments):
        content = run_ablations(config)
    print_ablations(content)


def _features(_: argparse.Namespace) -> None:
    from ensemble.features.design_matrix import describe

    print("# Features of the stacker\n")
    print("Families of columns, from the docstrings of `ensemble/features/battle_features.py` and")
    print("`ensemble/features/design_matrix.py`. Columns ending in `_a` and `_b` swap when the responses swap; columns")
    print("ending in `_diff` change sign. Nothing is fitted.\n")
    print("| family | meaning |\n|---|---|")
    for family, meaning in describe().items():
        print(f"| {family} | {meaning} |")


def _parser() -> argparse.ArgumentParser:
    description = "Stages two and three: stacking, distillation, prediction, evaluation."
    parser = argparse.ArgumentParser(prog="python -m ensemble", description=description)
    subcommands = parser.add_subparsers(required=True, metavar="SUBCOMMAND")
    for name, function, summary in (
        ("stack", _stack, "stack and calibrate the out-of-fold logits, cross-fitted"),
        ("ablate", _ablate, "measure what each part of stage two contributes: RUN/stack/ablations.json"),
        ("distill", _distill, "distil the ensemble into one student and export it"),
        ("predict", _predict, "write submission.csv for data.test"),
        ("table", _table, "print the log loss of each stage and write metrics.json"),
    ):
        subcommand = subcommands.add_parser(name, help=summary)
        add_config_arguments(subcommand)
        subcommand.set_defaults(subcommand=function, name=name)
    report = subcommands.add_parser("report", help="write RUN/report/index.html; several runs are also compared")
    report.add_argument("runs", nargs="+", metavar="RUN", help="run folders, and settings that they have")
    report.add_argument(
        "--price-per-hour", type=float, default=0.0, help="price of the machine per hour, for the cost of each stage"
    )
    report.set_defaults(subcommand=_report)
    seen = subcommands.add_parser(
        "seen", help="contamination check: mark battles whose prompt is in a training corpus, for the report"
    )
    seen.add_argument("run", help="run folder")
    seen.add_argument("--corpus", nargs="+", required=True, metavar="FILE", help="Parquet, JSONL (.gz, .zst) or CSV")
    seen.add_argument("--column", help="column of the text (default: conversation, or the first known one)")
    seen.add_argument("--threshold", type=float, help="Jaccard similarity (default: the run's groups.threshold)")
    seen.set_defaults(subcommand=_seen)
    judge = subcommands.add_parser(
        "judge", help="read JSON lines with prompt, response_a, response_b from stdin, write verdicts to stdout"
    )
    judge.add_argument("folder", help="exported student, for example runs/demo/distill/student")
    judge.add_argument("--dtype", default="auto", help="auto (as saved), float32, bfloat16 or float16")
    judge.set_defaults(subcommand=_judge)
    features = subcommands.add_parser("features", help="print the stacker's families of features and their meaning")
    features.set_defaults(subcommand=_features)
    return parser


if __name__ == "__main__":
    sys.exit(main())
