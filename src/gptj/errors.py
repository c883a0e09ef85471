"""The one error a user's mistake raises: a sentence that names the thing and the remedy."""


class UserError(ValueError):
    """What the user gave cannot be used; the message says what, why, and what to do instead.

    The command line prints it as one line and exits with status 2; `--debug` shows the traceback.
    """
