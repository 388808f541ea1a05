"""A hook of mkdocs: the pages of results/ and the pages at the top become pages of the site, and links out of docs/ lead to them."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from pymdownx.slugs import slugify

ROOT = Path(__file__).resolve().parents[1]
TOP = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
"""Pages of the repository's top, below `top/` on the site."""


def on_config(config: Any) -> Any:
    """Anchors of headings as GitHub makes them."""
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add them to the files of docs/."""
    for path in sorted((ROOT / "results").rglob("*.md")):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for name in TOP:
        files.append(File.generated(config, f"top/{name}", abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Links as they are on the site: to its pages; what is there and not on it (code, data) stays as words; what is not there is left."""
    source = page.file.src_uri
    origin = ROOT / source.removeprefix("top/") if source.startswith(("top/", "results/")) else ROOT / "docs" / source

    def link(match: re.Match[str]) -> str:
        words, target, anchor = match.groups(default="")
        place = (origin.parent / target).resolve()
        if not target or "://" in target or not place.exists() or not place.is_relative_to(ROOT):
            return match[0]
        name = place.relative_to(ROOT).as_posix()
        name = f"top/{name}" if name in TOP else name.removeprefix("docs/")
        on_site = files.get_file_from_path(name) is not None
        return f"[{words}]({'../' * source.count('/')}{name}{anchor})" if on_site else words

    return re.sub(r"(?<!`)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)#\s]*)(#[^)\s]*)?\)", link, markdown)
