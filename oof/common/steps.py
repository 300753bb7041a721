"""Steps and locks of a run folder: skip finished work, rerun what a change affects.

A *step* is a folder of the run with a manifest that is written last: ``{"key", "files": {name: sha256}, …}``. The key
is a digest of everything that the step depends on. Guarantee: a step counts as finished only if its manifest has the
key of the current inputs and configuration, and every file has the digest that the manifest lists. So rerunning skips
finished work, a change reruns exactly the steps that depend on it, and damaged files are named and made again. Only one
process at a time writes a run.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from oof.common.atomic_files import TEMPORARY, parse_json, sealed, sweep, write_json
from oof.common.digests import file_digest
from oof.common.errors import UserError

logger = logging.getLogger(__name__)

LOCK_NAME = ".lock"
ORPHAN_WAIT = 60.0  # seconds to wait for a lock that a worker of a killed command still holds: it is about to end
UNFINISHED = ".unfinished"  # file with the key of a step that was begun
RECORDS = ("metrics.jsonl", "tensorboard")  # logs of a training beside its results; damage to them repeats no training
TRAINED = ".trained.json"  # file with the facts of a finished training, until the step is finished


@cache
def _warn_damaged(path: Path, problem: object) -> None:
    """Log the name of a damaged file, once per process: a step is checked more than once."""
    logger.warning("%s: damaged (%s)", path, problem)


class Step:
    """A folder of a run whose manifest is written last.

    Args:
        folder: of the step's files.
        key: digest of everything that the step depends on now.
        manifest: name of the manifest in the folder.
    """

    def __init__(self, folder: Path, key: str, manifest: str = "manifest.json") -> None:
        self.folder, self.key, self.manifest_path = folder, key, folder / manifest

    def manifest(self) -> dict[str, Any] | None:
        """Return the manifest if the step is finished with this key and its files are intact, else None.

        Damaged files are named in the log.
        """
        manifest = self._own_manifest()
        if manifest is None:
            return None
        damaged = self._damaged(manifest)
        for path in damaged:
            _warn_damaged(path, "checksum differs" if path.is_file() else "missing")
        return None if damaged else manifest

    def _own_manifest(self) -> dict[str, Any] | None:
        """Return the manifest if it is intact and has this key; log its name if it is damaged."""
        if not self.manifest_path.is_file():
            return None
        try:
            manifest: dict[str, Any] = parse_json(self.manifest_path)
            manifest["files"].items()
            return manifest if manifest["key"] == self.key else None
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            _warn_damaged(self.manifest_path, error)
            return None

    def _damaged(self, manifest: dict[str, Any]) -> list[Path]:
        paths = {self.folder / name: sha for name, sha in manifest["files"].items()}
        return [path for path, sha in paths.items() if not (path.is_file() and file_digest(path) == sha)]

    def earlier(self) -> dict[str, Any] | None:
        """Return the manifest of work with another key in the folder, which :meth:`begin` would remove; else None.

        It is empty if that work is not finished.
        """
        unfinished = self._unfinished_key()
        if unfinished is not None:
            return None if unfinished == self.key.encode() else {}
        try:
            manifest: dict[str, Any] = parse_json(self.manifest_path)
            return None if manifest["key"] == self.key else manifest
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            return None

    def stale_because(self, depends: Mapping[str, str]) -> str:
        """Return why the step is out of date, for a message; "" if it was never finished.

        Args:
            depends: setting -> current digest of its value; the manifest has the earlier ones.
        """
        try:
            before = parse_json(self.manifest_path)["depends"]
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            return ""
        changed = sorted(name for name in {*depends, *before} if before.get(name) != depends.get(name))
        return f"changed: {', '.join(changed)}" if changed else "its files are damaged"

    @property
    def done(self) -> bool:
        """Whether the step is finished with this key and its files are intact."""
        return self.manifest() is not None

    @property
    def begun(self) -> bool:
        """Whether the step is finished with this key, or was interrupted with it."""
        return self.done or self._unfinished_key() == self.key.encode()

    def _unfinished_key(self) -> bytes | None:
        """Return the key of the step that was begun in the folder and not finished; None if there is none."""
        mark = self.folder / UNFINISHED
        return mark.read_bytes() if mark.is_file() else None

    def begin(self) -> None:
        """Start the step: keep the files of an interrupted attempt with the same key, remove all others.

        Of a finished step with damaged files, the intact files stay: mostly the steps inside its folder.
        """
        if self._unfinished_key() == self.key.encode():
            sweep(self.folder.rglob(TEMPORARY))
            return
        manifest = self._own_manifest()
        if manifest is None:
            self.clear()
        else:
            damaged = self._damaged(manifest)
            self.manifest_path.unlink()
            for path in damaged:  # before the mark is written, which declares all files in the folder usable
                path.unlink(missing_ok=True)
        (self.folder / UNFINISHED).write_text(self.key, encoding="utf-8")

    def clear(self) -> None:
        """Empty the folder, the manifest first, so that a half-deleted step never counts as finished."""
        self.manifest_path.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)

    def finish(self, facts: Mapping[str, object] | None = None, files: Sequence[str] | None = None) -> None:
        """Write the manifest, which declares the step finished.

        Args:
            facts: further entries of the manifest.
            files: names of the step's files in the folder; by default all but hidden ones and logs of a training.
        """
        for mark in (UNFINISHED, TRAINED):
            (self.folder / mark).unlink(missing_ok=True)
        paths = [path for path in self.folder.rglob("*") if path.is_file() and path != self.manifest_path]
        inside = [path.relative_to(self.folder) for path in paths if not path.name.startswith(".")]
        names = sorted(str(path) for path in inside if not {*path.parts} & {*RECORDS}) if files is None else files
        sums = {name: file_digest(self.folder / name) for name in names}
        write_json(self.manifest_path, sealed({**(facts or {}), "key": self.key, "files": sums}))

    @contextmanager
    def amended(self, names: Sequence[str]) -> Iterator[None]:
        """Let the block add or change files of a finished step; all other entries of its manifest stay.

        The manifest does not have these files while the block runs. So after a kill the step is still finished, and
        what its manifest lacks is to be made again.
        """
        manifest = parse_json(self.manifest_path)
        kept = {name: digest for name, digest in manifest["files"].items() if name not in names}
        write_json(self.manifest_path, sealed(manifest | {"files": kept}))
        yield
        files = kept | {name: file_digest(self.folder / name) for name in names}
        write_json(self.manifest_path, sealed(manifest | {"files": files}))


def _leftovers(run: Path) -> list[Path]:
    """Return the run's temporary files, except in folders that are written without the lock of the run."""

    def in_use(parts: tuple[str, ...]) -> bool:
        return parts[0] in ("report", "pretrain") or (parts[0] == "oof" and len(parts) > 3)

    return [path for path in run.rglob(TEMPORARY) if not in_use(path.relative_to(run).parts)]


@contextmanager
def locked(run: Path, name: str = LOCK_NAME, wait: float = 0.0) -> Iterator[None]:
    """Lock a run for writing; a second process is refused, with the name of the first.

    The operating system releases the lock when its process ends, so a killed process leaves no lock behind.

    Args:
        run: folder of the run.
        name: of the lock file; another name locks one part of the run.
        wait: seconds to wait for another process before giving up.

    Raises:
        UserError: another process holds the lock, or the folder cannot be written.
    """
    holder = run / f"{name}.holder"
    missing = [folder for folder in (run, *run.parents) if not folder.exists()]
    new_lock = not (run / name).exists()
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
    except UserError:
        holder.unlink(missing_ok=True)
        if new_lock:  # a refused command leaves nothing behind; a process that waits for the lock makes a new file
            (run / name).unlink(missing_ok=True)
        for folder in missing:
            with suppress(OSError):  # it is not empty
                folder.rmdir()
        raise
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
