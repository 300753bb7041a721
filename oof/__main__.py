"""``python -m oof VERB …``: stage one and its tools. Torch is imported only by the verbs that need it."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from oof import config as configuration
from oof.common import interrupts
from oof.common.errors import UserError, disk_trouble
from oof.common.logging_setup import quiet_libraries
from oof.common.steps import LINGERING, locked

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit status.

    0 done, 1 a check failed, 2 a user's error, 3 a bug of ours, 75 stopped in good order, 130 interrupted.
    """
    return run_verb(_parser(), argv)


def run_verb(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Parse, run the chosen verb and turn a :class:`UserError` into one sentence and status 2."""
    quiet_libraries()
    interrupts.install()
    arguments = parse(parser, argv)
    verb: Callable[[argparse.Namespace], int | None] = arguments.verb
    try:
        return verb(arguments) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        remedy = "; make room and run the same command again, what is done is kept" if disk_trouble(error) else ""
        print(f"error: {error.filename or 'file system'}: {error.strerror or error}{remedy}", file=sys.stderr)
        return 2
    except interrupts.Stopped as stop:
        print(f"stopped by {stop}; what is done is kept, run the same command again to go on", file=sys.stderr)
        return interrupts.EXIT_STATUS
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130
    except Exception as error:
        trouble = disk_trouble(error)
        if trouble:
            print(f"error: {trouble}; make room and run the same command again, what is done is kept", file=sys.stderr)
            return 2
        # Ours to mend, yet a user should read a sentence; the details go to a file.
        with tempfile.NamedTemporaryFile("w", prefix="arena-distill-", suffix=".txt", delete=False) as file:
            traceback.print_exc(file=file)
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(f"error: {said}; this is a bug: please report it with {file.name}", file=sys.stderr)
        return 3


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse; overrides may also follow an option, which argparse alone refuses."""
    arguments, rest = parser.parse_known_args(argv)
    if hasattr(arguments, "overrides") and all("=" in word and not word.startswith("-") for word in rest):
        arguments.overrides += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file, for example configs/demo.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="laid over the file")


def load_config(arguments: argparse.Namespace) -> configuration.Config:
    """Return the configuration. Verbs read it before they import what takes seconds: a mistake is said at once."""
    return configuration.load(arguments.config, arguments.overrides)


@contextmanager
def at_work_on(config: configuration.Config) -> Iterator[None]:
    """Hold the run folder. The time limit counts from here: a call that spent it on imports would never get on."""
    interrupts.set_time_limit(config.jobs.time_limit)
    with locked(Path(config.run)):
        yield


def _oof(arguments: argparse.Namespace) -> None:
    config = load_config(arguments)

    from oof.jobs import dataset, fold_job, pretrain

    run = Path(config.run)
    with at_work_on(config):
        table = dataset.prepare(config)
        test = dataset.read_test(config)
        pretrain.prepare_pairs(config, table, test)
        jobs = fold_job.fold_jobs(config, table)
        todo = [job for job in jobs if not job.step.done]
        if todo:
            from oof.jobs.launch import run_jobs

            stages: list[Sequence[fold_job.FoldJob | pretrain.PretrainJob]] = [fold_job.before(todo), todo]
            for job in (job for stage in stages for job in stage):
                reason = job.step.stale_because(job.depends)
                if reason:
                    logger.info("%s: made again, %s", job.label, reason)
            for stage in stages:
                run_jobs(config, stage)
        for folds in fold_job.by_member(jobs).values():
            fold_job.join_folds(folds, table)
        if test.height and fold_job.test_logits(jobs, test) is None:
            from oof.jobs.run_fold_job import score_test

            score_test(config, jobs, test)
        dataset.write_run(config)
    done = f"{len(todo)} fold jobs run" if todo else "up to date, nothing to do"
    print(f"oof: {done} ({len(config.members)} members x {config.folds.k} folds in {run / 'oof'})")


def _prepare(arguments: argparse.Namespace) -> None:
    config = load_config(arguments)

    from oof.jobs import dataset, pretrain

    with at_work_on(config):
        table = dataset.prepare(config)
        pretrain.prepare_pairs(config, table, dataset.read_test(config) if config.pretrain.data else table.clear())
    print(f"prepare: {table.height} battles in {config.folds.k} folds ({config.run})")


def _job(arguments: argparse.Namespace) -> None:
    config = load_config(arguments)

    from oof.distributed import process_group
    from oof.jobs import dataset, fold_job

    interrupts.set_time_limit(config.jobs.time_limit)  # the lock is the job's own
    jobs = fold_job.fold_jobs(config, dataset.load_battles(Path(config.run)))
    own = [job for job in jobs if job.name == arguments.member]
    named = [job.pretrain for job in own[:1]] if arguments.pretrain else [j for j in own if j.fold == arguments.fold]
    if not named or named[0] is None:
        asked = "--pretrain" if arguments.pretrain else f"--fold {arguments.fold}"
        known = f"members {', '.join(config.members)}, folds 0 to {config.folds.k - 1}"
        known += "" if config.pretrain.data else ", and no pretrain.data"
        raise UserError(f"no job --member {arguments.member} {asked}; there are {known}")
    job = named[0]
    process_group.start()
    lock = locked(job.folder.parent, f".{job.folder.name}.lock", LINGERING)
    with lock if process_group.rank() == 0 else nullcontext():
        todo = not job.step.done
        process_group.wait()
        if todo:
            from oof.common.process_tuning import prepare_process
            from oof.jobs.launch import run_one

            prepare_process()
            run_one(job)
    if process_group.rank() == 0:
        print(f"job: {job.label} {'done' if todo else 'up to date, nothing to do'}")


def _plan(arguments: argparse.Namespace) -> None:
    config = load_config(arguments)

    from oof.plan import format_plan, make_plan

    print(format_plan(make_plan(config)))


def _synth(arguments: argparse.Namespace) -> None:
    from oof.data import synth

    paths = synth.write_arena(Path(arguments.out), arguments.battles, arguments.seed, arguments.test_battles)
    print(f"synth: {', '.join(str(path) for path in paths.values())}")


def _bases(arguments: argparse.Namespace) -> None:
    from oof import bases

    bases.build_bases(Path(arguments.out), arguments.seed, arguments.battles, arguments.epochs, arguments.only)


def _check(arguments: argparse.Namespace) -> int:
    from oof.check import check_files

    columns = dict(pair.split("=", 1) for pair in arguments.columns if "=" in pair)
    if len(columns) != len(arguments.columns):
        raise UserError("--columns wants ours=theirs pairs, for example --columns prompt=question")
    return check_files(arguments.files, columns=columns or None, tokenizer=arguments.tokenizer)


def _audit(arguments: argparse.Namespace) -> int:
    from oof.audit.run import audit_run, format_findings

    findings = audit_run(Path(arguments.run))
    print(format_findings(findings))
    return 1 if any(finding.status == "violated" for finding in findings) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m oof", description="Stage one: out-of-fold logits.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    oof = verbs.add_parser("oof", help="train the fold jobs and write out-of-fold logits")
    add_config_arguments(oof)
    oof.set_defaults(verb=_oof)
    prepare = verbs.add_parser("prepare", help="read, group and fold the battles, and no more")
    add_config_arguments(prepare)
    prepare.set_defaults(verb=_prepare)
    job = verbs.add_parser("job", help="run one fold job of a prepared run (for torchrun and queues)")
    add_config_arguments(job)
    job.add_argument("--member", required=True)
    which = job.add_mutually_exclusive_group(required=True)
    which.add_argument("--fold", type=int)
    which.add_argument("--pretrain", action="store_true", help="the member's training before its folds")
    job.set_defaults(verb=_job)
    plan = verbs.add_parser("plan", help="parameters, memory, hours and disk before you pay for them")
    add_config_arguments(plan)
    plan.set_defaults(verb=_plan)
    check = verbs.add_parser("check", help="profile battle files and list every problem (exit 1 if there is one)")
    check.add_argument("files", nargs="+", metavar="FILE")
    check.add_argument("--tokenizer", help="a Hugging Face folder, for token lengths")
    check.add_argument("--columns", nargs="*", default=[], metavar="ours=theirs")
    check.set_defaults(verb=_check)
    audit = verbs.add_parser("audit", help="prove a finished run's invariants (exit 1 if one is violated)")
    audit.add_argument("run")
    audit.set_defaults(verb=_audit)
    synth = verbs.add_parser("synth", help="write a synthetic arena with known class probabilities")
    synth.add_argument("out")
    synth.add_argument("--battles", type=int, default=3000)
    synth.add_argument("--test-battles", type=int, default=300)
    synth.add_argument("--seed", type=int, default=0)
    synth.set_defaults(verb=_synth)
    bases = verbs.add_parser("bases", help="pre-train the demo's tiny base checkpoints")
    bases.add_argument("out")
    bases.add_argument("--seed", type=int, default=1_000_003)
    bases.add_argument("--battles", type=int, default=40_000)
    bases.add_argument("--epochs", type=int, default=2)
    bases.add_argument("--only", nargs="*", default=[], choices=["tiny-gemma2", "tiny-llama"])
    bases.set_defaults(verb=_bases)
    return parser


if __name__ == "__main__":
    sys.exit(main())
