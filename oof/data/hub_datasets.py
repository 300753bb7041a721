"""Datasets of the Hugging Face hub by name: one split as a Parquet file in the local cache, by commit.

``hf:org/name``, and where needed ``hf:org/name/config:split@revision``. The package ``datasets`` and a network are
needed once. From then on the file of that commit is read, which the hub's later changes do not reach. Code of a dataset
is never run: ``datasets`` 4 and later has no such option.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any, NamedTuple

from oof.common.atomic_files import replacing
from oof.common.errors import UserError

logger = logging.getLogger(__name__)

PREFIX = "hf:"
NAME = re.compile(
    r"hf:(?P<repo>[\w.-]+/[\w.-]+)(/(?P<config>[\w.-]+))?(:(?P<split>[\w.-]+))?(@(?P<revision>[\w./-]+))?"
)
TIMEOUT = 10.0  # seconds, for the hub's answer


class HubSplit(NamedTuple):
    """One split of a dataset; "" where the user named none."""

    repo: str
    config: str
    split: str
    revision: str


def hub_file(name: str) -> str:
    """Return the Parquet file of a split, downloaded first unless it is in the cache.

    Raises:
        UserError: the name is malformed, the package or the network is missing, or the hub has no such dataset.
    """
    match = NAME.fullmatch(name)
    if match is None:
        raise UserError(f"{name}: name a dataset of the hub as hf:org/name, or hf:org/name/config:split@revision")
    source = HubSplit(**{key: value or "" for key, value in match.groupdict().items()})
    folder = _cache() / source.repo.replace("/", "--")
    reference = folder / "refs" / (source.revision or "main").replace("/", "--")
    commit = reference.read_text(encoding="utf-8") if reference.is_file() else ""
    path = folder / commit / _file_name(source)
    if not commit or not path.is_file():
        commit, path = _download(name, source, folder, commit)
        with replacing(reference) as temporary:
            temporary.write_text(commit, encoding="utf-8")
        logger.info("%s: commit %s; kept in %s, delete it to read a newer commit", name, commit, folder)
    return str(path)


def _file_name(source: HubSplit) -> str:
    return f"{source.config or 'default'}-{source.split or 'default'}.parquet"


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "arena-distill"


def _download(name: str, source: HubSplit, folder: Path, commit: str) -> tuple[str, Path]:
    """Store a split as Parquet; return its commit and the file. A commit of an earlier download is kept."""
    datasets = _datasets(name)
    page = f"https://huggingface.co/datasets/{source.repo}"
    by_hand = f"download its files (Parquet, CSV or JSONL) from {page}/tree/main and name them instead of {name}"
    try:
        commit = commit or _commit(name, source)
        config = _chosen(name, "config", source.config, datasets.get_dataset_config_names(source.repo, revision=commit))
        splits = datasets.get_dataset_split_names(source.repo, config, revision=commit)
        split = _chosen(name, "split", source.split, splits)
        data = datasets.load_dataset(source.repo, config, split=split, revision=commit)
        path = folder / commit / _file_name(source)
        with replacing(path) as temporary:
            data.to_parquet(str(temporary))
    except UserError:
        raise
    except Exception as error:  # of the network, the hub, a proxy or the dataset's files: each a type of its own
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{name}: cannot be fetched from the hub ({reason}); {by_hand}") from error
    return commit, path


def _datasets(name: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{name}: datasets of the hub need the package datasets: pip install 'datasets>=4' (or make setup "
            "EXTRAS=dev,hub); or download the dataset's files and name these"
        ) from error
    return datasets


def _commit(name: str, source: HubSplit) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return str(HfApi().dataset_info(source.repo, revision=source.revision or "main", timeout=TIMEOUT).sha)
    except RevisionNotFoundError as error:
        raise UserError(f"{name}: the hub has no revision {source.revision!r} of this dataset; leave it out") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{name}: the hub has no dataset {source.repo} that you have access to; check the name, or accept its "
            "conditions on its page and log in with 'hf auth login'"
        ) from error


def _chosen(name: str, what: str, wanted: str, existing: list[str]) -> str:
    """Return the config or split that the user named, else the usual one (default, train), else the only one."""
    usual = [choice for choice in ("default", "train") if choice in existing]
    choices = [wanted] if wanted else usual or (existing if len(existing) == 1 else [])
    if not choices or choices[0] not in existing:
        form = "hf:org/name/CONFIG" if what == "config" else "hf:org/name:SPLIT"
        problem = f"has no {what} {wanted!r}" if wanted else f"has several {what}s"
        raise UserError(f"{name}: this dataset {problem}; write {form} with one of {', '.join(existing)}")
    return choices[0]
