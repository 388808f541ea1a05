"""A section of a report: its record in report.json, its part of report.html and its sentences, together. Whoever measures something makes
its section; the report renders what it is given and knows none by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from eval.report.render import render


@dataclass(frozen=True, kw_only=True)
class SectionFormat:
    """How the sections of one kind are shown.

    Attributes:
        key: in report.json.
        title: the heading of its part, and its name in the page's contents.
        template: a file of Jinja, its part of report.html, given `record`, `shown` and `names`; None: it has no part but its sentences.
        notes: the record -> sentences on report.html.
        warnings: the record -> sentences on its first screen, what a reader must know before the figures are believed.
        chosen: the record -> of each stage, what of it was chosen on which split.
        lines: the record and the report's `data` -> sentences on the terminal.
        names: what else the template uses.
    """

    key: str
    title: str = ""
    template: Path | None = None
    notes: Callable[[Any], Sequence[str]] = lambda record: ()
    warnings: Callable[[Any], Sequence[str]] = lambda record: ()
    chosen: Callable[[Any], Mapping[str, str]] = lambda record: {}
    lines: Callable[[Any, Mapping[str, Any]], Sequence[str]] = lambda record, data: ()
    names: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """What was found, and how it is shown.

    Attributes:
        shown: what its part shows that report.json does not hold, such as pictures.
    """

    format: SectionFormat
    record: Any
    shown: Any = ()

    @property
    def notes(self) -> Sequence[str]:
        """Sentences on report.html."""
        return self.format.notes(self.record)

    @property
    def warnings(self) -> Sequence[str]:
        """Sentences on its first screen."""
        return self.format.warnings(self.record)

    @property
    def chosen(self) -> Mapping[str, str]:
        """Of each stage, what of it was chosen on which split."""
        return self.format.chosen(self.record)

    def html(self) -> Markup:
        """Its part of report.html, without the heading."""
        template = self.format.template
        if template is None:
            return Markup("")
        return Markup(render(template.name, template.parent, record=self.record, shown=self.shown, **self.format.names).strip())


def section_lines(record: Mapping[str, Any], formats: Sequence[SectionFormat]) -> list[str]:
    """The sentences of the sections that a report's record has, in the order of the formats."""
    return [line for one in formats if one.key in record for line in one.lines(record[one.key], record["data"])]
