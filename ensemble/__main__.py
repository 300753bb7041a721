"""``python -m ensemble VERB …``: stages two and three. Torch is imported only by the verbs that need it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from oof.__main__ import add_config_arguments, at_work_on, load_config, run_verb
from oof.common.atomic_files import rewrite_json
from oof.common.steps import locked


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit status."""
    return run_verb(_parser(), argv)


def _stack(arguments: argparse.Namespace) -> None:
    config = load_config(arguments)

    from ensemble.stacking.stage import run_stack

    with at_work_on(config):
        ran = run_stack(config)
    print(f"stack: {'done' if ran else 'up to date, nothing to do'} ({Path(config.run) / 'stack'})")


def _distill(arguments: argparse.Namespace) -> None:
    config = load_config(arguments)

    from ensemble.distillation.plan import run_distill

    with at_work_on(config):
        ran = run_distill(config)
    print(f"distill: {'done' if ran else 'up to date, nothing to do'} ({Path(config.run) / 'distill' / 'student'})")


def _predict(arguments: argparse.Namespace) -> None:
    config = load_config(arguments)

    from ensemble.serving.submission import run_predict
    from oof.common.process_tuning import prepare_process

    prepare_process()
    with at_work_on(config):
        ran = run_predict(config)
    said = f"written by the {config.predict.model}" if ran else "up to date, nothing to do"
    print(f"predict: {said} ({Path(config.run) / 'submission.csv'})")


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

    with at_work_on(config):
        metrics = compute_metrics(config)
        rewrite_json(Path(config.run) / "metrics.json", metrics)
    print_table(metrics)


def _report(arguments: argparse.Namespace) -> None:
    from ensemble.report.make import write_reports

    for page in write_reports([Path(run) for run in arguments.runs], arguments.price_per_hour):
        print(f"report: {page}")


def _seen(arguments: argparse.Namespace) -> None:
    from ensemble.contamination.check import run_seen

    run = Path(arguments.run)
    with locked(run):
        found = run_seen(run, arguments.corpus, arguments.threshold, arguments.column)
    print(f"seen: {int(found['seen'].sum()):,} of {found.height:,} battles ({run / 'seen' / 'seen.parquet'})")


def _ablate(arguments: argparse.Namespace) -> None:
    config = load_config(arguments)

    from ensemble.evaluation.ablations import print_ablations, run_ablations

    with at_work_on(config):
        content = run_ablations(config)
    print_ablations(content)


def _features(_: argparse.Namespace) -> None:
    from ensemble.features.design_matrix import describe

    print("# Features of the stacker\n")
    print(
        "One family each, from the docstrings of `ensemble/features/battle_features.py` and `ensemble/features/design_matrix.py`; made by"
    )
    print("`python -m ensemble features > docs/features.md`. Columns ending in `_a` and `_b` exchange when the")
    print("responses do, those ending in `_diff` change their sign. Nothing is fitted.\n")
    print("| family | meaning |\n|---|---|")
    for family, meaning in describe().items():
        print(f"| {family} | {meaning} |")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ensemble", description="Stages two and three.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for name, verb, text in (
        ("stack", _stack, "stack and calibrate the out-of-fold logits, cross-fitted"),
        ("ablate", _ablate, "find out what each part of stage two is worth: RUN/stack/ablations.json"),
        ("distill", _distill, "distil the ensemble into one student and export it"),
        ("predict", _predict, "write submission.csv for data.test"),
        ("table", _table, "print what each stage was worth and write metrics.json"),
    ):
        parser_of_verb = verbs.add_parser(name, help=text)
        add_config_arguments(parser_of_verb)
        parser_of_verb.set_defaults(verb=verb)
    report = verbs.add_parser("report", help="write RUN/report/index.html; several runs are also compared")
    report.add_argument("runs", nargs="+", metavar="RUN")
    report.add_argument("--price-per-hour", type=float, default=0.0, help="of the machine, for the cost per stage")
    report.set_defaults(verb=_report)
    seen = verbs.add_parser("seen", help="mark battles whose prompt is in a corpus, for the report")
    seen.add_argument("run")
    seen.add_argument("--corpus", nargs="+", required=True, metavar="FILE", help="Parquet, JSONL (.gz, .zst) or CSV")
    seen.add_argument("--column", help="of the text (default: conversation, or the first known one)")
    seen.add_argument("--threshold", type=float, help="Jaccard similarity (default: the run's groups.threshold)")
    seen.set_defaults(verb=_seen)
    judge = verbs.add_parser("judge", help="JSON lines with prompt, response_a, response_b on stdin -> verdicts")
    judge.add_argument("folder", help="an exported student, for example runs/demo/distill/student")
    judge.add_argument("--dtype", default="auto", help="auto (as saved), float32 or bfloat16")
    judge.set_defaults(verb=_judge)
    listed = verbs.add_parser("features", help="list the stacker's families of features and their meaning")
    listed.set_defaults(verb=_features)
    return parser


if __name__ == "__main__":
    sys.exit(main())
