"""User errors, and recognition of a full or read-only disk.

Guarantee: the text of a :class:`UserError` is printable, whatever file content it quotes. It names place, value and
remedy in one sentence.
"""

from __future__ import annotations

import errno
import os

# Libraries raise exceptions of their own when a disk is full, with the operating system's message inside.
DISK_MESSAGES = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)]
TORCH_MESSAGES = ("PytorchStreamWriter failed writing", "inline_container.cc")  # torch 2.13 drops the system's message


class UserError(Exception):
    """A problem that the user can solve. The command line prints it, without a traceback, and exits with status 2.

    It may quote file contents, names and messages of libraries, so every character that is not printable (an escape
    sequence, a direction mark) is shown as its code.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if text.isprintable():
            return text
        return "".join(
            c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "backslashreplace").decode() for c in text
        )


def disk_problem(error: BaseException | None) -> str:
    """Return the message about a full or read-only disk in an exception or in one of its causes; "" without one."""
    while error is not None:
        text = str(error)
        if any(message in text for message in TORCH_MESSAGES):
            return "a file cannot be written (is the disk full?)"
        messages = [message for message in DISK_MESSAGES if message in text]
        if messages:
            return messages[0]
        error = error.__cause__ or error.__context__
    return ""
