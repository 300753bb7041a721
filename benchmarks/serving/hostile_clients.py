"""Hostile clients of the HTTP service: others are served, and its memory stays bounded.

    python -m benchmarks.serving.hostile_clients --write docs/evidence/serving-hostile.md      # ten minutes
    python -m benchmarks.serving.hostile_clients --seconds 5 --only silent

Four well-behaved clients send battles while hostile ones do one thing each; every answer is compared with the offline
judge's. In the rows "calm" there are no hostile clients. Hostile connections that the service ends are opened again.
Clients and service share this machine, so some of the lost time is the attackers' own. The student is a Llama of random
weights, unless a folder is given.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import ROOT, argument_parser, chosen, paragraphs, run_script, write_page
from benchmarks.serving.attackers import ATTACKS
from benchmarks.serving.running_service import Answers, Service, ask_for, mixed_battles, offline, running, student_of
from ensemble import Judge
from ensemble.serving.judge import Battle

CALM = "calm"
CLIENTS, BATTLES = 4, 100
HEADER = (
    "| hostile clients | at a time | opened | right answers | wrong | failed | p50, ms | p95, ms | most memory, MB |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def under_attack(
    name: str, service: Service, battles: list[Battle], expected: NDArray[np.float64], seconds: float
) -> tuple[str, Answers]:
    """Return the row of one attack and the answers of the well-behaved clients meanwhile."""
    service.peak_mb = 0.0
    words, connections, _ = ATTACKS.get(name, (CALM, 0, None))
    command = [sys.executable, "-m", "benchmarks.serving.attackers", name, service.url, str(seconds), str(connections)]
    attackers = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) if connections else None
    answers = asyncio.run(ask_for(service, battles, expected, CLIENTS, seconds))
    opened = int(attackers.communicate(timeout=120)[0]) if attackers else 0
    numbers = f"{len(answers.seconds)} | {answers.wrong} | {answers.failed}"
    times = f"{answers.percentile(50):.0f} | {answers.percentile(95):.0f}"
    return f"| {words} | {connections:,} | {opened:,} | {numbers} | {times} | {service.peak_mb:.0f} |", answers


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("folder", nargs="?", help="a student (default: random weights)")
    parser.add_argument("--width", type=int, default=256, help="of the random student, a multiple of 64")
    parser.add_argument("--layers", type=int, default=4, help="of the random student")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each attack")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="of an attack")
    parser.add_argument("--write", metavar="PAGE")
    arguments = parser.parse_args()
    names = [CALM, *chosen(arguments.only, ATTACKS), CALM]
    battles = mixed_battles(BATTLES, 5)
    lines = [paragraphs(__doc__, 2), "", HEADER]
    broken = False
    with student_of(arguments.folder, arguments.width, arguments.layers) as folder:
        expected = offline(Judge.from_pretrained(folder), battles)
        with running(folder) as service:
            for name in names:
                row, answers = under_attack(name, service, battles, expected, arguments.seconds)
                lines.append(row)
                print(row, flush=True)
                broken |= bool(answers.wrong) or not answers.seconds
    if arguments.write:
        write_page(Path(arguments.write), "Serving: hostile clients", lines)
    return int(broken)


if __name__ == "__main__":
    run_script(main)
