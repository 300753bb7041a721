"""Mutation check: its settings, the names of mutants, its page."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from benchmarks.robustness import mutants
from benchmarks.robustness.mutants import (
    EQUIVALENT,
    MODULES,
    Mutant,
    forget_survivors,
    page,
    prepare,
    reason_of,
    results,
)
from oof.common.atomic_files import read_json
from tests.fixtures.demo_run import ROOT


def test_modules_and_their_tests_are_there() -> None:
    paths = [*MODULES, *(test for tests in MODULES.values() for test in tests)]
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_copy_has_the_tracked_files_and_settings_that_toml_reads(tmp_path: Path) -> None:
    prepare(tmp_path / "tree", "oof/metrics.py")
    settings = tomllib.loads((tmp_path / "tree" / "pyproject.toml").read_text())["tool"]
    assert settings["mutmut"]["only_mutate"] == ["oof/metrics.py"]
    assert settings["mutmut"]["pytest_add_cli_args_test_selection"] == ["tests/oof/test_metrics.py"]
    assert settings["pytest"]["ini_options"]["testpaths"] == ["tests"]
    assert (tmp_path / "tree" / "oof" / "metrics.py").read_bytes() == (ROOT / "oof" / "metrics.py").read_bytes()


def test_another_call_tries_what_nothing_has_noticed_or_argued_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "mutants" / "a.py.meta"
    path.parent.mkdir()
    codes = {"killed": 1, "survived": 0, "same": 0, "no tests": 33, "timeout": -24, "not checked": None}
    path.write_text(json.dumps({"exit_code_by_key": codes, "durations_by_key": {"killed": 2.0}}))
    found = [Mutant(name, "a.py", "f", name if name != "same" else "survived", ("- 1", name)) for name in codes]
    equivalent = tmp_path / "equivalent.json"
    reasons = [{"mutants": [["a.py", "f", "- 1", "same"]], "reason": "it is"}]
    equivalent.write_text(json.dumps({"rules": [], "equivalent": reasons}))
    monkeypatch.setattr(mutants, "EQUIVALENT", equivalent)
    monkeypatch.setattr(mutants, "results", lambda tree, packages: found)
    forget_survivors(tmp_path, tmp_path)
    kept = {name: code if name in ("killed", "same") else None for name, code in codes.items()}
    assert read_json(path) == {"exit_code_by_key": kept, "durations_by_key": {"killed": 2.0}}
    forget_survivors(tmp_path / "first call", tmp_path)


def test_names_of_mutants_are_read_with_their_change(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    listed = "    oof.metrics.x_log_loss__mutmut_3: killed\n    a.b.xǁPolicyǁfit__mutmut_1: survived\n"
    diff = "--- a/b.py\n+++ a/b.py\n@@ -1 +1 @@\n def fit(self):\n-    x = 1\n+    x = 2\n"

    def answer(tree: Path, packages: Path, *arguments: str) -> str:
        return listed if arguments[0] == "results" else diff

    monkeypatch.setattr(mutants, "mutmut", answer)
    assert results(tmp_path, tmp_path) == [
        Mutant("oof.metrics.x_log_loss__mutmut_3", "oof/metrics.py", "log_loss", "killed"),
        Mutant("a.b.xǁPolicyǁfit__mutmut_1", "a/b.py", "Policy.fit", "survived", ("- x = 1", "+ x = 2")),
    ]


def test_the_page_counts_equivalent_changes_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    same = Mutant("1", "a.py", "f", "survived", ("- x = 1", "+ x = 1.0"))
    path = tmp_path / "equivalent.json"
    rule = {"change": r"- (.*), strict=True\)\n\+ \1, strict=None\)", "reason": "lengths are equal"}
    listed = [{"mutants": [same.key], "reason": "numpy makes it a float"}]
    path.write_text(json.dumps({"rules": [rule], "equivalent": listed}))
    monkeypatch.setattr(mutants, "EQUIVALENT", path)
    alive = Mutant("2", "a.py", "g", "no tests", ("- y = 1", "+ y = 2"))
    endless = Mutant("3", "a.py", "f", "timeout", ("- i += 1", "+ i -= 1"))
    killed = [Mutant("4", "a.py", "f", "killed")] * 3
    unchecked = Mutant("5", "b.py", "h", "survived", ("- zip(a, b, strict=True)", "+ zip(a, b, strict=None)"))
    text = "\n".join(page([same, alive, endless, *killed, Mutant("6", "b.py", "h", "killed"), unchecked]))
    assert "| a.py | 6 | 3 (60.0%) | 1 | 2 |" in text
    assert "| all | 8 | 4 (66.7%) | 2 | 2 |" in text
    unnoticed = text.split("## Not noticed")[1].split("##")[0]
    assert "- `a.py`, `g`: `- y = 1`, `+ y = 2` (no tests)" in unnoticed
    assert "- `a.py`, `f`: `- i += 1`, `+ i -= 1` (timeout)" in unnoticed
    equivalent = text.split("## Equivalent")[1]
    assert "numpy makes it a float:\n\n- `a.py`, `f`: `- x = 1`, `+ x = 1.0`" in equivalent
    assert "lengths are equal:\n\n- `b.py`, `h`: " in equivalent


def test_every_change_that_is_argued_away_has_a_reason_and_a_module() -> None:
    known = read_json(EQUIVALENT)
    assert set(known) == {"rules", "equivalent"}
    assert all(len(entry["reason"]) > 10 for entries in known.values() for entry in entries)
    assert {key[0] for entry in known["equivalent"] for key in entry["mutants"]} <= set(MODULES)


@pytest.mark.parametrize(
    ("change", "argued"),
    [
        (("- pairs = zip(a, b, strict=True)", "+ pairs = zip(a, b, strict=None)"), True),
        (("- f(zip(a, b, strict=True), 1)", "+ f(zip(a, b, ), 1)"), True),
        (("- f(zip(a, b, strict=True), 1)", "+ f(zip(a, b, strict=True), 2)"), False),
        (('- order = np.argsort(x, kind="stable")', '+ order = np.argsort(x, kind="STABLE")'), True),
        (('- order = np.argsort(x, kind="stable")', "+ order = np.argsort(x, )"), False),
    ],
)
def test_rules_argue_only_checks_and_spellings_away(change: tuple[str, str], argued: bool) -> None:
    known = read_json(EQUIVALENT)
    assert bool(reason_of(Mutant("1", "oof/metrics.py", "f", "survived", change), known)) == argued
    assert not reason_of(Mutant("1", "oof/metrics.py", "f", "killed", change), known)
