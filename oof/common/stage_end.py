"""Last lines of a stage: what it did, how long it took, and the next command of the run."""

from __future__ import annotations

import os
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from oof.common.progress import duration
from oof.common.wording import called_by_make, in_words_of_the_command

GOALS = "ARENA_DISTILL_GOALS"  # environment variable: the stages of one call of make or of the demo, in their order
STAGE_ONE = ("oof", "prepare", "job", "check", "plan", "audit", "synth")  # subcommands of python -m oof


@dataclass
class Call:
    """One call of a subcommand: when it began, the working folder of its user, and the command that comes next."""

    began: float = field(default_factory=time.monotonic)
    folder: Path = field(default_factory=Path.cwd)
    next_command: str = ""

    def end(self, stage: str, outcome: str, following: str = "", run: str | Path = "") -> None:
        """Print the outcome of a stage with its duration, and remember the command that comes next.

        Args:
            stage: the subcommand.
            outcome: in words.
            following: the subcommand that comes next for ``run``; "" = none.
            run: the run folder.
        """
        print(f"{stage}: {outcome}, {duration(time.monotonic() - self.began)}")
        if following:
            self.remember_next(stage, following, run)

    def remember_next(self, stage: str, following: str, path: str | Path, variable: str = "RUN") -> None:
        """Remember the next command in the words of this call, unless the call itself goes on after this stage.

        Args:
            stage: the subcommand that ends.
            following: the one that comes next.
            path: its run folder, or what make's variable ``variable`` names.
            variable: of the Makefile.
        """
        if stage in os.environ.get(GOALS, "").split()[:-1]:
            return
        if Path.cwd() != self.folder:  # a run's remembered paths start elsewhere
            path = os.path.relpath(path, self.folder)
        command = f"make {following} {variable}={shlex.quote(str(path))}"
        if not called_by_make():
            command = in_words_of_the_command(command)
            if Path(sys.argv[0]).name == "__main__.py":
                package = "oof" if following in STAGE_ONE else "ensemble"
                command = command.replace("arena-distill", f"python -m {package}", 1)
        self.next_command = command

    def print_next(self) -> None:
        """Print the command that comes next, as the last line of the call."""
        if self.next_command:
            print(f"next: {self.next_command}")
