"""Load on the HTTP service: 64 concurrent clients, every answer compared with the offline judge's.

    python -m benchmarks.serving.service_load --write docs/evidence/serving-load.md      # ten minutes
    python -m benchmarks.serving.service_load runs/demo/distill/student --seconds 20

Each client sends one battle, waits for the verdict and sends the next. Battles of the synthetic arena have responses of
one to eight times the usual length; those beyond the student's tokens are cut. Clients and service share this machine.
The offline rate is that of ``Judge`` in Python on the same cores, 64 of the battles in a call. Offline and load take
turns (--rounds), so that what else the machine does meets both; a round's served rate counts the answers that come
after a warm-up of a tenth of its time. Without a folder the student is a Llama of random weights (--width, --layers).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from benchmarks.common import argument_parser, paragraphs, run_script, write_page
from benchmarks.serving.running_service import (
    TOLERANCE,
    Answers,
    ask_for,
    mixed_battles,
    offline,
    running,
    student_of,
)
from ensemble import Judge

BATTLES = 200  # different ones
TOGETHER = 64  # of an offline call


def rate(call: Callable[[], object], battles: int, seconds: float) -> float:
    """Return battles per second of a call that is repeated for some seconds."""
    begun, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - begun < seconds:
        call()
        calls += 1
    return battles * calls / (time.perf_counter() - begun)


@dataclass
class Load:
    """What the rounds of one service measured.

    Attributes:
        answers: of all rounds.
        offline: battles per second of ``Judge`` in Python, of each round.
        served: battles per second of the service, of each round.
        peak_mb: most resident memory of the service.
    """

    answers: Answers = field(default_factory=Answers)
    offline: list[float] = field(default_factory=list)
    served: list[float] = field(default_factory=list)
    peak_mb: float = 0.0

    def rows(self) -> list[str]:
        """Return the rows of the page's table."""
        answers, ratios = self.answers, np.divide(self.served, self.offline)
        times = " / ".join(f"{answers.percentile(p):.0f}" for p in (50, 95, 99))
        return [
            f"| right answers (within {TOLERANCE:g} of the offline probabilities) | {len(answers.seconds):,} |",
            f"| wrong answers | {answers.wrong} |",
            f"| failed requests | {answers.failed} |",
            f"| largest difference of a probability | {answers.largest:.1e} |",
            f"| time until the answer, p50 / p95 / p99 | {times} ms |",
            f"| battles/s, served: median, least and most of the rounds | {_spread(self.served, 1)} |",
            f"| battles/s, offline | {_spread(self.offline, 1)} |",
            f"| served / offline of a round | {_spread(ratios, 2)} |",
            f"| peak memory of the service | {self.peak_mb:.0f} MB |",
        ]


def _spread(values: ArrayLike, digits: int) -> str:
    numbers = (float(of(values)) for of in (np.median, np.min, np.max))
    median, least, most = (f"{number:.{digits}f}" for number in numbers)
    return f"{median} [{least}, {most}]"


def load(folder: Path, judge: Judge, clients: int, seconds: float, rounds: int) -> Load:
    """Return what ``rounds`` rounds measured, which take ``seconds`` under load together."""
    battles = mixed_battles(BATTLES, 3)
    expected = offline(judge, battles)  # also warms up
    window, measured = seconds / rounds, Load()
    with running(folder) as service:
        for _ in range(rounds):
            measured.offline.append(rate(lambda: offline(judge, battles[:TOGETHER]), TOGETHER, window / 5))
            of_round = asyncio.run(ask_for(service, battles, expected, clients, window, window / 10))
            measured.served.append(of_round.in_window / window)
            measured.answers.add(of_round)
        measured.peak_mb = service.peak_mb
    return measured


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("folder", nargs="?", help="a student (default: random weights)")
    parser.add_argument("--width", type=int, default=512, help="of the random student, a multiple of 64")
    parser.add_argument("--layers", type=int, default=8, help="of the random student")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=600.0, help="under load, of all rounds")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--write", metavar="PAGE")
    arguments = parser.parse_args()
    with student_of(arguments.folder, arguments.width, arguments.layers) as folder:
        judge = Judge.from_pretrained(folder)
        parameters = sum(p.numel() for p in judge.model.parameters()) / 1e6
        measured = load(folder, judge, arguments.clients, arguments.seconds, arguments.rounds)
    named = f"`{Path(arguments.folder).name}`" if arguments.folder else "random weights"
    student = f"{named}, {type(judge.model).__name__} of {parameters:.1f} M parameters in {judge.member.dtype}"
    of_load = [f"| clients | {arguments.clients} |", f"| seconds | {arguments.seconds:g} |"]
    of_load += [f"| rounds | {arguments.rounds} |"]
    lines = [paragraphs(__doc__, 2), "", f"Student: {student}.", "", "| | |", "|---|---|", *of_load, *measured.rows()]
    print("\n".join(lines))
    if arguments.write:
        write_page(Path(arguments.write), "Serving: load", lines)
    return int(bool(measured.answers.wrong or measured.answers.failed))


if __name__ == "__main__":
    run_script(main)
