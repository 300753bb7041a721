"""Pinned versions: each can be installed with the oldest Python that the project allows."""

from __future__ import annotations

import importlib.metadata
import tomllib

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.fixtures.demo_run import ROOT


def test_every_pinned_version_allows_the_oldest_python_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    oldest = project["requires-python"].removeprefix(">=") + ".0"
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    installed = {dist.metadata["Name"].lower().replace("_", "-"): dist for dist in importlib.metadata.distributions()}
    checked, too_new = 0, {}
    for pin in pins:
        dist = installed.get(pin.name.lower().replace("_", "-"))
        if dist is None or not pin.specifier.contains(dist.version, prereleases=True):
            continue  # of another extra or platform
        checked += 1
        allowed = dist.metadata["Requires-Python"]
        if allowed and not SpecifierSet(allowed).contains(oldest):
            too_new[str(pin)] = allowed
    assert checked > len(pins) / 2
    assert too_new == {}
