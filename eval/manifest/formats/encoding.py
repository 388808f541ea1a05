"""The encoding of a text file: UTF-8, or what its byte order mark says. Another one is named where it shows, with the remedy."""

import io
from pathlib import Path

from eval.files import TABLE_BYTES, encoding_of, open_plain

_SHOWN = 40


def open_text(path: Path, newline: str | None = "") -> io.TextIOWrapper:
    """Open a text file by its byte order mark; bytes that are not UTF-8 become surrogates, which `not_utf8` names.

    Raises:
        FileError, OSError: as `eval.files.open_plain`. Reading UTF-16 and UTF-32 that is cut raises a UnicodeDecodeError.
    """
    file = open_plain(path, TABLE_BYTES)
    encoding = encoding_of(file.peek(4))
    return io.TextIOWrapper(file, encoding, "surrogateescape" if encoding.startswith("utf-8") else "surrogatepass", newline)


def not_utf8(text: str) -> str:
    """What is wrong with a text that holds bytes of another encoding (as surrogates), and how to mend it."""
    try:
        raw = text.encode("utf-8", "surrogateescape")
        first = next(number for number, byte in enumerate(raw) if byte > 127)
        shown = raw.decode("cp1252")[max(0, first - _SHOWN // 2) : first + _SHOWN // 2]
    except (UnicodeError, StopIteration):
        return "not UTF-8 text; save the file as UTF-8"
    return (
        f"not UTF-8 text: it seems to be Windows-1252, as Excel's plain CSV is ({shown!r}); save the file as UTF-8 "
        "(in Excel: Save As, CSV UTF-8), or: iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW_FILE"
    )
