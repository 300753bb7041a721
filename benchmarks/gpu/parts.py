"""Parts of the GPU benchmark: their cases, time boxes and sizes, without torch.

A case is one row of a part's table. Sizes are for one 80 GB card (``FULL``) or for a CPU in about a minute (``QUICK``),
where the figures mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Case = tuple[str, ...]
Row = dict[str, Any]

PROBLEM = "problem"  # key of a row whose case could not be measured: the reason
OUT_OF_MEMORY = "out of memory"
ARENA = "arena lengths"
MODELS = ("smollm2-135m", "gemma3-270m")
SCORED = ("bfloat16", "float16", "int8", "nf4")  # precisions of the base
EAGER_LAYERS = "eager layers"  # option of a training or scoring case: without fused layers
TRAINING, SCORING = "training", "scoring"  # passes whose operations are profiled


@dataclass(frozen=True)
class Size:
    """Amounts of work.

    Attributes:
        shapes: name -> checkpoint whose configuration gives the shape; its weights are not read.
        max_tokens: the longest sequence, and every sequence of the second kind of lengths.
        rank: of the adapters.
        step_sequences: sequences of one optimizer step.
        steps: measured optimizer steps at the arena's lengths, and with every sequence of ``max_tokens``.
        budgets: padded tokens of one pass that are tried, largest first.
        score_battles: battles that are scored in both orders.
        score_budget: padded tokens of one scoring pass.
        matrices: (m, n, k) of the measured matrix products.
        copy_bytes: of the measured copy.
        rate_seconds: of each measurement of a rate.
        seeds, battles, folds, tokens, epochs, trials: of the runs on real judgements.
        demo: overrides of the demo's configuration.
    """

    shapes: dict[str, str]
    max_tokens: int
    rank: int
    step_sequences: int
    steps: tuple[int, int]
    budgets: tuple[int, ...]
    score_battles: int
    score_budget: int
    matrices: tuple[tuple[int, int, int], ...]
    copy_bytes: int
    rate_seconds: float
    seeds: int
    battles: int
    folds: int
    tokens: int
    epochs: float
    trials: int
    demo: tuple[str, ...] = ()

    @property
    def fixed(self) -> str:
        """The name of the second kind of lengths."""
        return f"{self.max_tokens:,} tokens"

    @property
    def lengths(self) -> dict[str, int]:
        """Name of a kind of lengths -> measured optimizer steps."""
        return {ARENA: self.steps[0], self.fixed: self.steps[1]}


FULL = Size(
    shapes={"Gemma2-9B": "google/gemma-2-9b-it", "Llama-3.1-8B": "meta-llama/Llama-3.1-8B-Instruct"},
    max_tokens=2048,
    rank=64,
    step_sequences=16,
    steps=(6, 3),
    budgets=(16384, 8192, 4096, 2048),
    score_battles=64,
    score_budget=32768,
    matrices=((8192, 8192, 8192), (8192, 14336, 3584), (8192, 14336, 4096)),
    copy_bytes=4 * 2**30,
    rate_seconds=1.0,
    seeds=3,
    battles=6000,
    folds=5,
    tokens=512,
    epochs=2.0,
    trials=30,
)
QUICK = Size(
    shapes={"tiny Gemma2": "configs/bases/tiny-gemma2"},
    max_tokens=64,
    rank=4,
    step_sequences=4,
    steps=(1, 1),
    budgets=(256,),
    score_battles=4,
    score_budget=256,
    matrices=((64, 64, 64),),
    copy_bytes=2**20,
    rate_seconds=0.01,
    seeds=1,
    battles=48,
    folds=2,
    tokens=96,
    epochs=0.3,
    trials=1,
    demo=(
        "data.synth.battles=90",
        "data.synth.test_battles=6",
        "folds.k=2",
        "jobs.workers=1",
        "stack.trials=1",
        "stack.rounds=5",
        "members.gemma2.train.epochs=0.1",
        "members.llama3_1.train.epochs=0.1",
        "distill.student.train.epochs=0.1",
    ),
)


@dataclass(frozen=True)
class Context:
    """Options of one call of the benchmark.

    Attributes:
        folder: of results and working files.
        quick: sizes for a CPU.
        models, data: folders for the runs on real judgements, or None.
        attention: taken where a case names none.
    """

    folder: Path
    quick: bool = False
    models: Path | None = None
    data: Path | None = None
    attention: str = "auto"

    @property
    def size(self) -> Size:
        return QUICK if self.quick else FULL


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        module: of this folder, with ``measure(case, context) -> Row``.
        seconds: its time box; with the time for an orderly stop, the sum over all parts is below 20 minutes.
        cases: the rows to measure.
    """

    module: str
    seconds: float
    cases: Callable[[Context], list[Case]]


def _rates(context: Context) -> list[Case]:
    products = [" x ".join(map(str, matrix)) for matrix in context.size.matrices]
    cases = [("matrix product", dtype, product) for dtype in ("bfloat16", "float16") for product in products]
    return [*cases, *(("matrix product", dtype, products[0]) for dtype in ("tf32", "float32")), ("copy",)]


def _training(context: Context) -> list[Case]:
    """Return the cases with those that the goals need first, in case the time box ends."""
    from oof.model.attention_table import ORDER  # imports torch

    size = context.size
    cases: list[Case] = [
        (shape, lengths, attention) for lengths in size.lengths for attention in ORDER for shape in size.shapes
    ]
    return [*cases, *((shape, ARENA, "auto", EAGER_LAYERS) for shape in size.shapes)]


def _trainer(context: Context) -> list[Case]:
    return [(shape, lengths) for shape in context.size.shapes for lengths in context.size.lengths]


def _scoring(context: Context) -> list[Case]:
    return [(shape, kind) for kind in (*SCORED, EAGER_LAYERS) for shape in context.size.shapes]


def _qlora(context: Context) -> list[Case]:
    return [(shape, ARENA, "auto", "nf4") for shape in context.size.shapes]


def _operations(context: Context) -> list[Case]:
    return [(shape, kind) for kind in (TRAINING, SCORING) for shape in context.size.shapes]


def _real(context: Context) -> list[Case]:
    if context.models is None or context.data is None:
        return []
    return [(name, f"seed {seed}") for seed in range(context.size.seeds) for name in ("arguments", "chats")]


PARTS = {
    "rates": Part("rates", 35, _rates),
    "training": Part("lora_training", 320, _training),
    "trainer": Part("plain_trainer", 190, _trainer),
    "scoring": Part("both_orders", 190, _scoring),
    "qlora": Part("lora_training", 95, _qlora),
    "operations": Part("kernel_profile", 105, _operations),
    "demo": Part("three_stages", 60, lambda context: [("demo",)]),
    "real": Part("three_stages", 140, _real),
}
