"""Run of one subcommand, for the command lines of both packages: its configuration, lock and exit status.

Guarantee: every exception becomes one sentence on standard error and an exit status.
"""

from __future__ import annotations

import argparse
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
from oof.common.steps import locked
from oof.config import Config, stored, user_values
from oof.config.load import OVERRIDE

READER_GONE = 141  # 128 + SIGPIPE, as a shell reports it
FREE_SPACE = "free some disk space and run the same command again; finished work is kept"


def run_subcommand(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Run the subcommand that ``argv`` names and return the exit status.

    Exit status: 0 done, 1 a check failed, 2 user error, 3 bug in this program, 75 stopped with its work saved
    (SIGTERM or ``jobs.time_limit``), 130 interrupted (Ctrl-C), 141 nobody reads the output any more (``| head``).
    """
    quiet_libraries()
    interrupts.install()
    arguments = parse(parser, argv)
    before = Path.cwd()  # a run's remembered paths start in the folder where it was made: load_config goes there
    subcommand: Callable[[argparse.Namespace], int | None] = arguments.subcommand
    try:
        status = subcommand(arguments) or 0
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
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
        return 130
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
    first = getattr(arguments, "config", None)
    if first is not None and OVERRIDE.match(first) and not Path(first).is_file():
        arguments.config, arguments.overrides = None, [first, *arguments.overrides]
    rest = user_values.join_words(rest)
    if hasattr(arguments, "overrides") and all("=" in word and not word.startswith("-") for word in rest):
        arguments.overrides += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", nargs="?", help="YAML file, for example configs/demo.yaml; without it, the settings of the run"
    )
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings that replace those of the file")
    parser.add_argument("--redo", action="store_true", help="replace finished training, data or a submission")
    parser.add_argument("--default", metavar="FILE", help="configuration of a run that remembers no settings")


def load_config(arguments: argparse.Namespace) -> Config:
    """Return the configuration. Read it before slow imports, so that a mistake in it is reported at once."""
    return stored.load_for_run(arguments.config, arguments.overrides, arguments.default)


@contextmanager
def locked_run(config: Config) -> Iterator[None]:
    """Hold the lock of the run folder.

    ``jobs.time_limit`` counts from here: a call that spent it on slow imports would never make progress.
    """
    interrupts.set_time_limit(config.jobs.time_limit)
    with locked(Path(config.run)):
        yield
