"""The one exception a user is meant to read: a sentence with the place, the value and the remedy."""


class UserError(Exception):
    """Something the user can mend. ``__main__`` prints it and exits with status 2; never a traceback."""
