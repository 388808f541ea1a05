"""One file of HTML that opens from disk: a template filled in, every string from outside escaped."""

import os
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

TEMPLATES = Path(__file__).parent / "templates"
DIRECTION_WORDS = {"image_to_text": "image to text", "text_to_image": "text to image", "both": "both"}


def render(template: str, folder: Path = TEMPLATES, **values: Any) -> str:
    """The page, or a part of one, of a template in a folder; what it imports is there or in eval/report/templates. A value it names and is
    not given is an error, not a blank."""
    return environment(folder).get_template(template).render(**values)


@cache
def environment(folder: Path) -> jinja2.Environment:
    """What reads the templates of a folder, and compiles each once."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(show=show, show_interval=show_interval, signed=signed, directions=DIRECTION_WORDS)
    return made


def relative_link(path: str | Path, page: Path) -> str:
    """The URL of a file or folder as seen from a page; "./" keeps a name such as "a:b.jpg" from being read as a scheme."""
    relative = quote(os.fsencode(os.path.relpath(path, page.parent)))
    return relative if relative.startswith("../") else f"./{relative}"


def signed(share: float) -> str:
    """A difference of shares in points, with one decimal and its sign.

    >>> signed(0.128), signed(-0.004)
    ('+12.8', '−0.4')
    """
    return f"{100 * share + 0.0:+.1f}".replace("-", "−")


def show(metric: str, value: float) -> str:
    """Ranks with one decimal; shares in percent with two."""
    return f"{value:.1f}" if metric.endswith("_rank") else f"{100 * value:.2f}"


def show_interval(bounds: list[float]) -> str:
    """An interval of a difference of shares, in points."""
    return f"[{100 * bounds[0]:+.2f}, {100 * bounds[1]:+.2f}]"
