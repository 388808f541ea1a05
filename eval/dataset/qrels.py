"""TREC qrels: lines `QUERY_ID 0 ITEM_ID RELEVANCE`; positive pairs in addition to those of a manifest."""

import os
import re

from eval.errors import UserError
from eval.files import read_text

_RELEVANCE = re.compile(r"-?[0-9]{1,18}")


def read_qrels(path: str | os.PathLike[str]) -> set[tuple[str, str]]:
    """(query id, item id) of every line with relevance above 0; ids are read as written, so they may not contain blanks.

    Raises:
        UserError: the file cannot be read, a line has another form, or none has a relevance above 0; the message names it.
    """
    try:
        lines = read_text(path).removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as qrels ({error})") from error
    pairs = set()
    for number, line in enumerate(lines, 1):
        cells = line.split()
        if not cells:
            continue
        if len(cells) != 4 or _RELEVANCE.fullmatch(cells[3]) is None:
            told = f"{path}:{number}: expected `QUERY_ID 0 ITEM_ID RELEVANCE`, found {line[:100]!r}"
            raise UserError(f"{told}. RELEVANCE is a whole number; ids may hold no blanks: write them percent-encoded (my%20photo.jpg)")
        if int(cells[3]) > 0:
            pairs.add((cells[0], cells[2]))
    if not pairs:
        told = f"{path}: expected pairs of relevance above 0, found none in {len(lines)} line(s)"
        raise UserError(f"{told}. Leave the qrels out, or name another file")
    return pairs
