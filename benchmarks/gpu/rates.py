"""Rates of the card itself: matrix products by precision, and copies. All other parts are shares of them."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks.gpu.parts import Case, Context, Row
from oof.model.precision import DTYPES, device

STORED = DTYPES | {"tf32": torch.float32}  # precision of a product -> type of its matrices


def measure(case: Case, context: Context) -> Row:
    """Return the rate of one kind of operation, sustained for about a second."""
    size = context.size
    if case[0] == "copy":
        source = torch.ones(size.copy_bytes // 4, device=device())
        target = torch.empty_like(source)
        per_second = repetitions(lambda: target.copy_(source), size.rate_seconds)
        return {"gb_per_second": 2 * size.copy_bytes * per_second / 1e9}  # each byte is read and written
    _, dtype, product = case
    m, n, k = map(int, product.split(" x "))
    if dtype == "tf32" and not torch.cuda.is_available():
        return {"flops_per_second": None}
    torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
    a = torch.randn(m, k, device=device()).to(STORED[dtype])
    b = torch.randn(k, n, device=device()).to(STORED[dtype])
    out = torch.empty(m, n, device=device(), dtype=STORED[dtype])
    per_second = repetitions(lambda: torch.mm(a, b, out=out), size.rate_seconds)
    return {"flops_per_second": 2.0 * m * n * k * per_second}


def repetitions(call: Callable[[], object], seconds: float) -> float:
    """Return how often a call ends per second, after a warm-up."""
    timed_calls(call, 3)
    once = timed_calls(call, 3) / 3
    count = max(3, int(seconds / max(once, 1e-7)))
    return count / timed_calls(call, count)


def timed_calls(call: Callable[[], object], count: int) -> float:
    """Return the seconds of ``count`` calls, until the device has finished them."""
    synchronise = torch.cuda.synchronize if torch.cuda.is_available() else (lambda: None)
    synchronise()
    begun = time.perf_counter()
    for _ in range(count):
        call()
    synchronise()
    return time.perf_counter() - begun
