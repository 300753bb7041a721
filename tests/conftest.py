"""One small real run that many tests look at: all three stages through the verbs, on 120 synthetic battles."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.fixtures.demo_run import ROOT, small_arguments

# The same examples on every machine: a red main always means a change, never luck. To look for new ones:
# HYPOTHESIS_PROFILE=explore make test
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The suite asks for exact bytes, which only a CPU gives; what is about the GPU is run with it (make test-gpu).
if not os.environ.get("ARENA_TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# They start processes of their own and take minutes: begun first, they leave no worker of the suite waiting at the end.
LONGEST = ("test_launch.py", "test_process_group.py", "test_faults.py", "test_pipeline.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True)
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths in the shipped configurations start at the repository."""
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run (do not write to it)."""
    from ensemble.__main__ import main as ensemble_main
    from oof.__main__ import main as oof_main

    before = Path.cwd()
    os.chdir(ROOT)
    try:
        run = tmp_path_factory.mktemp("runs") / "small"
        arguments = small_arguments(run)
        assert oof_main(["oof", *arguments]) == 0
        for verb in ("stack", "distill", "predict", "table"):
            assert ensemble_main([verb, *arguments]) == 0
    finally:
        os.chdir(before)
    return run
