"""Guard of an earlier submission: one of other battles is replaced only on request, and is kept beside the new one.

Battles are compared by content: their ids, prompts and responses. So the same ids with other texts are another test
set, and a copy of the test file under another name is the same one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import polars as pl

from oof.common.atomic_files import parse_json, replacing
from oof.common.digests import file_digest
from oof.common.errors import UserError

SUBMISSION = "submission.csv"
MANIFEST = "submission.json"
TEXTS = ("id", "prompt", "response_a", "response_b")


@dataclass
class PredictedBattles:
    """Ids and content of the test battles, added up table by table; the result does not depend on how they are cut."""

    ids: set[str] = field(default_factory=set)
    rows: list[bytes] = field(default_factory=list)  # sha256 of each battle

    def add(self, table: pl.DataFrame) -> pl.DataFrame:
        """Add (n) battles and return them."""
        self.ids.update(table["id"])
        lines = (json.dumps(row) for row in table.select(TEXTS).iter_rows())
        self.rows += (hashlib.sha256(line.encode()).digest() for line in lines)
        return table

    @property
    def digest(self) -> str:
        """Digest of the battles, whatever their order."""
        return hashlib.sha256(b"".join(sorted(self.rows))).hexdigest()


def refuse_other_battles(run: Path, names: str, digests: list[str], tables: Iterable[pl.DataFrame]) -> None:
    """Refuse to replace a submission of other battles than those to predict.

    Args:
        run: folder of the run.
        names: of the test files, for the message.
        digests: sha256 of each test file.
        tables: their battles, which are read only if the files are not those of before.

    Raises:
        UserError: names both sets of battles and the remedy; nothing was written.
    """
    before, manifest = submission_ids(run / SUBMISSION), _manifest(run)
    if before is None or [sha for _, sha in manifest.get("test", [])] == digests:
        return
    battles = PredictedBattles()
    for table in tables:
        battles.add(table)
    if not _differ(before, manifest, battles):
        return
    difference = f"of which {names} has {len(battles.ids & before):,} (it has {len(battles.ids):,})"
    if battles.ids == before:
        difference = f"whose ids {names} has with other texts"
    raise UserError(
        f"{run / SUBMISSION}: holds predictions of {len(before):,} battles, {difference}; nothing was written. Add "
        f"REDO=1 (--redo) to replace it; it is then kept as {_free_name(run).name}"
    )


def keep_other_battles(run: Path, battles: PredictedBattles) -> Path | None:
    """Copy the submission to a free name beside it if it is of other battles than these; return the copy.

    A call that was killed after it had replaced the submission finds its own one, which the manifest does not have.
    """
    path = run / SUBMISSION
    before, manifest = submission_ids(path), _manifest(run)
    if before is None or not _differ(before, manifest, battles):
        return None
    sha = file_digest(path)
    own = before == battles.ids and sha != manifest.get("files", {}).get(SUBMISSION)
    if own or sha in [file_digest(copy) for copy in run.glob("submission-*.csv")]:
        return None
    kept = _free_name(run)
    with replacing(kept) as temporary:
        shutil.copyfile(path, temporary)
    return kept


def submission_ids(path: Path) -> set[str] | None:
    """Return the ids of a submission; None if there is none or it cannot be read."""
    try:
        return set(pl.read_csv(path, glob=False, columns=["id"], schema_overrides={"id": pl.String})["id"])
    except (OSError, pl.exceptions.PolarsError):
        return None


def _manifest(run: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = parse_json(run / MANIFEST)
        return manifest if all(len(entry) == 2 for entry in manifest["test"]) else {}
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return {}


def _differ(before: set[str], manifest: dict[str, Any], battles: PredictedBattles) -> bool:
    """Return whether the battles are others. Submissions of older versions recorded no texts: their ids count alone."""
    return before != battles.ids or manifest.get("battles", battles.digest) != battles.digest


def _free_name(run: Path) -> Path:
    names = (run / f"submission-{number}.csv" for number in count(1))
    return next(path for path in names if not path.exists())
