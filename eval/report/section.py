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
        template: a file of Jinja, its part of report.html, given `record` and `names`; None: it has no part but its notes.
        notes: the record -> sentences above the tables of report.html.
        lines: the record and the report's `data` -> sentences on the terminal.
        names: what else the template uses.
    """

    key: str
    template: Path | None = None
    notes: Callable[[Any], Sequence[str]] = lambda record: ()
    lines: Callable[[Any, Mapping[str, Any]], Sequence[str]] = lambda record, data: ()
    names: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """What was found, and how it is shown."""

    format: SectionFormat
    record: Any

    @property
    def notes(self) -> Sequence[str]:
        """Sentences above the tables of report.html."""
        return self.format.notes(self.record)

    def html(self) -> Markup:
        """Its part of report.html."""
        template = self.format.template
        return Markup("") if template is None else Markup(render(template.name, template.parent, record=self.record, **self.format.names))


def section_lines(record: Mapping[str, Any], formats: Sequence[SectionFormat]) -> list[str]:
    """The sentences of the sections that a report's record has, in the order of the formats."""
    return [line for one in formats if one.key in record for line in one.lines(record[one.key], record["data"])]
