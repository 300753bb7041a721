"""Tables are read by their path, whatever characters it has."""

from __future__ import annotations

import ast
from pathlib import Path

import polars as pl

from oof.common.atomic_files import read_parquet, write_parquet
from tests.fixtures.demo_run import ROOT

READERS = {"read_csv", "read_parquet", "scan_csv", "scan_parquet"}


def test_a_table_in_a_folder_with_brackets_is_read(tmp_path: Path) -> None:
    frame, path = pl.DataFrame({"a": [1, 2]}), tmp_path / "lr[1e-4]" / "table.parquet"
    write_parquet(path, frame)
    assert read_parquet(path).equals(frame)
    assert read_parquet(path, pl.col("a") > 1)["a"].to_list() == [2]


def test_no_module_lets_polars_read_a_path_as_a_pattern() -> None:
    """It expands brackets and asterisks, also those of the folders that a user's run is in."""
    calls: dict[str, set[str | None]] = {}
    for path in (path for package in ("oof", "ensemble") for path in sorted((ROOT / package).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {f"pl.{name}" for name in READERS}:
                calls[f"{path.relative_to(ROOT)}:{node.lineno}"] = {keyword.arg for keyword in node.keywords}
    assert calls
    assert [place for place, keywords in calls.items() if "glob" not in keywords] == []
