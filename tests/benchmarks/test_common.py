"""Cost of a command that a benchmark starts."""

from __future__ import annotations

import sys

from benchmarks.common import measured


def test_a_command_s_status_time_and_memory_are_its_own() -> None:
    used = measured(
        [sys.executable, "-c", "import time; block = bytearray(200_000_000); time.sleep(0.3); raise SystemExit(3)"]
    )
    assert used.status == 3
    assert used.seconds >= 0.3
    assert 0.2 < used.peak_gb < 1
