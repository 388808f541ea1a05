"""The errors a person can mend, each with the exit code of the command that meets it."""


class UserError(Exception):
    """Bad configuration, data or argument; the message says what was expected, what was found, where, and what to do.

    Commands print the message without a traceback and exit with `exit_code`.
    """

    exit_code = 2
