"""The errors a person can mend, each with the exit code of the command that meets it."""

import os
from collections.abc import Iterator, Mapping
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


class SettingError(UserError, ValueError):
    """A setting that cannot be used. The message says what was expected and found, and names no option and no key: whoever asked the
    person for the setting adds that (`named`).

    Attributes:
        setting: as the program calls it.
    """

    def __init__(self, setting: str, message: str) -> None:
        super().__init__(message)
        self.setting = setting


@contextmanager
def named(names: Mapping[str, str]) -> Iterator[None]:
    """Put the option or the configuration key that a person knows a setting by in front of what is wrong with it.

    Raises:
        SettingError: in place of another.
    """
    try:
        yield
    except SettingError as error:
        raise SettingError(error.setting, f"{names.get(error.setting, error.setting)}: {error}") from None
