"""One file of HTML that opens from disk: a template filled in, every string from outside escaped."""

from pathlib import Path
from typing import Any

import jinja2

TEMPLATES = Path(__file__).parent / "templates"
DIRECTION_WORDS = {"image_to_text": "image to text", "text_to_image": "text to image", "both": "both"}


def render(template: str, folder: Path = TEMPLATES, **values: Any) -> str:
    """The page, or a part of one, of a template in a folder; what it imports is there or in eval/report/templates. A value it names and is
    not given is an error, not a blank."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(show=show, show_interval=show_interval, directions=DIRECTION_WORDS)
    return environment.get_template(template).render(**values)


def show(metric: str, value: float) -> str:
    """Ranks with one decimal; shares in percent with two."""
    return f"{value:.1f}" if metric.endswith("_rank") else f"{100 * value:.2f}"


def show_interval(bounds: list[float]) -> str:
    """An interval of a difference of shares, in points."""
    return f"[{100 * bounds[0]:+.2f}, {100 * bounds[1]:+.2f}]"
