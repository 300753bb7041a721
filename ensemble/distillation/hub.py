"""Students on the Hugging Face hub: one upload as a single commit, and the local copy of a commit.

Only weights as safetensors, JSON, the chat template and the card go up or come down: nothing that may hold code.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from oof.common.errors import UserError

CARD = "README.md"
FILES = ("*.safetensors", "*.json", "*.jinja", CARD)
NAME = re.compile(r"[\w.-]+/[\w.-]+")
PLACEHOLDER = '"this folder"'  # of the student's name in its card
LOG_IN = "log in with 'hf auth login', or set HF_TOKEN"


class Pushed(NamedTuple):
    """A student on the hub."""

    name: str
    commit: str
    url: str


def student_folder(name: str | Path, revision: str | None = None) -> Path:
    """Return the folder of a student: ``name`` itself, or the local copy of a student of the hub, downloaded first.

    Args:
        name: a folder, or ``user/name`` on the hub where there is no such folder.
        revision: branch, tag or commit on the hub; None = its main branch.

    Raises:
        UserError: the hub has no such student, does not answer, or is switched off with no copy here.
    """
    folder = Path(name)
    if folder.exists() or not NAME.fullmatch(str(name)):
        if revision is not None:
            raise UserError(f"revision={revision}: {name} is a folder; only students of the hub have revisions")
        return folder
    place = f"{name}{f' at revision {revision}' if revision else ''}"
    try:
        return Path(snapshot_download(str(name), revision=revision, allow_patterns=list(FILES)))
    except RevisionNotFoundError as error:
        raise UserError(f"{name}: the hub has no revision {revision!r} of this student; leave it out") from error
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise UserError(
            f"{name}: no such folder, and the hub has no such student for you; check the name, or {LOG_IN}"
        ) from error
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{place}: no such folder, no copy from the hub here, and the hub cannot be reached (HF_HUB_OFFLINE=1 "
            "switches it off); download it once with a network"
        ) from error
    except (httpx2.HTTPError, HFValidationError, OSError) as error:
        raise UserError(f"{place}: cannot be fetched from the hub ({_reason(error)})") from error


def push_student(folder: Path, name: str, public: bool) -> Pushed:
    """Upload a student as one commit, into a repository that is made where there is none.

    Args:
        folder: an exported student.
        name: ``user/name`` on the hub; the card's example opens the student by it.
        public: whether a new repository can be seen by others; one that exists stays as it is.

    Raises:
        UserError: the folder is no student, the name is not valid, or the hub refuses or cannot be reached.
    """
    if not (folder / CARD).is_file():
        raise UserError(f"{folder / CARD}: missing; give a run with a student ('make distill')")
    if not NAME.fullmatch(name):
        raise UserError(f"{name}: name it with its owner, as user/name")
    paths = sorted({path for pattern in FILES for path in folder.glob(pattern)})
    card = (folder / CARD).read_text(encoding="utf-8").replace(PLACEHOLDER, f'"{name}"')
    operations = [CommitOperationAdd(path.name, card.encode() if path.name == CARD else str(path)) for path in paths]
    api = HfApi()
    try:
        api.create_repo(name, private=not public, exist_ok=True)
        info = api.create_commit(name, operations, commit_message="Upload a preference student")
    except (httpx2.HTTPError, HFValidationError, OSError) as error:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        remedy = f"; {LOG_IN}, with a token that may write" if status in (401, 403, 404) else ""
        raise UserError(f"{name}: the hub does not take it ({_reason(error)}){remedy}") from error
    return Pushed(name, info.oid, info.commit_url)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
