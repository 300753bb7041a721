"""Allocator and garbage-collector settings of a training process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.fixtures.demo_run import ROOT

CODE = """
import gc, resource
import numpy as np
from oof.common.process_tuning import prepare_process
prepare_process(); prepare_process()
assert gc.get_freeze_count() > 10_000
size = 16 * 2**20
def touch():
    block = np.empty(size, dtype=np.uint8); block[::4096] = 1
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20): touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**own: str) -> int:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **own}
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    return int(done.stdout)


def test_freed_memory_stays_with_the_process_unless_the_user_has_allocator_settings() -> None:
    if sys.platform != "linux":
        pytest.skip("glibc's settings")
    own = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    assert 10 * faults() < faults(**own)  # 20 blocks, whose pages are large or small
