"""Options of the GPU benchmark for its tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gpu.parts import Context


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """Return options with tiny shapes and an empty folder."""
    return Context(tmp_path, quick=True)
