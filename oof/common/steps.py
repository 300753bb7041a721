"""The run folder: content keys, atomic writes, manifests and the lock.

A *step* is a folder of the run with a manifest that is written last: ``{"key", "files": {name: sha256}, …}``.
A step is done when its manifest carries the key that today's inputs and configuration give, and its files
are intact. The key is a digest of everything that the step depends on, so a change re-runs exactly what
depends on it. A file that is not what its manifest says is named and made again; a manifest holds a checksum of
itself.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from oof.common.atomic_files import (
    TEMPORARY,
    parse_json,
    sealed,
    sweep,
    write_json,
)
from oof.common.digests import file_digest
from oof.common.errors import UserError

logger = logging.getLogger(__name__)

LOCK_NAME = ".lock"
LINGERING = 60.0  # seconds that a part of a run waits for a worker of a killed call, which is about to end
UNFINISHED = ".unfinished"  # holds the key of the step that was begun
TRAINED = ".trained.json"  # holds a training's facts, once the adapter is there and until the step is finished


@cache
def _say_damaged(path: Path, why: object) -> None:
    """Name a damaged file, once a process: a step is looked at more than once."""
    logger.warning("%s: damaged (%s)", path, why)


class Step:
    """One folder of a run whose manifest, written last, says with which key its files were made."""

    def __init__(self, folder: Path, key: str, manifest: str = "manifest.json") -> None:
        self.folder, self.key, self.manifest_path = folder, key, folder / manifest

    def manifest(self) -> dict[str, Any] | None:
        """Return the manifest if the step is done with this key and its files are intact, else None.

        Files that are not intact are named in the log.
        """
        manifest = self._own_manifest()
        if manifest is None:
            return None
        damaged = self._damaged(manifest)
        for path in damaged:
            _say_damaged(path, "checksum differs" if path.is_file() else "missing")
        return None if damaged else manifest

    def _own_manifest(self) -> dict[str, Any] | None:
        """Return the manifest if it is whole and has this key; name it if it is not whole."""
        if not self.manifest_path.is_file():
            return None
        try:
            manifest: dict[str, Any] = parse_json(self.manifest_path)
            manifest["files"].items()
            return manifest if manifest["key"] == self.key else None
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            _say_damaged(self.manifest_path, error)
            return None

    def _damaged(self, manifest: dict[str, Any]) -> list[Path]:
        paths = {self.folder / name: sha for name, sha in manifest["files"].items()}
        return [path for path, sha in paths.items() if not (path.is_file() and file_digest(path) == sha)]

    def stale_because(self, depends: Mapping[str, str]) -> str:
        """Return what changed since the step was made ("" if it never was), from what each part digests to now."""
        try:
            before = parse_json(self.manifest_path)["depends"]
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            return ""
        changed = [name for name, now in depends.items() if before.get(name) != now]
        return f"changed: {', '.join(changed)}" if changed else "its files are damaged"

    @property
    def done(self) -> bool:
        return self.manifest() is not None

    def begin(self) -> None:
        """Start the step: keep what an interrupted attempt with the same key left, clear anything else.

        Of a finished step that was damaged, what is intact stays: the steps inside it, mostly.
        """
        mark = self.folder / UNFINISHED
        if mark.is_file() and mark.read_bytes() == self.key.encode():
            sweep(self.folder.rglob(TEMPORARY))
            return
        manifest = self._own_manifest()
        if manifest is None:
            self.clear()
        else:
            damaged = self._damaged(manifest)
            self.manifest_path.unlink()
            for path in damaged:  # before the mark, which says that whatever is here can be gone on with
                path.unlink(missing_ok=True)
        mark.write_text(self.key, encoding="utf-8")

    def clear(self) -> None:
        """Empty the folder, the manifest first, so that no half-deleted step looks done."""
        self.manifest_path.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)

    def finish(self, facts: Mapping[str, object] | None = None, files: Sequence[str] | None = None) -> None:
        """Write the manifest over ``files`` (names in the folder; by default every file in it)."""
        for mark in (UNFINISHED, TRAINED):
            (self.folder / mark).unlink(missing_ok=True)
        paths = [path for path in self.folder.rglob("*") if path.is_file() and path != self.manifest_path]
        made = sorted(str(path.relative_to(self.folder)) for path in paths if not path.name.startswith("."))  # no locks
        names = made if files is None else files
        sums = {name: file_digest(self.folder / name) for name in names}
        write_json(self.manifest_path, sealed({**(facts or {}), "key": self.key, "files": sums}))


def _leftovers(run: Path) -> list[Path]:
    """Return the run's temporary files, except where a process may write that does not hold the run's lock."""
    found = [path.relative_to(run) for path in run.rglob(TEMPORARY)]
    others = [
        path
        for path in found
        if path.parts[0] in ("report", "pretrain") or (path.parts[0] == "oof" and len(path.parts) > 3)
    ]
    return [run / path for path in found if path not in others]


@contextmanager
def locked(run: Path, name: str = LOCK_NAME, wait: float = 0.0) -> Iterator[None]:
    """Hold the run (or, by another name of the lock, one part of it) for writing; a second process is refused.

    The holder is named. The operating system drops the lock with its process, so a killed holder leaves none behind.

    Raises:
        UserError: the run is held by another process (for longer than ``wait`` seconds), or cannot be written.
    """
    holder = run / f"{name}.holder"
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = FileLock(run / name, timeout=wait)
        lock.acquire()
    except Timeout as error:
        who = holder.read_text(encoding="utf-8").strip() if holder.is_file() else "another process"
        raise UserError(f"{run}: the run is in use by {who}; wait for it, or choose another RUN") from error
    except OSError as error:
        raise UserError(
            f"{run}: cannot write the run folder ({error.strerror or error}); choose another RUN"
        ) from error
    try:
        holder.write_text(f"process {os.getpid()} on {os.uname().nodename}\n", encoding="utf-8")
        if name == LOCK_NAME:
            sweep(_leftovers(run))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
