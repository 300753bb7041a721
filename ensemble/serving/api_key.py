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
    # Bytes that are not text become characters that no key may have.
    content = Path(path).read_text(encoding="utf-8", errors="replace") if path else os.environ.get(KEY)
    if content is None:
        return ""
    key = content.strip()
    if not key or not key.isascii() or not key.isprintable():
        raise UserError(f"{path or KEY}: a key is one line of printable ASCII characters; write one, or unset it")
    return key
