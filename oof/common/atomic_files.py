"""Atomic file writes, and JSON files with a checksum.

Guarantee: at any moment, also after a kill or on a full disk, a path holds the old file or the whole new one. A damaged
JSON manifest is recognised by its checksum.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from oof.common.digests import digest, file_digest
from oof.common.errors import UserError

logger = logging.getLogger(__name__)

CHECKSUM = "checksum"  # key of an object's own checksum
TEMPORARY = ".*.tmp"  # glob of the temporary files of ``replacing``


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it is flushed to disk and replaces ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's 0600 would make a shared run unreadable for others
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Flush the rename to disk; not every system can open a folder for this."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically, with sorted keys.

    Raises:
        ValueError: a number is not finite.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        UserError: it cannot be read, is not JSON, or its checksum differs.
    """
    try:
        return parse_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); delete it and run the stage again") from error


def parse_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, or its checksum differs.
    """
    value = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(value, dict) and CHECKSUM in value and value != sealed(value):
        raise ValueError("its checksum differs")
    return value


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with a checksum of itself, which ``read_json`` verifies."""
    plain = json.loads(json.dumps({name: item for name, item in value.items() if name != CHECKSUM}))
    return {**plain, CHECKSUM: digest(plain)}


def rewrite_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a JSON file that every call writes anew; log a warning if the old file was damaged."""
    if path.is_file():
        try:
            parse_json(path)
        except (OSError, ValueError, RecursionError) as error:
            logger.warning("%s: damaged (%s); written again", path, error)
    write_json(path, sealed(value))


def verified(path: Path, manifest: str, remedy: str) -> Path:
    """Return ``path`` after comparing its digest with the manifest in its folder, if that exists and lists the file.

    Args:
        path: of the file.
        manifest: name of the manifest.
        remedy: command that makes the file again, for the message.

    Raises:
        UserError: the file is missing or differs, or the manifest is damaged.
    """
    manifest_path = path.parent / manifest
    if not manifest_path.is_file():
        return path
    try:
        expected = parse_json(manifest_path).get("files", {}).get(path.name)
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise UserError(f"{manifest_path}: damaged ({error}); run '{remedy}' again") from error
    if expected is not None and not (path.is_file() and file_digest(path) == expected):
        raise UserError(f"{path}: damaged (checksum differs); run '{remedy}' again")
    return path


def sweep(leftovers: Iterable[Path]) -> None:
    """Remove temporary files that a killed process left behind."""
    for path in list(leftovers):
        path.unlink(missing_ok=True)


def write_parquet(path: Path, frame: pl.DataFrame) -> None:
    """Write a Parquet file atomically."""
    with replacing(path) as temporary:
        frame.write_parquet(temporary)


def read_parquet(path: Path, rows: pl.Expr | None = None) -> pl.DataFrame:
    """Return the content of a Parquet file.

    Args:
        path: of the file.
        rows: condition of the rows to return; the others are never all in memory. None = all rows.

    Raises:
        UserError: it cannot be read or is damaged.
    """
    try:
        if rows is None:
            return pl.read_parquet(path, glob=False)  # a folder may be named lr[1e-4]
        return pl.scan_parquet(path, glob=False).filter(rows).collect()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({error}); delete it and run the stage again") from error
