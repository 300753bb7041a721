"""Files that are whole or not there: atomic writes, digests, and JSON that carries its own checksum."""

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

CHECKSUM = "checksum"  # of the JSON object that it stands in
TEMPORARY = ".*.tmp"  # pattern of what ``replacing`` writes to


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is flushed to disk and replaces ``path``.

    Whatever happens, ``path`` is the old file or the whole new one.
    """
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
        temporary.chmod(0o666 & ~umask)  # mkstemp's 0600 would hide a shared run from colleagues
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Flush the rename itself; a folder cannot be opened for this on every system."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: object) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    try:
        return parse_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); delete it and run the stage again") from error


def parse_json(path: Path) -> Any:
    """Return a file's JSON. Raises: ValueError for a sealed object that is not what was sealed, OSError."""
    value = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(value, dict) and CHECKSUM in value and value != sealed(value):
        raise ValueError("its checksum differs")
    return value


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with its own checksum, by which ``read_json`` knows it."""
    plain = json.loads(json.dumps({name: item for name, item in value.items() if name != CHECKSUM}))
    return {**plain, CHECKSUM: digest(plain)}


def rewrite_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a sealed object that every call makes anew; say so if the file that it replaces was damaged."""
    if path.is_file():
        try:
            parse_json(path)
        except (OSError, ValueError, RecursionError) as error:
            logger.warning("%s: damaged (%s); written again", path, error)
    write_json(path, sealed(value))


def verified(path: Path, manifest: str, remedy: str) -> Path:
    """Return ``path``, whose bytes are what the manifest beside it says, if there is one that lists the file.

    Raises:
        UserError: they are not, or the manifest cannot be read; run ``remedy``.
    """
    beside = path.parent / manifest
    if not beside.is_file():
        return path
    try:
        expected = parse_json(beside).get("files", {}).get(path.name)
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise UserError(f"{beside}: damaged ({error}); run '{remedy}' again") from error
    if expected is not None and not (path.is_file() and file_digest(path) == expected):
        raise UserError(f"{path}: damaged (checksum differs); run '{remedy}' again")
    return path


def sweep(leftovers: Iterable[Path]) -> None:
    """Remove temporary files that a kill left."""
    for path in list(leftovers):
        path.unlink(missing_ok=True)


def write_parquet(path: Path, frame: pl.DataFrame) -> None:
    with replacing(path) as temporary:
        frame.write_parquet(temporary)


def read_parquet(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({error}); delete it and run the stage again") from error
