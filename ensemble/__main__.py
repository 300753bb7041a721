"""``python -m ensemble VERB …``: stages two and three. Torch is imported only by the verbs that need it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from oof import store
from oof.__main__ import add_config_arguments, load_config, run_verb


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit status."""
    return run_verb(_parser(), argv)


def _stack(arguments: argparse.Namespace) -> None:
    from ensemble.stack import run_stack

    config = load_config(arguments)
    with store.locked(Path(config.run)):
        ran = run_stack(config)
    print(f"stack: {'done' if ran else 'up to date, nothing to do'} ({Path(config.run) / 'stack'})")


def _distill(arguments: argparse.Namespace) -> None:
    from ensemble.distill import run_distill

    config = load_config(arguments)
    with store.locked(Path(config.run)):
        ran = run_distill(config)
    print(f"distill: {'done' if ran else 'up to date, nothing to do'} ({Path(config.run) / 'distill' / 'student'})")


def _predict(arguments: argparse.Namespace) -> None:
    from ensemble.predict import run_predict

    config = load_config(arguments)
    with store.locked(Path(config.run)):
        ran = run_predict(config)
    said = f"written by the {config.predict.model}" if ran else "up to date, nothing to do"
    print(f"predict: {said} ({Path(config.run) / 'submission.csv'})")


def _table(arguments: argparse.Namespace) -> None:
    from ensemble.table import compute_metrics, print_table

    config = load_config(arguments)
    with store.locked(Path(config.run)):
        metrics = compute_metrics(config)
        store.write_json(Path(config.run) / "metrics.json", metrics)
    print_table(metrics)


def _ablate(arguments: argparse.Namespace) -> None:
    from ensemble.ablations import print_ablations, run_ablations

    config = load_config(arguments)
    with store.locked(Path(config.run)):
        content = run_ablations(config)
    print_ablations(content)


def _features(_: argparse.Namespace) -> None:
    from ensemble.design import describe

    print("# Features of the stacker\n")
    print("One family each, from the docstrings of `ensemble/features.py` and `ensemble/design.py`; made by")
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
    listed = verbs.add_parser("features", help="list the stacker's families of features and their meaning")
    listed.set_defaults(verb=_features)
    return parser


if __name__ == "__main__":
    sys.exit(main())
