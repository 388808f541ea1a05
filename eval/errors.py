"""The errors a person can mend, each with the exit code of the command that meets it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Bad configuration, data or argument; the message says what was expected, what was found, where, and what to do.

    Commands print the message without a traceback and exit with `exit_code`.
    """

    exit_code = 2
    is_shared = False
    """True where every process of a job raises it: then the main process alone need print it."""


class WriteError(UserError):
    """A result that could not be written: a full disk, a folder that is a file, no permission."""

    exit_code = 4


@contextmanager
def reading() -> Iterator[None]:
    """What goes wrong with a file in here, goes wrong in reading.

    Raises:
        UserError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"could not read what was asked for: {error}") from error


@contextmanager
def writing(place: str | os.PathLike[str]) -> Iterator[None]:
    """What goes wrong in here, goes wrong in writing `place`.

    Raises:
        WriteError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise WriteError(f"could not write {place}: {error}. Make room there, or give another --output") from error
