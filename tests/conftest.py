"""Settings of the whole suite, and one small finished run: all three stages by command on 120 synthetic battles."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.fixtures.demo_run import ROOT, small_arguments

# The same Hypothesis examples on every machine, so that a failure always means a change. To search for new ones:
# HYPOTHESIS_PROFILE=explore make test
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The suite compares exact bytes, which only a CPU reproduces; GPU tests run separately (make test-gpu).
if not os.environ.get("ARENA_TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# They start processes and take minutes. They run first, so that no worker of the suite waits for them at the end.
LONGEST = ("test_launch.py", "test_process_group.py", "test_faults.py", "test_pipeline.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish() -> None:
    """Keep the garbage collector away from imported libraries: each training collects, which took 0.2 s of a test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run from the repository's root, where relative paths in the shipped configurations start."""
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="session", autouse=True)
def self_check_in_this_process() -> Iterator[None]:
    """Open an exported student here, not in a fresh process, which takes 4 to 8 seconds to import its libraries.

    ``tests/ensemble/distillation/test_export.py`` and ``make demo`` start one.
    """
    from transformers import AutoModelForSequenceClassification

    from ensemble.distillation import export

    def logits_of_this_process(folder: Path, rows: list[list[int]]) -> list[list[float]]:
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        with torch.inference_mode():
            return [model(input_ids=torch.tensor([row])).logits[0].float().tolist() for row in rows]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "logits_of_a_fresh_process", logits_of_this_process)
        yield


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run (do not write to it)."""
    from ensemble.__main__ import main as ensemble_main
    from oof.__main__ import main as oof_main

    before = Path.cwd()
    os.chdir(ROOT)
    try:
        run = tmp_path_factory.mktemp("runs") / "small[1]"  # polars and glob read brackets as a pattern
        arguments = small_arguments(run)
        assert oof_main(["oof", *arguments]) == 0
        for subcommand in ("stack", "distill", "predict", "table"):
            assert ensemble_main([subcommand, *arguments]) == 0
    finally:
        os.chdir(before)
    return run
