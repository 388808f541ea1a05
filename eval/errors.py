"""The errors that end a command with one line and an exit code, and what a failed read or write becomes."""

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from safetensors import SafetensorError

_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how safetensors quotes the operating system


class CommandError(Exception):
    """An error that `eval.command.run_command` prints in one line, without a traceback, and turns into an exit code."""

    exit_code = 1
    label = "error"
    """The first word of the line."""
    is_shared = False
    """True where every process of a job raises it: then only the main process prints it."""
    shows_traceback = False


class UserError(CommandError):
    """Bad configuration, data or argument; the message says what was expected, what was found, where, and what to do."""

    exit_code = 2


class WriteError(UserError):
    """A result that could not be written: a full disk, a folder that is a file, no permission."""

    exit_code = 4


class Interrupted(CommandError):
    """A signal of `eval.signals` ended the command: 130 for Ctrl-C, else 143."""

    exit_code = 130
    label = "stopped"
    is_shared = True

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def as_os_error(error: OSError | SafetensorError, path: str | os.PathLike[str] | None = None) -> OSError | None:
    """The OSError behind an error (safetensors has its own for a full disk), naming `path` if it names no file; None: there is none."""
    named = () if path is None else (str(path),)
    if isinstance(error, OSError):
        return error if error.filename is not None else OSError(error.errno or errno.EIO, error.strerror or str(error), *named)
    found = _OS_ERROR.search(str(error))
    return None if found is None else OSError(int(found[1]), os.strerror(int(found[1])), *named)


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Make every failed read or write in here an OSError that names a file: `path` where it names none.

    Raises:
        OSError: in place of one without a file name, or of a SafetensorError of the disk.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        found = as_os_error(error, path)
        if found is None or found is error:
            raise
        raise found from error


@contextmanager
def reading() -> Iterator[None]:
    """Make every OSError in here an error of reading.

    Raises:
        UserError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"could not read what was asked for: {error}") from error


@contextmanager
def writing(place: str | os.PathLike[str]) -> Iterator[None]:
    """Make every OSError in here an error of writing `place`.

    Raises:
        WriteError: in place of an OSError, or of a SafetensorError of the disk.
    """
    try:
        with naming(place):
            yield
    except OSError as error:
        raise WriteError(f"could not write {place}: {error}. Make room there, or give another --output") from error


class SettingError(UserError, ValueError):
    """A setting that cannot be used. The message says what was expected and found, and names no option and no key: whoever asked the
    person for the setting adds that (`named`), by `setting`, the program's own name for it.
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
        name, message = names.get(error.setting, error.setting), str(error)
        raise SettingError(error.setting, message if message.startswith(f"{name}: ") else f"{name}: {message}") from None
