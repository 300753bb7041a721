"""The page of the GPU benchmark: its goals, its tables, and what could not be measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.gpu import bench
from benchmarks.gpu.bench_page import body
from benchmarks.gpu.parts import ARENA, EAGER_LAYERS, OUT_OF_MEMORY, PARTS, PROBLEM, Context

CARD = {
    "gpu": "NVIDIA H100 80GB HBM3",
    "memory_gb": 85.0,
    "capability": "9.0",
    "driver": "580.1",
    "cuda": "13.0",
    "versions": {"torch": "2.13.0"},
}
NO_ROWS: dict[str, Any] = {part: {} for part in PARTS}
TRAINED = {
    "attention": "flash_attention_4",
    "auto": True,
    "fused_layers": ["geglu", "rms_norm"],
    "flops_per_second": 400e12,
    "tokens_per_second": 9000.0,
    "tokens_per_batch": 4096,
    "halvings": 0,
    "peak_gb": 60.0,
    "planned_gb": 58.0,
    "seconds": 7.0,
    "predicted_seconds": 8.0,
    "checkpointing": False,
}
PEER = TRAINED | {"batch": 2, "tokens_per_second": 5000.0}
SCORED = TRAINED | {"kl": 0.0, "largest_difference": 0.0, "largest_logit": 1.0, "flops_per_second": 300e12}
MEASURED = NO_ROWS | {
    "rates": {("matrix product", "bfloat16", "8 x 8 x 8"): {"flops_per_second": 700e12}},
    "training": {
        ("Gemma2-9B", ARENA, "flash_attention_4"): TRAINED,
        ("Gemma2-9B", ARENA, "eager"): {PROBLEM: OUT_OF_MEMORY},
    },
    "trainer": {("Gemma2-9B", ARENA): PEER},
    "scoring": {("Gemma2-9B", "bfloat16"): SCORED},
}


def page(rows: dict[str, Any], folder: Path) -> str:
    return "\n".join(body(CARD, rows, Context(folder)))


def test_goals_are_met_not_met_or_not_measured(tmp_path: Path) -> None:
    text = page(MEASURED, tmp_path)
    assert "| LoRA training of Gemma2-9B: share of the card's bfloat16 rate | 45% | 57% | met |" in text
    assert "| scoring of Gemma2-9B: share of that rate | 55% | 43% | **not met** |" in text
    assert "| tokens/s of the plain Trainer, times | 1.50 | 1.80 | met |" in text
    assert page(NO_ROWS, tmp_path).count("| not measured |") == 3


def test_a_row_has_the_planned_beside_the_measured_memory_and_seconds(tmp_path: Path) -> None:
    cells = (
        "arena lengths | **flash_attention_4** | geglu, rms_norm | 9,000 | 57% | 60.0 | 58.0 | 7.0 | 8.0 | 4,096 | no"
    )
    row = f"| Gemma2-9B | {cells} |"
    assert row in page(MEASURED, tmp_path)


def test_scoring_names_its_fused_layers_and_is_measured_without_them_too(tmp_path: Path) -> None:
    cases = PARTS["scoring"].cases(Context(Path()))
    assert cases[:2] == [("Gemma2-9B", "bfloat16"), ("Llama-3.1-8B", "bfloat16")]  # the goals need them
    assert cases[-2:] == [("Gemma2-9B", EAGER_LAYERS), ("Llama-3.1-8B", EAGER_LAYERS)]
    eager = SCORED | {"fused_layers": []}
    rows = MEASURED | {"scoring": {("Gemma2-9B", "bfloat16"): SCORED, ("Gemma2-9B", EAGER_LAYERS): eager}}
    text = page(rows, tmp_path)
    assert "| Gemma2-9B | bfloat16 | flash_attention_4 | geglu, rms_norm |" in text
    assert "| Gemma2-9B | bfloat16 | flash_attention_4 | no |" in text


def test_a_case_that_does_not_fit_is_on_the_page_with_its_reason(tmp_path: Path) -> None:
    assert "- Gemma2-9B arena lengths eager: out of memory" in page(MEASURED, tmp_path)


def test_a_page_names_what_is_not_measured_yet_and_the_folders_that_it_needs(tmp_path: Path) -> None:
    text = page(MEASURED, tmp_path)
    assert "qlora (2 rows)" in text
    assert 'Not run: give `ARGS="--models DIR --data DIR"`.' in text


def test_only_a_run_of_the_real_sizes_on_a_gpu_writes_the_document(tmp_path: Path) -> None:
    arguments = type("Arguments", (), {"out": None})()
    assert bench.page_path(arguments, CARD, Context(tmp_path)) == bench.PAGE
    for card, quick in ((CARD | {"gpu": None}, False), (CARD, True)):
        assert bench.page_path(arguments, card, Context(tmp_path, quick)) == tmp_path / "gpu.md"
