"""The command of the GPU benchmark: its cases, time boxes and machine, and a row for each case that failed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import bench
from benchmarks.gpu.card import describe, missing, result_key
from benchmarks.gpu.parts import ARENA, EAGER_LAYERS, OUT_OF_MEMORY, PARTS, PROBLEM, Context
from benchmarks.gpu.results import Results
from oof.common.atomic_files import read_json
from oof.common.errors import UserError
from oof.config import Member
from oof.config.setting import settings
from oof.model.attention_table import HUB_KERNELS, ORDER, PACKAGES
from tests.fixtures.demo_run import ROOT


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


# Processes and time boxes


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
    reason = "the process ended with status 139: Segmentation fault"
    assert {case: row[PROBLEM] for case, row in rows.items()} == dict.fromkeys(
        PARTS["operations"].cases(context), reason
    )


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


# The machine


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


# The whole


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
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)  # noqa: S603
    again = {case: row for part in PARTS for case, row in read_rows(tmp_path / f"{part}.json").items()}
    measured = rows.keys() - failed.keys()
    assert {case: again[case] for case in measured} == {case: rows[case] for case in measured}  # not measured again


def read_rows(path: Path) -> dict[Any, Any]:
    return Results(path, read_json(path)["key"]).rows
