"""Results of one part of the GPU benchmark as a JSON file, so that a rerun measures only what is missing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from benchmarks.gpu.parts import PROBLEM, Case, Row
from oof.common.atomic_files import read_json, write_json


class Results:
    """Rows of one part by case; those of another key (card, library versions, sizes) are not read.

    Args:
        path: of the JSON file, written after each row.
        key: JSON values that the figures depend on.
    """

    def __init__(self, path: Path, key: object) -> None:
        self.path, self.key = path, json.loads(json.dumps(key))
        saved = read_json(path) if path.is_file() else {}
        self._rows: dict[str, Row] = saved["rows"] if saved.get("key") == self.key else {}

    @property
    def rows(self) -> dict[Case, Row]:
        return {tuple(json.loads(name)): row for name, row in self._rows.items()}

    def put(self, case: Case, row: Row) -> None:
        self._rows[json.dumps(case)] = row
        self._write()

    def missing(self, cases: Iterable[Case]) -> list[Case]:
        return [case for case in cases if json.dumps(case) not in self._rows]

    def forget_problems(self) -> None:
        """Drop the rows of cases that failed, for another attempt: a package may be installed by now."""
        self._rows = {name: row for name, row in self._rows.items() if PROBLEM not in row}
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {"key": self.key, "rows": self._rows})
