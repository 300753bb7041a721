"""The one exception a user is meant to read: a sentence with the place, the value and the remedy."""


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
