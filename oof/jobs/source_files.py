"""Data files that a run was made from: ``RUN/files.json`` has their digests, and every later command compares them.

A run that was made from files never reads others unasked: a file that is missing, has other content or is not the one
that the run was made from is an error before anything is written, also in stages that would not read it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from oof.common.atomic_files import parse_json, sealed, write_json
from oof.common.digests import file_digest
from oof.common.errors import UserError
from oof.config import Config
from oof.config.stored import FILES, store_settings, stored_settings
from oof.data.readers import expand

logger = logging.getLogger(__name__)

SOURCES = ("data.train", "data.extra", "data.unlabelled", "data.votes", "pretrain.data")
MOVABLE = SOURCES[:4]  # their paths may change, if the content does not
Files = list[dict[str, Any]]  # of one setting: path, and where known bytes and sha256


class Difference(NamedTuple):
    """How the files of a setting differ from those that the run was made from; ``missing``: one of these is gone."""

    text: str
    missing: bool = False


def patterns_of(config: Config) -> dict[str, list[str]]:
    """Return the paths and globs of each setting that names source files."""
    data = config.data
    patterns = (data.train, data.extra, data.unlabelled, data.votes, config.pretrain.data)
    return dict(zip(SOURCES, patterns, strict=True))


def digested_files(patterns: Sequence[str]) -> list[tuple[str, str]]:
    """Return path and sha256 of the files behind paths and globs, for a content key.

    Raises:
        UserError: as :func:`oof.data.readers.expand`.
    """
    # A path as pathlib writes it: "./a.csv" and "a.csv" are one source, as in the keys of existing runs.
    return [(str(Path(path)), _digest(path, *_version(path))) for path in expand(patterns)]


def _version(path: str) -> tuple[int, int]:
    status = Path(path).stat()
    return status.st_size, status.st_mtime_ns


@cache
def _digest(path: str, size: int, modified: int) -> str:
    """Return a file's digest; a command reads each file's bytes once, unless it changes meanwhile."""
    return file_digest(Path(path))


def record_files(config: Config) -> None:
    """Write the working folder and the run's source files with their digests, unless they are recorded."""
    files = {
        name: [{"path": path, "bytes": Path(path).stat().st_size, "sha256": sha} for path, sha in digested_files(paths)]
        for name, paths in patterns_of(config).items()
    }
    record = sealed({"folder": str(Path.cwd()), "files": files})
    if _read(Path(config.run)) != record:
        write_json(Path(config.run) / FILES, record)


def _read(run: Path) -> dict[str, Any]:
    path = run / FILES
    if not path.is_file():
        return {}
    try:
        record: dict[str, Any] = parse_json(path)
        record["files"].items()
        return record
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s: damaged (%s); written again", path, error)
        return {}


def remember(config: Config, names: Sequence[str] = ()) -> None:
    """Store a command's settings (:func:`oof.config.stored.store_settings`) and record its source files.

    Call it after :func:`check_files` and all other checks, before the first result is written.

    Args:
        config: of the command.
        names: settings that the command's stage reads first; () = all. Files that moved are stored in any case.
    """
    store_settings(config, (*names, *MOVABLE) if names else ())
    with suppress(UserError):  # a stage that does not read a missing file was told to go on
        record_files(config)


def check_files(config: Config, reads: bool, redo: bool = False) -> None:
    """Compare the source files of a command with those that the run was made from.

    Files of the same content under other names are the same files. A run that was only begun has none to compare.

    Args:
        config: of the command.
        reads: whether the command would make the run again from these files.
        redo: go on with other files; a command that reads none of them also goes on without a missing one.

    Raises:
        UserError: names the run, the file, the difference and what to do.
    """
    if reads:
        expand(config.data.test)
    run = Path(config.run)
    recorded = _read(run).get("files") or _patterns_before(run)
    if recorded is None:
        for patterns in patterns_of(config).values():
            expand(patterns)
        return
    for name, patterns in patterns_of(config).items():
        before = recorded.get(name, [])
        difference = _difference(name, before, patterns, reads)
        if difference and not (redo and (reads or difference.missing)):
            first = "make stack" if config.stack.logits else "make oof"
            raise UserError(f"{run}: {difference.text}; {_remedy(run, name, reads, difference.missing, first)}")


def _patterns_before(run: Path) -> dict[str, Files] | None:
    """Return the files that the settings of a run without a record name; None if it has no battles or no settings."""
    if not (run / "battles.json").is_file():
        return None
    stored = None
    with suppress(UserError):  # damaged settings; the command has a configuration of its own
        stored = stored_settings(run)
    if stored is None:
        return None
    return {
        name: [{"path": path} for path in (stored.get(name.split(".")[0]) or {}).get(name.split(".")[1]) or []]
        for name in SOURCES
    }


def _difference(name: str, before: Files, patterns: Sequence[str], reads: bool) -> Difference | None:
    if not patterns:
        # A run without pretraining is another training, not other battles.
        if not before or name == "pretrain.data":
            return None
        return Difference(f"{_made_from(name, before)}, and this call names no such file")
    for pattern in patterns:
        try:
            expand([pattern])
        except UserError as error:
            if pattern in [file["path"] for file in before]:
                return Difference(f"it was made from {pattern} ({name}), which is missing", missing=True)
            return Difference(f"{name}: {error}")
    if not before:
        if name == "data.train":
            return Difference(f"it was made from synthetic battles, not from {_listed(patterns)} ({name})")
        # Whether more battles would replace finished training is checked where they are read.
        return None if reads else Difference(f"it was made without {name}={_listed(patterns)}")
    if any("sha256" not in file for file in before):  # a run of an older version
        same = [Path(str(file["path"])) for file in before] == [Path(pattern) for pattern in patterns]
        return None if same else Difference(f"{_made_from(name, before)}, not from {_listed(patterns)}")
    return _other_content(name, before, digested_files(patterns))


def _other_content(name: str, before: Files, now: Sequence[tuple[str, str]]) -> Difference | None:
    """Return the difference between recorded files and (path, sha256) of those that are there now."""
    if sorted(sha for _, sha in now) == sorted(str(file["sha256"]) for file in before):
        return None
    by_path = {str(Path(file["path"])): file for file in before}
    for path, sha in now:
        then = by_path.get(path)
        if then and then["sha256"] != sha:
            return Difference(
                f"{path} ({name}) has changed since the run was made from it: {then['bytes']:,} bytes then, "
                f"{Path(path).stat().st_size:,} now; sha256 {then['sha256'][:8]}… then, {sha[:8]}… now"
            )
    return Difference(
        f"{_made_from(name, before)}, not from {_listed([path for path, _ in now])}: their content differs"
    )


def _made_from(name: str, before: Files) -> str:
    return f"it was made from {_listed([str(file['path']) for file in before])} ({name})"


def _listed(paths: Sequence[str]) -> str:
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more files" if len(paths) > 3 else "")


def _remedy(run: Path, name: str, reads: bool, missing: bool, first: str) -> str:
    """Return what to do; ``first`` is the command that begins such a run."""
    variable = "DATA" if name == "data.train" else name
    if missing:
        back = f"put it back, or name its copy ({variable}=PATH)"
        return back if reads else f"{back}; REDO=1 goes on without it"
    same = f"leave out {variable} and CONFIG to go on with this run (RUN={run})"
    if reads:
        return f"{same}, choose another RUN for other data, or make this run again from it: REDO=1"
    return f"{same}, or choose another RUN for other data and begin with '{first}'"
