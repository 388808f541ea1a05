"""The section of a report on leakage: what its split shares with others."""

from collections.abc import Sequence
from typing import Any

from eval.dataset.leakage import Leakage
from eval.report.section import Section, SectionFormat


def leakage_notes(record: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence for each pair of splits that share something."""
    return [f"Leakage: {leak}." for leak in (Leakage(**one) for one in record) if leak.any]


LEAKAGE = SectionFormat(key="leakage", notes=leakage_notes)


def leakage_section(leakages: Sequence[Leakage]) -> Section:
    """Every pair of splits that was looked at, shared or not; the page names those that share something."""
    return Section(LEAKAGE, [leak.as_record() for leak in leakages])
