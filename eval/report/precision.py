"""The section of a report whose checkpoints embedded in another precision than float32."""

from eval.execution import Precision
from eval.report.section import Section, SectionFormat


def _sentence(precision: str) -> str:
    return f"SigLIP embedded in {precision}: figures may differ from those of float32 by a few queries of a thousand."


PRECISION = SectionFormat(
    key="precision", warnings=lambda record: [_sentence(record)], lines=lambda record, data: [f"precision {_sentence(record)}"]
)


def precision_sections(precision: Precision) -> list[Section]:
    """Of an evaluation in a precision; none for float32."""
    return [Section(PRECISION, precision)] if precision != "fp32" else []
