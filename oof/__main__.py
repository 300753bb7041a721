"""Command line of stage one and its tools: ``python -m oof SUBCOMMAND …``.

Each subcommand imports what it needs only when it runs, so that ``--help`` and commands without work start at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from oof import config as configuration
from oof.command_line import add_config_arguments, add_run_argument, load_config, locked_run, run_folder, run_subcommand
from oof.common import interrupts
from oof.common.errors import UserError
from oof.common.json_output import add_json_option, print_json
from oof.common.steps import ORPHAN_WAIT, locked
from oof.config import user_values
from oof.subcommand import Subcommand, build_parser

if TYPE_CHECKING:
    from oof.jobs.fold_job import FoldJob
    from oof.jobs.pretrain import PretrainJob

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit status (:func:`oof.command_line.run_subcommand` lists them)."""
    parser = build_parser("python -m oof", "Stage one: out-of-fold logits, and its tools.", SUBCOMMANDS)
    return run_subcommand(parser, argv)


def _oof(arguments: argparse.Namespace) -> None:
    config = load_config(arguments)

    from oof.distributed import gpus
    from oof.jobs import dataset, fold_job, pretrain
    from oof.jobs.run_preparation import prepare_run

    run = Path(config.run)
    with locked_run(config):
        table, test = prepare_run(config, arguments.redo)
        jobs = fold_job.pinned_fold_jobs(config, table)
        unfinished = [job for job in jobs if not job.step.done]
        if unfinished:
            gpus.prepare_gpu(config.jobs)
            from oof.jobs.launch import run_jobs

            stages: list[Sequence[fold_job.FoldJob | pretrain.PretrainJob]]
            stages = [fold_job.unfinished_pretraining(unfinished), unfinished]
            for job in (job for stage in stages for job in stage):
                reason = job.step.stale_because(job.depends)
                if reason:
                    logger.info("%s: runs again, %s", job.label, reason)
            for stage in stages:
                run_jobs(config, stage)
        for member_jobs in fold_job.by_member(jobs).values():
            fold_job.join_folds(member_jobs, table)
        if test.height and fold_job.test_frames(jobs, test) is None:
            gpus.prepare_gpu(config.jobs)
            from oof.jobs.score_test_battles import score_test_battles

            score_test_battles(config, jobs, test)
        dataset.write_run(config)
    outcome = f"{len(unfinished)} fold jobs run" if unfinished else "up to date, nothing to do"
    outcome += f" ({len(config.members)} members x {config.folds.k} folds in {run / 'oof'})"
    arguments.call.end("oof", outcome, "stack", run)


def _prepare(arguments: argparse.Namespace) -> None:
    config = load_config(arguments)

    from oof.jobs.run_preparation import prepare_run

    with locked_run(config):
        table, _ = prepare_run(config, arguments.redo, test=False)
    outcome = f"{table.height} battles in {config.folds.k} folds ({config.run})"
    arguments.call.end("prepare", outcome, "oof", config.run)


def _job(arguments: argparse.Namespace) -> None:
    config = load_config(arguments)

    from oof.distributed import gpus, process_group
    from oof.jobs.finished_training import refuse_to_replace
    from oof.jobs.run_preparation import trainings
    from oof.jobs.source_files import check_files

    interrupts.set_time_limit(config.jobs.time_limit)  # this command holds the lock of its job, not of the run
    check_files(config, reads=False, redo=arguments.redo)
    job = _chosen_job(config, arguments.member, None if arguments.pretrain else arguments.fold)
    refuse_to_replace(config, trainings([job]), "make oof", arguments.redo)
    if config.jobs.device == "cpu":
        gpus.hide_gpus()
    process_group.start()
    if process_group.ranks() == 1:
        gpus.see_one_gpu(0)
    lock = locked(job.folder.parent, f".{job.folder.name}.lock", ORPHAN_WAIT)
    with lock if process_group.rank() == 0 else nullcontext():
        unfinished = not job.step.done
        process_group.wait()
        if unfinished:
            from oof.common.process_tuning import prepare_process
            from oof.jobs.launch import run_one

            prepare_process()
            run_one(job)
    if process_group.rank() == 0:
        arguments.call.end("job", f"{job.label} {'done' if unfinished else 'up to date, nothing to do'}")


def _chosen_job(config: configuration.Config, member: str, fold: int | None) -> FoldJob | PretrainJob:
    """Return a member's job of one fold, or its pretraining (``fold`` None)."""
    from oof.jobs import dataset, fold_job

    table = dataset.load_battles(Path(config.run), unlabelled=False)
    jobs = [j for j in fold_job.pinned_fold_jobs(config, table, member) if j.name == member]
    pretraining = [j.pretrain for j in jobs[:1] if j.pretrain is not None]
    chosen: Sequence[FoldJob | PretrainJob] = pretraining if fold is None else [j for j in jobs if j.fold == fold]
    if not chosen:
        option = "--pretrain" if fold is None else f"--fold {fold}"
        existing = f"members {', '.join(config.members)}, folds 0 to {config.folds.k - 1}"
        existing += "" if config.pretrain.data else ", and no pretrain.data"
        raise UserError(f"no job --member {member} {option}; there are {existing}")
    return chosen[0]


def _settings(_: argparse.Namespace) -> None:
    from oof.config.reference import settings_reference

    print(settings_reference(), end="")


def _plan(arguments: argparse.Namespace) -> None:
    config = load_config(arguments)

    from oof.plan import format_plan, make_plan, plan_document

    plan = make_plan(config, workers=os.cpu_count() or 1)
    if arguments.json:
        print_json(plan_document(plan, arguments.cards, arguments.price_per_hour))
    else:
        print(format_plan(plan, arguments.cards, arguments.price_per_hour))


def _synth(arguments: argparse.Namespace) -> None:
    from oof.data import synth

    paths = synth.write_arena(Path(arguments.out), arguments.battles, arguments.seed, arguments.test_battles)
    arguments.call.end("synth", ", ".join(str(path) for path in paths.values()))
    arguments.call.remember_next("synth", "check", paths["train"], "DATA")


def _bases(arguments: argparse.Namespace) -> None:
    from oof import bases

    bases.build_bases(Path(arguments.out), arguments.seed, arguments.battles, arguments.epochs, arguments.only)


def _check(arguments: argparse.Namespace) -> int:
    from oof.check import check_files

    words = user_values.join_words([*arguments.words, *arguments.data])
    overrides = [word for word in words if re.match(r"(data|groups)\.[\w.]+=", word)]
    overrides += [f"data.columns.{pair}" for pair in arguments.columns]
    files = [path for word in words if word not in overrides for path in user_values.split_paths(word)]
    if not files:
        raise UserError("no file to check; name one: arena-distill check train.csv")
    config = configuration.load(None, overrides)
    document: dict[str, object] = {}
    with redirect_stdout(StringIO()) if arguments.json else nullcontext():
        status = check_files(
            files,
            data=config.data,
            groups=config.groups,
            tokenizer=arguments.tokenizer,
            write=arguments.write,
            document=document,
        )
    if arguments.json:
        print_json(document)
    return status


def _audit(arguments: argparse.Namespace) -> int:
    from oof.audit.run import audit_run, findings_document, format_findings

    findings = audit_run(run_folder(arguments))
    if arguments.json:
        print_json(findings_document(findings))
    else:
        print(format_findings(findings))
    return 1 if any(finding.status == "violated" for finding in findings) else 0


def _positive(word: str) -> int:
    """Return the number that an option gives; argparse turns the error into a message."""
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{word} is not 1 or more")
    return number


def _job_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--member", required=True, help="name of the member in the configuration")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--fold", type=int, help="fold to hold out, from 0")
    kind.add_argument("--pretrain", action="store_true", help="run the member's pretraining instead of a fold job")


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--cards", type=_positive, help="cards of one kind (default: jobs.workers x jobs.nproc)")
    parser.add_argument("--price-per-hour", type=float, help="price of one card for an hour, for the totals")
    add_json_option(parser)


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="FILE", help="battle files or globs, and data.… settings")
    parser.add_argument("--data", nargs="+", default=[], metavar="FILE", help="battle files or globs, too")
    parser.add_argument("--tokenizer", help="Hugging Face folder whose tokenizer counts the tokens")
    parser.add_argument("--columns", nargs="*", default=[], metavar="OURS=THEIRS", help="column names of the files")
    parser.add_argument("--write", metavar="FILE.yaml", help="write the settings of reading, as used or suggested")
    add_json_option(parser)


def _audit_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_argument(parser)
    add_json_option(parser)


def _synth_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", help="folder to write to")
    parser.add_argument("--battles", type=int, default=3000, help="training battles")
    parser.add_argument("--test-battles", type=int, default=300, help="test battles")
    parser.add_argument("--seed", type=int, default=0, help="seed of the generator")


def _bases_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", help="folder to write to")
    parser.add_argument("--seed", type=int, default=1_000_003, help="seed of texts and weights")
    parser.add_argument("--battles", type=int, default=40_000, help="synthetic battles to learn from")
    parser.add_argument("--epochs", type=int, default=2, help="passes over them")
    parser.add_argument("--only", nargs="*", default=[], choices=["tiny-gemma2", "tiny-llama"], help="build only these")


SUBCOMMANDS = (
    Subcommand(
        "plan", _plan, "get started", "estimate memory, hours, disk and money before you pay",
        "arena-distill plan --config lmsys --cards 8 --price-per-hour 2.5", _plan_arguments,
        ("prompts.max_tokens", "folds.k", "members.NAME.quantise", "members.NAME.lora.layers", "jobs.nproc"),
    ),
    Subcommand(
        "check", _check, "data", "profile battle files and list every problem",
        "arena-distill check train.csv --write reading.yaml", _check_arguments,
        ("data.columns", "data.verdicts", "data.on_bad_row", "data.min_prompt_quality", "groups.threshold"),
    ),
    Subcommand(
        "prepare", _prepare, "data", "read, group and split the battles into folds, without training",
        "arena-distill prepare --config demo --run runs/queue --data train.csv", add_config_arguments,
        ("folds.k", "folds.column", "groups.threshold", "groups.column", "data.extra", "data.unlabelled"),
    ),
    Subcommand(
        "synth", _synth, "data", "write a synthetic arena with known class probabilities",
        "arena-distill synth arena --battles 300 --test-battles 30", _synth_arguments,
    ),
    Subcommand(
        "oof", _oof, "stages", "stage one: train the fold jobs and write out-of-fold logits",
        "arena-distill oof --config demo --run runs/mine --data train.csv", add_config_arguments,
        (
            "members.NAME.checkpoint", "members.NAME.train.lr", "members.NAME.train.epochs", "members.NAME.lora.rank",
            "folds.k", "prompts.max_tokens", "jobs.workers", "jobs.device",
        ),
    ),
    Subcommand(
        "job", _job, "tools", "run one fold job of a prepared run (for torchrun and queues)",
        "arena-distill job --run runs/demo --member gemma2 --fold 0", _job_arguments,
        ("jobs.device", "jobs.time_limit", "jobs.report_to"),
    ),
    Subcommand(
        "audit", _audit, "look at", "prove a finished run's invariants: nothing leaked",
        "arena-distill audit runs/demo", _audit_arguments,
    ),
    Subcommand(
        "settings", _settings, "tools", "print every setting: default, unit, allowed values, meaning",
        "arena-distill settings",
    ),
    Subcommand(
        "bases", _bases, "tools", "pre-train the demo's tiny base checkpoints",
        "arena-distill bases bases --only tiny-llama --battles 100 --epochs 1", _bases_arguments,
    ),
)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
