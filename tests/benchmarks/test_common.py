"""Costs of a command, as the benchmarks measure them."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.fixtures.demo_run import ROOT

COMMAND = "import time; block = bytearray(200_000_000); time.sleep(0.3); raise SystemExit(3)"
MEASURE = """
import json, sys
from benchmarks.common import measured
watched = []
used = measured([sys.executable, "-c", sys.argv[1]], watched.append)
print(json.dumps([used.status, used.seconds, used.peak_gb, len(watched), len(set(watched))]))
"""


def test_a_command_s_status_time_and_memory_are_its_own() -> None:
    # In a process of its own: Linux counts the memory of the process that starts a command as the command's.
    call = [sys.executable, "-c", MEASURE, COMMAND]
    output = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True).stdout  # noqa: S603
    status, seconds, peak_gb, calls, processes = json.loads(output)
    assert status == 3
    assert seconds >= 0.3
    assert 0.2 < peak_gb < 1
    assert calls >= 2
    assert processes == 1
