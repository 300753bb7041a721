"""What a process of ours that trains or scores sets once, so that its time goes into the arithmetic.

Not for a process that is somebody else's, as one that asks a :class:`ensemble.serving.judge.Judge` is.

* What is imported leaves garbage collection: looking through it takes a third of a second each time.
* Memory that a pass frees stays with the process. glibc gives large blocks back to the system at once, and the next
  pass faults every page in again: a tiny Llama scores 16,384 tokens at a time 1.4 times as fast without that.

Source: mallopt(3) of the Linux manual pages, M_MMAP_THRESHOLD and M_TRIM_THRESHOLD.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_BLOCK = 32 * 2**20  # bytes: the largest threshold that glibc takes


@cache
def prepare_process() -> None:
    """Set both, once; where the C library is not glibc, or its MALLOC_ variables are set, leave memory as it is."""
    gc.collect()
    gc.freeze()
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
