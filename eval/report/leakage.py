"""The section of a report on leakage: what its split shares with others."""

from collections.abc import Sequence

from eval.dataset.leakage import Leakage
from eval.report.section import Section, SectionFormat

LEAKAGE = SectionFormat(
    key="leakage", warnings=lambda record: [f"Leakage: {leak}." for leak in (Leakage(**one) for one in record) if leak.any]
)


def leakage_section(leakages: Sequence[Leakage]) -> Section:
    """Every pair of splits that was looked at, shared or not; the page names those that share something."""
    return Section(LEAKAGE, [leak.as_record() for leak in leakages])
