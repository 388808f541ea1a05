"""What can be wrong with the rows of a manifest, and what is told of it."""

from collections import Counter
from dataclasses import dataclass

from eval.captions import normalise
from eval.errors import UserError
from eval.manifest.formats.lists import UnreadableList
from eval.manifest.rows import is_unicode

_SHOWN_PER_KIND = 20


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a manifest: where (file and line, or row), its kind (for counting), and what it is."""

    where: str
    kind: str
    what: str


class ManifestError(UserError):
    """All faults of a manifest at once."""

    def __init__(self, source: str, faults: list[Fault]) -> None:
        self.faults = faults
        counts = Counter(fault.kind for fault in faults)
        shown: Counter[str] = Counter()
        lines = [f"{source}: {len(faults)} fault(s): " + ", ".join(f"{count} x {kind}" for kind, count in counts.items())]
        for fault in faults:
            shown[fault.kind] += 1
            if shown[fault.kind] <= _SHOWN_PER_KIND:
                lines.append(f"  {fault.where}: {fault.what}")
        lines += [f"  ... and {count - _SHOWN_PER_KIND} more of: {kind}" for kind, count in counts.items() if count > _SHOWN_PER_KIND]
        super().__init__("\n".join(lines))


def caption_fault(where: str, value: object) -> Fault | None:
    """What is wrong with a value that should be a caption, or nothing."""
    if value is None:
        return Fault(where, "no caption", "the caption is null; write one, or take the row out")
    if isinstance(value, UnreadableList):
        return Fault(where, "unreadable list", value.what)
    if not isinstance(value, str):
        return Fault(where, "caption is not text", f"expected text, found {type(value).__name__}: {value!r:.80}")
    if not is_unicode(value):
        return Fault(where, "not UTF-8 text", f"half a character (a lone surrogate) in the caption {value!r:.80}")
    if not normalise(value):
        return Fault(
            where, "empty caption", f"nothing is left of {value!r:.80} without blanks, punctuation and invisible characters; write words"
        )
    return None


def cell_text(where: str, name: str, value: object, faults: list[Fault]) -> str | None:
    """The text or number of a cell of column `name`, as text; None of an empty one, and of another value, which goes to `faults`."""
    if value is None or value == "":
        return None
    if isinstance(value, (str, int)) and not isinstance(value, bool) and is_unicode(str(value)):
        return str(value)
    faults.append(Fault(where, f"{name} is not text", f"expected text, found {type(value).__name__}: {value!r:.80}"))
    return None
