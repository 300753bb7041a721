"""``--json`` of check, plan, table and audit: one document with documented keys, alone on standard output."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.command_line import PACKAGES
from tests.fixtures.demo_run import ROOT

FORMATS = (ROOT / "docs" / "reference" / "file-formats.md").read_text(encoding="utf-8")
HEADER = "id,prompt,response_a,response_b,winner_model_a,winner_model_b,winner_tie\n"


def document(capfd: pytest.CaptureFixture[str], package: str, *words: str, status: int = 0) -> dict[str, Any]:
    """Return the document that a subcommand prints; fail on anything else on standard output, NaN or another status."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    capfd.readouterr()
    assert PACKAGES[package]([*words, "--json"]) == status
    value: dict[str, Any] = json.loads(capfd.readouterr().out, parse_constant=refuse)
    undocumented = set(keys(value)) - documented_keys(words[0])
    assert not undocumented, f"not in file-formats.md: {undocumented}"
    return value


def keys(value: object, own: bool = False) -> Iterator[str]:
    """Yield the names of all entries, but names of rows, members, cards and attentions (``own``)."""
    if isinstance(value, list):
        for item in value:
            yield from keys(item)
    if isinstance(value, dict):
        for name, item in value.items():
            if not own:
                yield name
            yield from keys(item, name in ("members", "others", "n_jobs", "cards", "log_loss"))


def documented_keys(subcommand: str) -> set[str]:
    row = re.search(rf"^\| `{subcommand} --json` \|(.*)\|$", FORMATS, re.M)
    assert row, subcommand
    return set(re.findall(r"`(\w+)`", row[1]))


def test_check_lists_files_with_their_problems_and_keeps_its_status(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good, bad, other = (tmp_path / name for name in ("good.csv", "bad.csv", "other.csv"))
    good.write_text(
        HEADER + 'g1,"[""Hello""]","[""Hi""]","[""Hey""]",1,0,0\ng2,"[""Why""]","[""a""]","[""b""]",0,0,1\n'
    )
    bad.write_text(HEADER + 'b1,"[""Hello""]","[""Hi""]","[""Hey""]",1,1,0\n')
    other.write_text("question,left,right\nWhy,a,b\n")
    assert document(capfd, "oof", "check", str(good))["usable"] is True
    value = document(capfd, "oof", "check", str(good), str(bad), str(other), status=1)
    assert value["usable"] is False
    assert [Path(file["file"]).name for file in value["files"]] == ["good.csv", "bad.csv", "other.csv"]
    first, second, third = value["files"]
    assert (first["usable"], first["verdicts"], first["groups"]) == (True, {"a": 1, "b": 0, "tie": 1}, 2)
    assert second["problems"][0]["severity"] == "error"
    assert second["problems"][0]["rows"][0]["rows"] == [1]
    assert (third["usable"], third["battles"]) == (False, None)
    assert "other.csv" in third["error"]
    assert value["together"]["usable"] is True
    assert value["together"]["battles"] == 2


def test_problems_of_files_together_are_listed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    for path in (one, two):  # the same id with other texts
        path.write_text(HEADER + f'g1,"[""Hello""]","[""{path.stem}""]","[""Hey""]",1,0,0\n')
    value = document(capfd, "oof", "check", str(one), str(two))
    assert not [problem for file in value["files"] for problem in file["problems"] if problem["column"] == "id"]
    assert [problem["column"] for problem in value["together"]["problems"]] == ["id"]
    assert document(capfd, "oof", "check", str(one))["together"] is None


def test_table_prints_the_content_of_metrics_json(small_run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    value = document(capfd, "ensemble", "table", f"run={small_run}")
    written = json.loads((small_run / "metrics.json").read_text())
    assert value == {name: item for name, item in written.items() if name != "checksum"}
    rows = {**value["log_loss"], **value["log_loss"]["members"]}
    best = rows[value["best"]]["value"]
    assert value["best"] != "bayes"
    assert all(best <= row["value"] for name, row in rows.items() if name not in ("members", "bayes"))


def test_audit_lists_its_findings_and_keeps_its_status(
    small_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    value = document(capfd, "oof", "audit", str(small_run))
    assert value["sound"] is True
    assert len(value["findings"]) == sum(value["counts"].values())
    assert {finding["status"] for finding in value["findings"]} == {"ok"}
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    shutil.rmtree(run / "oof" / "gemma2" / "fold-1")
    value = document(capfd, "oof", "audit", str(run), status=1)
    assert value["sound"] is False
    assert value["counts"]["violated"] > 0


@pytest.mark.slow
def test_plan_prints_members_and_totals(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    value = document(capfd, "oof", "plan", "configs/demo.yaml", f"run={tmp_path}", "--price-per-hour", "2.5")
    assert [member["name"] for member in value["members"]] == ["gemma2", "llama3_1", "student"]
    assert {entry["settings"] for entry in value["totals"]} == {"configured", "fastest"}
    assert all(entry["money"] >= 0 for entry in value["totals"] if entry["fits"])
