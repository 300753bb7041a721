"""Plugin of pytest for the mutation check: the quickest tests first, and any failing example is enough."""

from __future__ import annotations

import json
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile(
    "unshrunk",
    derandomize=True,
    deadline=None,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    saved = Path("mutmut-stats.json")
    if saved.is_file():
        seconds = json.loads(saved.read_bytes())["duration_by_test"]
        items.sort(key=lambda item: seconds.get(item.nodeid, 0.0))
