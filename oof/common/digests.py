"""Digests of values, files and base checkpoints: the material of content keys.

Guarantee: equal values have equal digests in every process and on every machine. Arrays that differ in dtype, shape or
content, and plain values whose JSON differs, have different digests.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path

import numpy as np

WHOLE_FILE = 64 << 20  # bytes: larger files of a checkpoint are not hashed whole


def digest(*values: object) -> str:
    """Return the sha256 (hexadecimal) of dataclasses, arrays and plain JSON values, in their order."""
    sha = hashlib.sha256()
    for value in values:
        if isinstance(value, np.ndarray):
            sha.update(f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
        else:
            plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
            sha.update(json.dumps(plain, sort_keys=True, default=str).encode())
        sha.update(b"\0")
    return sha.hexdigest()


def digest_of_lists(*lists: Iterable[list[object]]) -> str:
    """Return ``digest(*lists)`` of lists that come in parts, so that no long list is in memory as a whole."""
    sha = hashlib.sha256()
    for parts in lists:
        sha.update(b"[")
        before = False
        for part in (part for part in parts if part):
            sha.update((", " * before + json.dumps(part, sort_keys=True, default=str)[1:-1]).encode())
            before = True
        sha.update(b"]\0")
    return sha.hexdigest()


def content_hash(text: str) -> str:
    """Return the source of a Content-Security-Policy that lets a browser use this script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def file_digest(path: Path) -> str:
    """Return the sha256 (hexadecimal) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def checkpoint_digest(checkpoint: str) -> str:
    """Return the digest of a base checkpoint: the files of a local folder, or the name of a model on the hub.

    Weight files have gigabytes. So of a file over 64 MB only its size, its first and its last megabyte are hashed (a
    safetensors file begins with the names and shapes of its tensors), and each checkpoint once per process.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        return digest(checkpoint)
    return digest({path.name: _fingerprint(path) for path in sorted(folder.iterdir()) if path.is_file()})


def _fingerprint(path: Path) -> str:
    size = path.stat().st_size
    if size <= WHOLE_FILE:
        return file_digest(path)
    with path.open("rb") as file:
        head = file.read(1 << 20)
        file.seek(-(1 << 20), os.SEEK_END)
        return hashlib.sha256(head + file.read() + str(size).encode()).hexdigest()
