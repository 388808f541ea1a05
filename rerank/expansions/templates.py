"""Prompt templates: the caption within words that say it describes a picture.

Prompts of this kind raised zero-shot accuracy of models trained on captions (Radford et al. 2021, section 3.1.4); those here are our own.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from eval.captions import normalise
from eval.dataset.retrieval_set import RetrievalSet
from eval.errors import UserError
from eval.manifest.rows import is_unicode
from eval.processes import Processes
from rerank.expansions.additional_texts import CaptionExpansions
from rerank.expansions.base import TextExpansion
from rerank.expansions.text_file import TableFaults, read_text

BUILT_IN = (
    "a photo of {}",
    "a picture of {}",
    "an image showing {}",
    "{}, seen in a photo",
    "a close look at {}",
    "here you can see {}",
    "a picture taken of {}",
    "{} in the picture",
)
_FIRST_WORD = re.compile(r"[A-Z][a-z]*(?![\w.'’-])")


@dataclass(frozen=True, kw_only=True)
class Templates(TextExpansion):
    """Templates with one {} each, where the caption goes, the most trusted first."""

    name: str = "templates"
    templates: Sequence[str] = BUILT_IN

    @classmethod
    def read(cls, path: str) -> "Templates":
        """A file of templates, one a line; empty lines are left out.

        Raises:
            UserError: it is not there or no text, or with every line that is no template.
        """
        source = f"templates:{path}"
        faults, templates = TableFaults(source, path), []
        for number, line in enumerate(read_text(source, path).split("\n"), 1):
            if not line.strip():
                continue
            if what := _fault(line):
                faults.add(number, what)
            templates.append(line.strip())
        faults.raise_any()
        if not templates:
            raise UserError(f"{source}: {path} holds no template; write one a line, such as {BUILT_IN[0]!r}")
        return cls(source=source, templates=tuple(templates))

    def of(self, dataset: RetrievalSet, processes: Processes = Processes()) -> CaptionExpansions:
        """Each caption of a split in each template."""
        return CaptionExpansions.select(dataset, map(self._filled, dataset.captions), name=self.name, source=self.source)

    def _filled(self, caption: str) -> Iterator[str]:
        for template in self.templates:
            yield template.replace("{}", within(caption, start=template.startswith("{}")))


def within(caption: str, *, start: bool = False) -> str:
    """A caption as part of a sentence: no single full stop at its end, and, but at the start of one, no capital at its own.

    The capital stays where the first word holds more capitals, digits, dots or hyphens (NASA, U.S., T-shirt) or is "I".

    >>> within("A dog runs."), within("NASA's rocket..."), within("A dog runs.", start=True)
    ('a dog runs', "NASA's rocket...", 'A dog runs')
    """
    text = caption.strip()
    if text.endswith(".") and "." not in text.split()[-1][:-1]:
        text = text[:-1].rstrip()
    first = _FIRST_WORD.match(text)
    return text if start or first is None or first.group() == "I" else text[0].lower() + text[1:]


def _fault(line: str) -> str:
    """Why a line is no template; empty where it is one."""
    if not is_unicode(line):
        return "not UTF-8 text; save the file as UTF-8"
    if line.count("{}") != 1:
        return f"expected exactly one {{}}, where the caption goes; found {line.count('{}')} in {line.strip()!r:.80}"
    return "" if normalise(line.replace("{}", " ")) else f"expected words next to the {{}}; found {line.strip()!r:.80}"
