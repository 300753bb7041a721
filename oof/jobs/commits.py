"""Commits of hub checkpoints: resolved once per run, recorded in ``RUN/checkpoints.json``, used by every later job.

A branch such as ``main`` moves. So the first job of a checkpoint resolves its ``revision`` to a commit, and all jobs of
the run load that commit, whatever the branch has become since. It is part of their content keys: to train on a newer
commit, set ``revision``, or delete the record. Local folders have no commits.

Jobs that were finished before this record existed have no commit in their keys and stay valid. Their checkpoint gets an
empty entry, and is read as before. Imports no torch.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

from oof.common.atomic_files import read_json, write_json
from oof.common.errors import UserError
from oof.common.steps import locked
from oof.config import Config, Member

logger = logging.getLogger(__name__)

RECORD = "checkpoints.json"  # {"name@revision": commit; "" = used before commits were recorded}
COMMIT = re.compile(r"[0-9a-f]{40}")
WAIT = 60.0  # seconds, for another process that resolves
TIMEOUT = 10.0  # seconds, for the hub's answer; then the local cache is read


def with_recorded_commits(config: Config) -> Config:
    """Return the configuration with each hub checkpoint's ``revision`` replaced by the run's recorded commit."""
    commits = _recorded(Path(config.run))

    def pinned(member: Member) -> Member:
        commit = commits.get(_entry(member), "")
        return replace(member, revision=commit) if commit else member

    members = {name: pinned(member) for name, member in config.members.items()}
    return replace(config, members=members, distill=replace(config.distill, student=pinned(config.distill.student)))


def needs_commit(run: Path, member: Member) -> bool:
    """Return whether the run has yet to record a commit of the member's checkpoint; local folders have none.

    Raises:
        UserError: a local folder is given with a ``revision``.
    """
    if not Path(member.checkpoint).is_dir():
        return _entry(member) not in _recorded(run)
    if member.revision:
        raise UserError(
            f"revision={member.revision}: {member.checkpoint} is a local folder, which has no revisions; leave it out"
        )
    return False


def record_commit(run: Path, member: Member, begun: bool) -> None:
    """Record the commit of a member's hub checkpoint; one that another process has recorded stays.

    Args:
        run: folder of the run.
        member: ``checkpoint`` and ``revision`` are read.
        begun: the run has a finished or interrupted job of this checkpoint without a commit in its key.

    Raises:
        UserError: neither the hub nor the local cache has the revision.
    """
    if begun:
        commit = ""
        logger.warning(
            "%s: earlier jobs of this run did not record its commit; further ones read its newest commit",
            member.checkpoint,
        )
    else:
        commit = resolve_commit(member.checkpoint, member.revision)
    with locked(run, f".{RECORD}.lock", WAIT):
        recorded = _recorded(run)
        if _entry(member) not in recorded:  # another process may have been first
            write_json(run / RECORD, recorded | {_entry(member): commit})


def resolve_commit(checkpoint: str, revision: str) -> str:
    """Return the commit (40 hexadecimal digits) of a hub model's branch, tag or commit; "" = main.

    The hub is asked first. Where it cannot be reached, the local cache's record of the last download counts.

    Raises:
        UserError: the hub has no such model or revision, or it cannot be reached and the cache has neither.
    """
    if COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    revision = revision or "main"
    try:
        return str(HfApi().model_info(checkpoint, revision=revision, timeout=TIMEOUT).sha)
    except RevisionNotFoundError as error:
        raise UserError(f"checkpoint {checkpoint!r}: the hub has no revision {revision!r} of it") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"checkpoint {checkpoint!r} cannot be opened: no such folder here, and no model of that name on the hub "
            "that you have access to"
        ) from error
    except Exception as error:  # no network, offline mode, a proxy's answer: each a type of its own
        commit = _cached_commit(checkpoint, revision)
        if not commit:
            raise UserError(
                f"checkpoint {checkpoint!r} cannot be opened: no such folder here, the hub does not answer, and its "
                f"local cache has no revision {revision!r} of it"
            ) from error
        return commit


def _cached_commit(checkpoint: str, revision: str) -> str:
    """Return the commit that a branch or tag had at the last download; "" if there was none."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=checkpoint, repo_type="model")
    reference = Path(constants.HF_HUB_CACHE) / folder / "refs" / revision
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else ""
    return commit if COMMIT.fullmatch(commit) else ""


def _entry(member: Member) -> str:
    return f"{member.checkpoint}@{member.revision or 'main'}"


def _recorded(run: Path) -> dict[str, str]:
    path = run / RECORD
    if not path.is_file():
        return {}
    recorded = read_json(path)
    if not isinstance(recorded, dict) or not all(isinstance(commit, str) for commit in recorded.values()):
        raise UserError(f"{path}: not a record of commits; restore it, or delete it to resolve the revisions anew")
    return recorded
