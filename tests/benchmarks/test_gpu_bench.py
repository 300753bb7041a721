"""The GPU benchmark: its page, and that a failed, killed or slow case is a row of it."""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor
from transformers import Gemma2ForSequenceClassification

from benchmarks.gpu import bench, plain_trainer, three_stages
from benchmarks.gpu.bench_page import body
from benchmarks.gpu.both_orders import drift
from benchmarks.gpu.card import describe, missing, result_key
from benchmarks.gpu.kernel_profile import kind_of, shares
from benchmarks.gpu.parts import ARENA, EAGER_LAYERS, FULL, OUT_OF_MEMORY, PARTS, PROBLEM, QUICK, Context
from benchmarks.gpu.random_classifier import build, largest_budget, member_of, model_flops, random_battles
from benchmarks.gpu.results import Results
from oof.common.atomic_files import write_json
from oof.common.errors import UserError
from oof.config import Member
from oof.config.setting import settings
from oof.model import blockwise_attention
from oof.model.attention_table import HUB_KERNELS, ORDER, PACKAGES
from tests.fixtures.demo_run import ROOT

SHAPE = next(iter(QUICK.shapes))
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


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(tmp_path, quick=True)


def page(rows: dict[str, Any], folder: Path) -> str:
    return "\n".join(body(CARD, rows, Context(folder)))


def test_the_time_boxes_of_all_parts_and_an_orderly_stop_are_below_twenty_minutes() -> None:
    assert sum(part.seconds for part in PARTS.values()) + bench.SECONDS_TO_STOP < 20 * 60


def test_every_attention_is_a_case_at_both_lengths_and_the_one_of_auto_without_fused_layers_too() -> None:
    *cases, gemma, llama = PARTS["training"].cases(Context(Path()))
    assert {case[2] for case in cases} == set(ORDER)
    choices = settings(Member)["attn"].metadata["choices"]
    assert set(ORDER) == {*choices, *HUB_KERNELS.values()} - {"auto"}
    assert {case[1] for case in cases} == {ARENA, "2,048 tokens"}
    assert [case[0] for case in cases[:2]] == ["Gemma2-9B", "Llama-3.1-8B"]
    assert gemma == ("Gemma2-9B", ARENA, "auto", EAGER_LAYERS)
    assert llama == ("Llama-3.1-8B", ARENA, "auto", EAGER_LAYERS)


def test_the_attentions_that_are_fastest_at_the_arena_s_lengths_are_measured_first() -> None:
    cases = PARTS["training"].cases(Context(Path()))
    order = [case[2] for case in cases if case[:2] == ("Gemma2-9B", ARENA)]
    assert order == [*ORDER, "auto"]
    assert cases.index(("Llama-3.1-8B", ARENA, "eager")) < cases.index(("Gemma2-9B", "2,048 tokens", ORDER[0]))


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


def test_parts_are_named_with_commas_or_spaces() -> None:
    assert bench.chosen_parts(["training,rates", "demo"]) == ["rates", "training", "demo"]
    with pytest.raises(UserError, match="no part 'speed'; there are: rates"):
        bench.chosen_parts(["speed"])


# Rows


@pytest.mark.parametrize(
    ("error", "reason", "fit"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), OUT_OF_MEMORY, True),
        (ImportError("no module flash_attn"), "not installed: no module flash_attn", True),
        (ImportError("no name", name="oof.plan"), "ImportError: no name", False),
        (UserError("attn=sdpa drops"), "attn=sdpa drops", True),
        (RuntimeError("an illegal memory access\nmore"), "RuntimeError: an illegal memory access", False),
    ],
)
def test_a_case_that_fails_is_a_row_with_the_reason(
    error: Exception, reason: str, fit: bool, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("benchmarks.gpu.rates.measure", fail)
    assert bench.measured_row("rates", ("copy",), context) == ({PROBLEM: reason}, fit)


def test_a_rerun_measures_what_is_missing_and_what_failed(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def measure(case: Any, context: Context) -> dict[str, Any]:
        calls.append(case)
        if case == ("copy",) and len(calls) == 1:
            raise UserError("busy")
        return {"gb_per_second": 1.0}

    cases = [("copy",), ("matrix product", "tf32", "8 x 8 x 8")]
    monkeypatch.setattr("benchmarks.gpu.rates.measure", measure)
    monkeypatch.setattr(bench, "PARTS", {"rates": type(PARTS["rates"])("rates", 9, lambda _: cases)})
    path = context.folder / "rates.json"
    assert bench.measure_cases("rates", context, Results(path, 1)) == 0
    assert bench.measure_cases("rates", context, Results(path, 1)) == 0
    assert calls == cases
    Results(path, 1).forget_problems()
    assert bench.measure_cases("rates", context, Results(path, 1)) == 0
    assert calls == [*cases, ("copy",)]
    assert Results(path, "another card").rows == {}


def with_process(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let every process of a part run this code instead."""
    popen = subprocess.Popen
    monkeypatch.setattr(
        bench.subprocess, "Popen", lambda command, **options: popen([sys.executable, "-c", code], **options)
    )


def test_a_process_that_dies_leaves_a_row_for_each_case_it_was_at(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_process(monkeypatch, "import sys; print('Segmentation fault'); sys.exit(139)")
    bench.run_part("operations", context, {}, 60)
    rows = Results(context.folder / "operations.json", {}).rows
    assert rows[(SHAPE, "training")][PROBLEM] == "the process ended with status 139: Segmentation fault"


def test_a_process_ends_with_its_children_at_the_end_of_the_time_box(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = "import time; time.sleep(3); open('late', 'w').close()"
    code = f"import os, subprocess, sys, time; os.chdir({str(context.folder)!r}); "
    with_process(monkeypatch, code + f"subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)")
    begun = time.monotonic()
    bench.run_part("operations", context, {}, 1.0)
    assert time.monotonic() - begun < 20
    assert Results(context.folder / "operations.json", {}).rows == {}
    time.sleep(3)
    assert not (context.folder / "late").exists()


class Clock:
    """A clock that only simulated work moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize("case_seconds", [7.0, 400.0])
def test_a_whole_run_of_the_real_sizes_ends_within_twenty_minutes_and_later_calls_go_on(
    case_seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each case takes ``case_seconds``; where that is longer than its part's time box, the part has no row."""
    clock, context = Clock(), Context(tmp_path, models=tmp_path, data=tmp_path)

    def run_process(part: str, context: Context, seconds: float) -> int | None:
        ends = clock.now + seconds
        results = Results(context.folder / f"{part}.json", {})
        for case in results.missing(PARTS[part].cases(context)):
            if clock.now + case_seconds > ends:
                clock.now = ends
                return None
            clock.now += case_seconds
            results.put(case, {})
        return 0

    monkeypatch.setattr(bench.time, "monotonic", clock.monotonic)
    monkeypatch.setattr(bench, "run_process", run_process)
    counts = []
    for _ in range(3):
        begun = clock.now
        for part in PARTS:
            bench.run_part(part, context, {}, PARTS[part].seconds)
        assert clock.now - begun <= 20 * 60 - bench.SECONDS_TO_STOP
        counts.append(sum(len(Results(tmp_path / f"{part}.json", {}).rows) for part in PARTS))
    total = sum(len(part.cases(context)) for part in PARTS.values())
    assert counts[-1] == (total if case_seconds == 7.0 else 0)
    assert case_seconds == 400.0 or 0 < counts[0] <= counts[-1]


# Measurement


def fail_above(limit: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let every forward pass of more tokens than ``limit`` run out of memory; return the tokens of those that ran."""
    sizes: list[int] = []
    forward = Gemma2ForSequenceClassification.forward

    @functools.wraps(forward)  # Trainer reads the signature
    def limited(self: Any, input_ids: torch.Tensor, **options: Any) -> Any:
        real = not isinstance(input_ids, FakeTensor)  # the plan's
        if real and input_ids.numel() > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        sizes.extend([input_ids.numel()] * real)
        return forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(Gemma2ForSequenceClassification, "forward", limited)
    return sizes


def test_training_that_runs_out_of_memory_is_measured_with_smaller_batches(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = context.size.max_tokens
    fail_above(2 * longest, monkeypatch)
    row, fit = bench.measured_row("training", (SHAPE, f"{longest} tokens", "eager"), context)
    assert fit, row
    assert PROBLEM not in row
    assert (row["halvings"], row["tokens_per_batch"]) == (1, 2 * longest)
    assert row["tokens_per_second"] > 0


@pytest.mark.parametrize("part", ["training", "trainer", "scoring"])
def test_a_case_of_which_not_one_sequence_fits_is_a_row(
    part: str, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = fail_above(7, monkeypatch)
    case = next(case for case in PARTS[part].cases(context) if len(case) < 3 or case[2] == "eager")
    row, fit = bench.measured_row(part, case, context)
    assert fit
    assert "memory" in row[PROBLEM] or "does not fit" in row[PROBLEM]
    assert sizes == []


def test_the_plain_trainer_takes_the_largest_batch_that_fits_then_recomputes(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = context.size.max_tokens
    fail_above(2 * longest, monkeypatch)
    row = plain_trainer.measure((SHAPE, f"{longest} tokens"), context)
    assert (row["batch"], row["checkpointing"]) == (2, False)
    fits = plain_trainer.train

    def train(model: Any, data: Any, options: dict[str, Any]) -> float:
        return fits(model, data, options) if options["activation_checkpointing"] else 0.0

    monkeypatch.setattr(plain_trainer, "train", train)
    row = plain_trainer.measure((SHAPE, f"{longest} tokens"), context)
    assert (row["batch"], row["checkpointing"]) == (2, True)


def test_the_plain_trainer_falls_back_where_an_attention_fails(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_trainer, "stock_attentions", lambda member: ["flash_attention_4", "eager"])
    row = plain_trainer.measure((SHAPE, ARENA), context)
    assert row["attention"] == "eager"
    assert row["failures"] == ["flash_attention_4: ImportError"]


@pytest.mark.parametrize(
    ("best", "shape", "expected"),
    [
        ("blockwise", "Gemma2-9B", ["eager"]),
        ("flash_attention_2", "Gemma2-9B", ["flash_attention_2", "eager"]),
        ("flash_attention_4", "Llama-3.1-8B", ["flash_attention_4", "sdpa"]),
        ("sdpa", "Llama-3.1-8B", ["sdpa"]),
    ],
)
def test_the_plain_trainer_has_the_best_attention_of_transformers(
    best: str, shape: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_trainer, "resolved", lambda member: best)
    assert plain_trainer.stock_attentions(Member(FULL.shapes[shape])) == expected


def test_a_run_that_was_stopped_goes_on_and_a_finished_one_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: list[str] = []

    def run(command: list[str], **_: Any) -> Any:
        stages.append(command[3])
        if len(stages) == 2:
            raise KeyboardInterrupt
        write_json(tmp_path / "demo" / "run" / "metrics.json", {"log_loss": {"prior": {"value": 1.1}}})
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(three_stages.subprocess, "run", run)
    context = Context(tmp_path, quick=True)
    with pytest.raises(KeyboardInterrupt):
        three_stages.measure(("demo",), context)
    kept = tmp_path / "demo" / "run" / "metrics.json"
    assert kept.is_file()
    row = three_stages.measure(("demo",), context)
    assert row["continued"]
    assert set(row["seconds"]) == {"oof", "stack", "distill", "table"}
    row = three_stages.measure(("demo",), context)
    assert not row["continued"]


@pytest.mark.parametrize("quantise", ["none", "int8", "nf4"])
def test_a_random_classifier_has_the_shape_adapters_and_quantisation_of_a_fold_job(
    quantise: str, context: Context
) -> None:
    member = member_of(SHAPE, context, option=quantise)
    model = build(member, blockwise_attention.NAME)
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    expected = {"none": "Linear", "int8": "Linear8bitLt", "nf4": "Linear4bit"}[quantise]
    assert type(layer.base_layer).__name__ == type(layer).__name__ == expected
    assert model.config._attn_implementation == blockwise_attention.NAME
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    logits = model(input_ids=torch.arange(10, 26)[None]).logits
    assert logits.shape == (1, 3)
    assert torch.isfinite(logits).all()
    assert torch.equal(build(member, blockwise_attention.NAME)(input_ids=torch.arange(10, 26)[None]).logits, logits)


def test_the_plan_chooses_the_largest_batch_that_fits_then_recomputes(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = member_of("Gemma2-9B", Context(context.folder))
    chosen = []
    for memory in (80e9, 24e9, 1e9):
        monkeypatch.setattr("benchmarks.gpu.random_classifier.usable_memory", lambda memory=memory: memory * 0.9)
        chosen.append(largest_budget(member, blockwise_attention.NAME, FULL.max_tokens, FULL))
    assert chosen == [(4096, False), (2048, True), (2048, True)]


def test_flops_are_those_of_the_real_tokens() -> None:
    member = Member(FULL.shapes["Gemma2-9B"])
    lengths = np.array([400, 600])
    per_token = model_flops(member, lengths, False) / 1000
    assert 2 * 8e9 < per_token < 2 * 9.5e9  # two operations for each weight but those of the embedding
    assert 1.9 < model_flops(member, lengths, True) / model_flops(member, lengths, False) < 2.2


def test_both_orders_of_random_battles_have_the_given_lengths() -> None:
    lengths = np.array([12, 30])
    battles = random_battles(lengths, 100, orders=2)
    np.testing.assert_array_equal(battles.lengths, np.stack([lengths, lengths], axis=1))
    assert battles.ids.min() >= 10


def test_drift_is_zero_for_equal_logits_and_the_kl_divergence_otherwise() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    assert drift(logits, logits)["kl"] == 0.0
    shifted = logits + np.array([0.5, 0.0, 0.0], dtype=np.float32)
    p, q = (torch.distributions.Categorical(logits=torch.from_numpy(x).double()) for x in (logits, shifted))
    expected = torch.distributions.kl_divergence(p, q).mean()
    assert drift(logits, shifted)["kl"] == pytest.approx(float(expected), rel=1e-6)
    assert drift(logits, shifted)["largest_difference"] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::addmm_", "matrix products"),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NNT", "matrix products"),
        ("void cutlass::device_kernel<flash::enable_sm90>", "fused attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "fused attention"),
        ("void kDequantizeBlockwise<__nv_bfloat16>", "dequantisation"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdam>", "optimizer"),
        ("aten::_to_copy", "copies and casts"),
        ("aten::mul", "elementwise"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::tanh_kernel_cuda>", "activation functions"),
        ("unknown", "other"),
    ],
)
def test_operations_are_sorted_into_kinds_by_name(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_shares_of_kinds_sum_to_one_largest_first() -> None:
    assert shares([("aten::mm", 6.0), ("aten::mul", 1.0), ("aten::bmm", 1.0)]) == {
        "matrix products": 0.875,
        "elementwise": 0.125,
    }


# The machine


def test_another_attention_than_auto_is_taken_by_every_case_that_names_none(context: Context) -> None:
    eager = replace(context, attention="eager")
    assert (member_of(SHAPE, eager).attn, member_of(SHAPE, eager, "blockwise").attn) == ("eager", "blockwise")
    assert result_key(describe(), eager) != result_key(describe(), context)
    row, _ = bench.measured_row("training", (SHAPE, ARENA, "eager"), eager)
    assert row["auto"]


def test_results_belong_to_a_card_and_library_versions(context: Context) -> None:
    key = result_key(describe(), context)
    assert key["libraries"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert result_key(describe(), Context(context.folder)) != key


def test_the_check_lists_packages_and_files_that_are_missing(context: Context) -> None:
    lines = missing(Context(context.folder, models=context.folder, data=context.folder))
    assert any("gemma3-270m does not exist" in line for line in lines)
    assert any(line.startswith("flash-attn ") for line in lines) or torch.cuda.is_available()
    assert "no --models and --data: the part real" in missing(context)


def test_importing_the_command_initialises_no_library_that_uses_the_card() -> None:
    code = "import sys, benchmarks.gpu.bench; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0  # noqa: S603


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_quick_runs_every_part_to_its_end_and_prints_the_page(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu.bench", "--quick", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("# GPU benchmark\n")
    assert done.stdout.strip() == (tmp_path / "gpu.md").read_text("utf-8").strip()
    assert "Not measured yet" not in done.stdout
    assert "| not measured |" not in done.stdout
    rows = {case: row for part in PARTS for case, row in read_rows(tmp_path / f"{part}.json").items()}
    failed = {case: row[PROBLEM] for case, row in rows.items() if PROBLEM in row}
    unavailable = {"sdpa", *PACKAGES, *HUB_KERNELS.values()}
    # bitsandbytes 0.50.2 packs nf4 weights for the CPU only where widths are multiples of 64.
    assert all(case[-1] == "nf4" or unavailable & set(case) for case in failed), failed
    begun = time.monotonic()
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)  # noqa: S603
    assert time.monotonic() - begun < 60  # only failed cases are tried again


def read_rows(path: Path) -> dict[Any, Any]:
    from oof.common.atomic_files import read_json

    return Results(path, read_json(path)["key"]).rows
