"""The errors that end a command with one line and an exit code, and what a failed read or write becomes."""

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

_OS_ERROR = re.compile(r"\(os error (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)
"""How libraries quote the operating system: safetensors and tokenizers, and pyarrow."""
_FULL = frozenset([errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
_FORBIDDEN = frozenset([errno.EACCES, errno.EPERM, errno.EROFS])
_NO_MEMORY = re.compile(r"out of memory|can(no|')t allocate memory|not enough memory|STATUS_ALLOC_FAILED", re.IGNORECASE)


class CommandError(Exception):
    """An error that `eval.command.run_command` prints in one line, without a traceback, and turns into an exit code."""

    exit_code = 1
    label = "error"
    """The first word of the line."""
    is_shared = False
    """True where every process of a job raises it: then only the main process prints it."""


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
    """A signal of `eval.signals` ended the command: 130 for Ctrl-C, else 143."""

    exit_code = 130
    label = "stopped"
    is_shared = True

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class NamedOSError(OSError):
    """An OSError that names the file as the person knows it and, of a full disk, the bytes."""


def as_os_error(
    error: Exception, path: str | os.PathLike[str] | None = None, aside: Path | None = None, num_bytes: int | None = None
) -> OSError | None:
    """The OSError behind an error (safetensors and tokenizers have their own for a full disk); None: there is none.

    Args:
        path: named where the error names no file, or one in `aside`.
        aside: where the content of `path` was being written; of a full disk the error says how much of it was.
        num_bytes: how much was to be written, if that is known.
    """
    if isinstance(error, (NamedOSError, CommandError)):
        return error if isinstance(error, OSError) else None
    found = _OS_ERROR.search(str(error))
    number = getattr(error, "errno", None) or (int(found[1] or found[2]) if found else errno.EIO)
    if not isinstance(error, OSError) and (found is None or number not in _FULL | _FORBIDDEN):
        return None
    named = getattr(error, "filename2", None) or getattr(error, "filename", None)  # of a copy: where it was to go
    is_ours = path is not None and (named is None or (aside is not None and str(named).startswith(str(aside))))
    place = str(path) if is_ours else named
    words = os.strerror(number) if found is not None else getattr(error, "strerror", None) or str(error)
    if number in _FULL and path is not None:
        words += _room(Path(path), aside, num_bytes)
    elif isinstance(error, OSError) and not is_ours and error.errno is not None:
        return error
    return NamedOSError(number, words, *((place,) if place is not None else ()))


def _room(path: Path, aside: Path | None, num_bytes: int | None) -> str:
    """How much of a file or folder was to be and was written when the disk was full, and what is free, as far as is known."""
    known = [] if num_bytes is None else [f"{num_bytes:,} bytes were to be written"]
    with suppress(OSError):
        place = aside if aside is not None else path
        files = list(place.rglob("*")) if place is aside and place.is_dir() else [place]
        if sizes := [file.stat().st_size for file in files if file.is_file()]:
            known.append(f"{sum(sizes):,} bytes of it were written")
    with suppress(OSError):
        known.append(f"{free_bytes(path):,} are free")
    return f" ({', '.join(known)})" if known else ""


def free_bytes(path: Path) -> int:
    """Bytes that are free where a file or folder is, or is to be.

    Raises:
        OSError: it is not known.
    """
    disk = os.statvfs(next(place for place in (path, *Path(os.path.abspath(path)).parents) if place.exists()))
    return disk.f_bavail * disk.f_frsize


def remedy_of(error: OSError) -> str:
    """What a person can do about a failed write."""
    return "Mend its permissions" if error.errno in _FORBIDDEN else "Make room there"


@contextmanager
def naming(path: str | os.PathLike[str], aside: Path | None = None, num_bytes: int | None = None) -> Iterator[None]:
    """Make every failed read or write in here an OSError that names a file; arguments as of `as_os_error`.

    Raises:
        OSError: in place of one without a file name, or of a library's error of the disk.
    """
    try:
        yield
    except Exception as error:
        found = as_os_error(error, path, aside, num_bytes)
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
        WriteError: in place of an OSError, or of a library's error of the disk.
    """
    try:
        with naming(place):
            yield
    except OSError as error:
        raise WriteError(f"could not write {place}: {error}. {remedy_of(error)}, or give another --output") from error


class Faults:
    """What is wrong with several inputs, noted one by one, so that all of it is told at once."""

    def __init__(self) -> None:
        self.found: list[UserError] = []

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note the bad input that is met in here; another error of a command goes on."""
        try:
            yield
        except UserError as error:
            if error.exit_code != UserError.exit_code:
                raise
            self.found.append(error)

    def tell(self) -> None:
        """Refuse the inputs where something was noted.

        Raises:
            UserError: with all that was noted, in its order; of one fault that very error.
        """
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            raise UserError("\n".join(dict.fromkeys(map(str, self.found))))


class SettingError(UserError, ValueError):
    """A setting that cannot be used. The message says what was expected and found, and names no option and no key: whoever asked the
    person for the setting adds that (`named`), by `setting`, the program's own name for it; empty: it was added.
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
        if error.setting not in names:
            raise
        raise SettingError("", f"{names[error.setting]}: {error}") from error.__cause__
