"""Speed and memory of soft-capped attention: eager, blockwise and the FlashAttention packages that are installed.

    python -m benchmarks.gpu.attention_kernels                                               # on a GPU
    python -m benchmarks.gpu.attention_kernels --layers 2 --sequences 24 --dtype float32     # on a CPU

The model has a few layers with Gemma2-9B's heads, a narrow feed-forward and LoRA adapters. Its token-budget batches
have the arena's lengths, as in a fold job. Each implementation runs all batches forward and backward twice and the
second pass is timed, so that compilation does not count. Then it scores them once without gradients.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from benchmarks.common import argument_parser
from benchmarks.gpu.parts import FULL
from benchmarks.gpu.rates import timed_calls
from benchmarks.speed.token_sequences import arena_lengths
from oof.classes import CLASSES
from oof.common.logging_setup import quiet_libraries
from oof.config import Lora
from oof.encoding.batches import cut
from oof.model.attention import model_attention, this_machine
from oof.model.attention_table import HUB_KERNELS, candidates
from oof.model.checkpoint_shapes import base_config
from oof.model.lora import add_adapters
from oof.model.precision import DTYPES, device


def runnable(dtype: torch.dtype) -> list[str]:
    """Return the attentions that this machine can run, eager first."""
    model = model_attention(base_config(FULL.shapes["Gemma2-9B"]), "on")
    names = candidates(model, dtype, this_machine())
    return ["eager", *(name for name in names if name not in ("eager", *HUB_KERNELS.values()))]


def build(name: str, arguments: argparse.Namespace) -> Any:
    config = copy.deepcopy(base_config(FULL.shapes["Gemma2-9B"]))
    config.vocab_size, config.intermediate_size, config.num_hidden_layers = 1000, 1024, arguments.layers
    config.layer_types = config.layer_types[: arguments.layers]
    config.pad_token_id, config.num_labels, config.use_cache = 0, len(CLASSES), False
    torch.manual_seed(0)
    model: Any = AutoModelForSequenceClassification.from_config(config, attn_implementation=name)
    return add_adapters(model.to(DTYPES[arguments.dtype]), Lora(rank=16), 0).to(device())


def batches(arguments: argparse.Namespace) -> list[torch.Tensor]:
    lengths = arena_lengths(arguments.sequences, arguments.max_tokens)
    generator = torch.Generator().manual_seed(0)
    shapes = [(len(rows), int(-(-lengths[rows].max() // 8) * 8)) for rows in cut(lengths, arguments.budget)]
    order = np.random.default_rng(0).permutation(len(shapes))
    return [torch.randint(1, 1000, shapes[i], generator=generator).to(device()) for i in order]


def run(model: Any, inputs: list[torch.Tensor], training: bool, dtype: torch.dtype) -> float:
    """Return the seconds that all batches take."""

    def passes() -> None:
        for ids in inputs:
            enabled = dtype != torch.float32
            with torch.set_grad_enabled(training), torch.autocast(device().type, torch.bfloat16, enabled=enabled):
                logits = model(input_ids=ids).logits
            if training:
                logits.float().square().sum().backward()

    return timed_calls(passes, 1)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=2048)
    parser.add_argument("--budget", type=int, default=16384, help="padded tokens of a batch")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    quiet_libraries()
    inputs, dtype = batches(arguments), DTYPES[arguments.dtype]
    tokens = sum(ids.numel() for ids in inputs)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    print(f"{where}, torch {torch.__version__}, {arguments.dtype}: {tokens:,} tokens in {len(inputs)} batches")
    print(
        "| attention | first pass, s | training, tokens/s | x eager | scoring, tokens/s | x eager | peak memory, GB |"
    )
    print("|---|---|---|---|---|---|---|")
    names = arguments.only or runnable(dtype)
    base: list[float] = []
    for name in names:
        model = build(name, arguments)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        first = run(model.train(), inputs, True, dtype)
        trained = tokens / run(model, inputs, True, dtype)
        peak = f"{torch.cuda.max_memory_allocated() / 1e9:.1f}" if torch.cuda.is_available() else ""
        run(model.eval(), inputs, False, dtype)
        scored = tokens / run(model, inputs, False, dtype)
        base = base or [trained, scored]
        cells = [name, f"{first:.1f}", f"{trained:,.0f}", f"{trained / base[0]:.2f}", f"{scored:,.0f}"]
        print(f"| {' | '.join([*cells, f'{scored / base[1]:.2f}', peak])} |", flush=True)
        del model


if __name__ == "__main__":
    main()
