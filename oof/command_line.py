"""Run of one subcommand, for the command lines of both packages: its configuration, lock and exit status.

Guarantee: every exception becomes one sentence on standard error and an exit status.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from oof.common import interrupts
from oof.common.errors import UserError, disk_problem
from oof.common.logging_setup import quiet_libraries
from oof.common.progress import heartbeat
from oof.common.repeated_warnings import warnings_once
from oof.common.stage_end import Call
from oof.common.steps import locked
from oof.config import Config, stored, user_values
from oof.config.load import OVERRIDE
from oof.config.shipped_recipes import find_recipe

READER_GONE = 141  # 128 + SIGPIPE, as a shell reports it
FREE_SPACE = "free some disk space and run the same command again; finished work is kept"


def run_subcommand(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, wording: Callable[[str], str] = str
) -> int:
    """Run the subcommand that ``argv`` names and return the exit status (:data:`oof.subcommand.EXIT_STATUSES`).

    Args:
        parser: of all subcommands (:func:`oof.subcommand.build_parser`).
        argv: words of the command line; None = those of this process.
        wording: of the error messages for the users of this command.
    """
    call = Call()
    quiet_libraries()
    interrupts.install()
    arguments = parse(parser, argv)
    arguments.call = call
    before = Path.cwd()  # a run's remembered paths start in the folder where it was made: load_config goes there
    subcommand: Callable[[argparse.Namespace], int | None] = arguments.subcommand
    try:
        with warnings_once(), heartbeat(subcommand.__name__.strip("_")):
            status = subcommand(arguments) or 0
        call.print_next()
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"error: {wording(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError as error:
        if not _reader_is_gone():
            print(f"error: {error.strerror}", file=sys.stderr)
            return 2
        # Python flushes standard output once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except OSError as error:
        remedy = f"; {FREE_SPACE}" if disk_problem(error) else ""
        print(f"error: {error.filename or 'file system'}: {error.strerror or error}{remedy}", file=sys.stderr)
        return 2
    except interrupts.Stopped as stop:
        print(f"stopped by {stop}; finished work is kept, run the same command again to continue", file=sys.stderr)
        return interrupts.EXIT_STATUS
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr)
        return interrupts.BY_HAND
    except Exception as error:
        problem = disk_problem(error)
        if problem:
            print(f"error: {problem}; {FREE_SPACE}", file=sys.stderr)
            return 2
        # A bug: the traceback goes to a file, and the user still reads one sentence.
        with tempfile.NamedTemporaryFile("w", prefix="arena-distill-", suffix=".txt", delete=False) as file:
            traceback.print_exc(file=file)
        message = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(f"error: {message}; this is a bug: please report it with {file.name}", file=sys.stderr)
        return 3
    finally:
        os.chdir(before)


def _reader_is_gone() -> bool:
    """Return whether standard output is a pipe that nobody reads any more, as after ``| head``."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line: overrides may also follow an option, or come in place of the configuration file."""
    arguments, rest = parser.parse_known_args(argv)
    rest = _take_late_words(arguments, user_values.join_words(rest))
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if hasattr(arguments, "config"):
        _read_options(parser, arguments)
    return arguments


def _take_late_words(arguments: argparse.Namespace, rest: list[str]) -> list[str]:
    """Take settings, files and runs that follow an option, where argparse ignores them; return the other words."""
    if any(word.startswith("-") for word in rest):
        return rest
    if hasattr(arguments, "config"):
        if not all("=" in word for word in rest):
            return rest
        arguments.overrides += rest
    elif hasattr(arguments, "words"):
        arguments.words += rest
    elif getattr(arguments, "folder", "") is None and len(rest) == 1:
        arguments.folder = rest[0]
    else:
        return rest
    return []


def _read_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Turn ``--run``, ``--data`` and ``--test`` into overrides, before those of the user, which count where both do."""
    first = arguments.config
    if first is not None and OVERRIDE.match(first) and not Path(first).is_file():
        arguments.config, arguments.overrides = None, [first, *arguments.overrides]
    if arguments.config_option is not None:
        if arguments.config is not None:
            parser.error(f"two configurations: {arguments.config} and --config {arguments.config_option}")
        arguments.config = arguments.config_option
    options = [] if arguments.run_option is None else [f"run={json.dumps(arguments.run_option, ensure_ascii=False)}"]
    late: list[str] = []  # settings that follow the files
    for name in ("train", "test"):
        words = user_values.join_words(getattr(arguments, f"{name}_files"))
        settings = [word for word in words if OVERRIDE.match(word) and not Path(word).exists()]
        paths = [path for word in words if word not in settings for path in user_values.split_paths(word)]
        options += [f"data.{name}={json.dumps(paths, ensure_ascii=False)}"] if words else []
        late += settings
    arguments.overrides = [*options, *arguments.overrides, *late]


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add configuration, settings, run and files to a subcommand; :func:`load_config` reads them."""
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="the same as --config")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings that replace those of the file")
    parser.add_argument(
        "--config",
        dest="config_option",
        metavar="FILE",
        help="YAML file or name of a shipped recipe (demo, lmsys); without it, the settings that the run remembers",
    )
    parser.add_argument(
        "--run", dest="run_option", metavar="FOLDER", help="run folder (default: runs/NAME of the file)"
    )
    for option, dest, files in (
        ("--data", "train_files", "labelled battles (data.train)"),
        ("--test", "test_files", "battles to predict (data.test)"),
    ):
        parser.add_argument(option, dest=dest, nargs="+", default=[], metavar="FILE", help=f"{files}: files or globs")
    parser.add_argument("--redo", action="store_true", help="replace finished training, data or a submission")
    parser.add_argument("--default", metavar="FILE", help="configuration of a run that remembers no settings")


def add_run_argument(parser: argparse.ArgumentParser) -> None:
    """Add the run folder to a subcommand without settings; :func:`run_folder` reads it."""
    parser.add_argument("folder", nargs="?", metavar="RUN", help="run folder")
    parser.add_argument("--run", dest="run_option", metavar="FOLDER", help="the same")


def run_folder(arguments: argparse.Namespace) -> Path:
    """Return the run folder that a subcommand without settings names.

    Raises:
        UserError: there is none.
    """
    name = arguments.run_option or arguments.folder
    if not name:
        raise UserError("name a run: RUN=runs/demo")
    return Path(name)


def load_config(arguments: argparse.Namespace) -> Config:
    """Return the configuration. Read it before slow imports, so that a mistake in it is reported at once."""
    config, default = (name and find_recipe(name) for name in (arguments.config, arguments.default))
    return stored.load_for_run(config, arguments.overrides, default)


@contextmanager
def locked_run(config: Config) -> Iterator[None]:
    """Hold the lock of the run folder.

    ``jobs.time_limit`` counts from here: a call that spent it on slow imports would never make progress.
    """
    interrupts.set_time_limit(config.jobs.time_limit)
    with locked(Path(config.run)):
        yield
