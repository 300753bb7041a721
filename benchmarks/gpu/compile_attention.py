"""Compile FlashAttention 4 for cards that are not at hand: which shapes have a forward and a backward kernel.

    python -m benchmarks.gpu.compile_attention                      # Gemma2-9B and Llama-3.1-8B, sm80 to sm120
    python -m benchmarks.gpu.compile_attention --cards sm_90 --shapes gemma2-9b

The kernels are compiled from fake tensors, so no GPU is needed, and nothing is computed: a kernel that compiles may
still be wrong, which the self-check of :mod:`oof.model.attention_check` finds on the card. Needs the packages
flash-attn-4 and triton. Each row is a process of its own, because flash-attn-4 reads the card from its environment.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from typing import Any

from benchmarks.common import argument_parser

CARDS = {"sm_80": "A100", "sm_90": "H100", "sm_100": "B200", "sm_120": "RTX 5090"}
# Query heads, key heads, head size, soft-cap (0 = none), sliding window (0 = none).
SHAPES = {
    "gemma2-9b": (16, 8, 256, 50.0, 0),
    "gemma2-9b-sliding": (16, 8, 256, 50.0, 4096),
    "gemma2-9b-uncapped": (16, 8, 256, 0.0, 0),
    "gemma2-27b": (32, 16, 128, 50.0, 0),
    "llama-3.1-8b": (32, 8, 128, 0.0, 0),
}
TOKENS = 8192  # longer than the sliding window


def compile_kernels(shape: str, backward: bool) -> None:
    """Compile the forward or backward kernel of a shape for the card in the environment."""
    import torch  # after the environment is set
    from flash_attn.cute import interface
    from torch._subclasses.fake_tensor import FakeTensorMode

    heads, key_heads, size, cap, window = SHAPES[shape]

    def empty(*size: int, dtype: torch.dtype = torch.bfloat16) -> Any:
        return torch.empty(1, *size, dtype=dtype, device="cuda")

    with FakeTensorMode():
        query, key, value = empty(TOKENS, heads, size), empty(TOKENS, key_heads, size), empty(TOKENS, key_heads, size)
        options: dict[str, Any] = {"softmax_scale": size**-0.5, "causal": True, "softcap": cap}
        left, right = (window - 1, 0) if window else (None, None)
        if not backward:
            interface.flash_attn_func(query, key, value, window_size=(left, right), **options)
            return
        # Called directly: autograd asks for a CUDA build of torch, even on fake tensors.
        out, log_sum = torch.empty_like(query), empty(heads, TOKENS, dtype=torch.float32)
        options |= {"window_size_left": left, "window_size_right": right}
        interface._flash_attn_bwd(query, key, value, out, torch.empty_like(out), log_sum, **options)


def run(card: str, shape: str, direction: str) -> tuple[str, float]:
    """Return "compiles", or the last error line, and the seconds it took."""
    environment = os.environ | {
        "FLASH_ATTENTION_ARCH": card,
        "CUTE_DSL_ARCH": card if card == "sm_80" else f"{card}a",
        "FLASH_ATTENTION_NUM_SMS": "132",
        "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED": "0",
    }
    command = [sys.executable, "-m", "benchmarks.gpu.compile_attention", "--one", shape, direction]
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    lines = [line.strip() for line in done.stderr.splitlines() if "Error" in line or "error:" in line]
    outcome = "compiles" if done.returncode == 0 else (lines or [f"status {done.returncode}"])[-1][:110]
    return outcome, time.perf_counter() - started


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--cards", nargs="*", default=list(CARDS))
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES))
    parser.add_argument("--one", nargs=2, metavar=("SHAPE", "DIRECTION"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        compile_kernels(arguments.one[0], arguments.one[1] == "backward")
        return
    print("| card | shape | direction | result | seconds |")
    print("|---|---|---|---|---|")
    for card in arguments.cards:
        for shape in arguments.shapes:
            for direction in ("forward", "backward"):
                outcome, seconds = run(card, shape, direction)
                print(f"| {card} ({CARDS[card]}) | {shape} | {direction} | {outcome} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
