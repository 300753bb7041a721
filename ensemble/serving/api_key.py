"""Key of an HTTP service, out of a file or the environment."""

from __future__ import annotations

import os
from pathlib import Path

from oof.common.errors import UserError

KEY = "ARENA_DISTILL_API_KEY"


def read_key(path: str | None) -> str:
    """Return the key that clients must send: the content of a file, or else of an environment variable; "" = none.

    Raises:
        UserError: the file or the variable is empty, or holds something that no header can carry.
    """
    place, key = (path, Path(path).read_text(encoding="utf-8")) if path else (KEY, os.environ.get(KEY))
    if key is None:
        return ""
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable():
        raise UserError(f"{place}: a key is one line of printable ASCII characters; write one, or unset it")
    return key
