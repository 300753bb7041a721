"""The one exception a user is meant to read: a sentence with the place, the value and the remedy."""

from __future__ import annotations

import errno
import os

# What libraries make of a disk's refusal is an exception of their own, with the system's words in it.
DISK = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)]
TORCH_WRITER = ("PytorchStreamWriter failed writing", "inline_container.cc")  # torch 2.13 says no more than this


class UserError(Exception):
    """Something the user can mend. ``__main__`` prints it and exits with status 2; never a traceback.

    Files, names and libraries' messages are quoted in it, so whatever is not printable (an escape sequence, a
    direction mark) is shown as its number.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if text.isprintable():
            return text
        return "".join(
            c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "backslashreplace").decode() for c in text
        )


def disk_problem(error: BaseException | None) -> str:
    """Return what an exception, or one behind it, says of a disk that is full or cannot be written; "" if nothing."""
    while error is not None:
        text = str(error)
        if any(words in text for words in TORCH_WRITER):
            return "a file cannot be written (is the disk full?)"
        found = [words for words in DISK if words in text]
        if found:
            return found[0]
        error = error.__cause__ or error.__context__
    return ""
