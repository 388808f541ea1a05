"""The section of a report on models of the hub: the commit that each was resolved to."""

from collections.abc import Sequence

from eval.encoder.hub import revisions_of
from eval.report.section import Section, SectionFormat

REVISIONS = SectionFormat(
    key="hub_revisions", notes=lambda record: [f"Of the hub: {', '.join(f'{name} at commit {commit}' for name, commit in record.items())}."]
)


def revision_sections(names: Sequence[str]) -> list[Section]:
    """Name -> commit of those models that were fetched from the hub; no section where there are none."""
    found = revisions_of(names)
    return [Section(REVISIONS, found)] if found else []
