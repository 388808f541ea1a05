"""The section of a report on images that were left out because they do not decode."""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.manifest.skipped import FILE, Skipped
from eval.report.section import Section, SectionFormat

_MOST_NAMED = 5


def _sentence(record: Mapping[str, Any]) -> str:
    names = ", ".join(record["images"][:_MOST_NAMED]) + (", ..." if record["num_images"] > _MOST_NAMED else "")
    return f"Left out: {record['num_images']:,} picture(s) that do not decode, with their captions: {names} ({FILE} says why)."


SKIPPED = SectionFormat(key="skipped", warnings=lambda record: [_sentence(record)], lines=lambda record, data: [_sentence(record)])


def skipped_sections(skipped: Sequence[Skipped]) -> list[Section]:
    """The pictures that do not decode among what was left out of the split that a report is about; none where all do."""
    images = [one.image for one in skipped if one.is_broken]
    return [Section(SKIPPED, {"num_images": len(images), "images": images})] if images else []
