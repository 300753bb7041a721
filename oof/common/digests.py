"""Digests of values, files and base checkpoints, from which the content keys of steps are made."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path

import numpy as np

WHOLE_FILE = 64 << 20  # bytes up to which a checkpoint file is hashed whole


def digest(*parts: object) -> str:
    """Return the sha256 of ``parts``: dataclasses, arrays, frames' fingerprints, anything JSON holds."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            sha.update(f"{part.dtype}{part.shape}".encode() + np.ascontiguousarray(part).tobytes())
        else:
            plain = asdict(part) if is_dataclass(part) and not isinstance(part, type) else part
            sha.update(json.dumps(plain, sort_keys=True, default=str).encode())
        sha.update(b"\0")
    return sha.hexdigest()


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def checkpoint_digest(checkpoint: str) -> str:
    """Fingerprint of a base checkpoint: a local folder's files, or the name of a hub model.

    Weight files are gigabytes, and one run asks for each checkpoint many times: of a file over 64 MB the size,
    the first and the last megabyte count (a safetensors file begins with the names and shapes of its tensors).
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
