"""Load on the HTTP service: 64 concurrent clients, every answer compared with the offline judge's.

    python -m benchmarks.serving.service_load --write docs/evidence/serving-load.md      # ten minutes
    python -m benchmarks.serving.service_load runs/demo/distill/student --seconds 20

Each client sends one battle, waits for the verdict and sends the next. Battles of the synthetic arena have responses of
one to eight times the usual length; those beyond the student's tokens are cut. Clients and service share this machine.
The offline rate is that of ``Judge`` in Python on the same battles and cores, all in one call, before and after the
load, for a tenth of its time each. The served rate counts the answers within the given seconds, which begin after
a warm-up of a tenth of them. Without a folder the student is a Llama of random weights (--width, --layers).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import argument_parser, paragraphs, run_script, write_page
from benchmarks.serving.running_service import (
    TOLERANCE,
    Answers,
    Service,
    ask_for,
    mixed_battles,
    offline,
    running,
    student_of,
)
from ensemble import Judge

BATTLES = 200  # different ones


def rate(call: Callable[[], object], battles: int, seconds: float) -> float:
    """Return battles per second of a call that is repeated for some seconds."""
    begun, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - begun < seconds:
        call()
        calls += 1
    return battles * calls / (time.perf_counter() - begun)


def page(
    student: str, clients: int, seconds: float, answers: Answers, rates: list[float], service: Service
) -> list[str]:
    """Return the lines of the page."""
    served = answers.in_window / seconds
    before, after = rates
    times = " / ".join(f"{answers.percentile(p):.0f}" for p in (50, 95, 99))
    return [
        paragraphs(__doc__, 2),
        "",
        f"Student: {student}.",
        "",
        "| | |",
        "|---|---|",
        f"| clients | {clients} |",
        f"| seconds | {seconds:g} |",
        f"| right answers (within {TOLERANCE:g} of the offline probabilities) | {len(answers.seconds):,} |",
        f"| wrong answers | {answers.wrong} |",
        f"| failed requests | {answers.failed} |",
        f"| largest difference of a probability | {answers.largest:.1e} |",
        f"| time until the answer, p50 / p95 / p99 | {times} ms |",
        f"| battles/s, served | {served:.1f} |",
        f"| battles/s, offline, before and after | {before:.1f}, {after:.1f} |",
        f"| served / offline | {2 * served / (before + after):.2f} |",
        f"| peak memory of the service | {service.peak_mb:.0f} MB |",
    ]


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("folder", nargs="?", help="a student (default: random weights)")
    parser.add_argument("--width", type=int, default=512, help="of the random student, a multiple of 64")
    parser.add_argument("--layers", type=int, default=8, help="of the random student")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--write", metavar="PAGE")
    arguments = parser.parse_args()
    battles = mixed_battles(BATTLES, 3)
    with student_of(arguments.folder, arguments.width, arguments.layers) as folder:
        judge = Judge.from_pretrained(folder)
        parameters = sum(p.numel() for p in judge.model.parameters()) / 1e6
        expected = offline(judge, battles)  # also warms up
        offline_seconds = arguments.seconds / 10
        rates = [rate(lambda: offline(judge, battles), BATTLES, offline_seconds)]
        with running(folder) as service:
            load = ask_for(service, battles, expected, arguments.clients, arguments.seconds, offline_seconds)
            answers = asyncio.run(load)
        rates.append(rate(lambda: offline(judge, battles), BATTLES, offline_seconds))
    named = f"`{Path(arguments.folder).name}`" if arguments.folder else "random weights"
    student = f"{named}, {type(judge.model).__name__} of {parameters:.1f} M parameters in {judge.member.dtype}"
    lines = page(student, arguments.clients, arguments.seconds, answers, rates, service)
    print("\n".join(lines))
    if arguments.write:
        write_page(Path(arguments.write), "Serving: load", lines)
    return int(bool(answers.wrong or answers.failed))


if __name__ == "__main__":
    run_script(main)
