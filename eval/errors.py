"""The errors that end a command with one line and an exit code, and what a failed read or write becomes."""

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from safetensors import SafetensorError

_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how safetensors quotes the operating system
_NO_MEMORY = re.compile(r"out of memory|can(no|')t allocate memory|not enough memory|STATUS_ALLOC_FAILED", re.IGNORECASE)


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


class NotFinite(UserError):
    """A loss, a gradient, a weight, an embedding or a score that is NaN or infinite; raised on every process."""

    exit_code = 5
    is_shared = True


class OutOfMemory(UserError):
    """The memory of the device or of the machine does not suffice."""

    exit_code = 6

    @classmethod
    def of(cls, error: BaseException, remedy: str) -> "OutOfMemory":
        """What is told in place of an error for which `is_out_of_memory`, with what to change."""
        found = (str(error).strip() or type(error).__name__).splitlines()[0]
        return cls(f"out of memory ({found:.300}). {remedy}")


class Interrupted(CommandError):
    """Ctrl-C."""

    exit_code = 130
    label = "stopped"
    is_shared = True


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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, torch, CUDA or the operating system raised this error for want of memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None)


@contextmanager
def needing_memory(remedy: str) -> Iterator[None]:
    """Make what is raised in here for want of memory an error that says what to change.

    Raises:
        OutOfMemory: in place of it.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory.of(error, remedy) from error


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
