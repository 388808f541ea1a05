"""The page: Gradio draws the fields, a template the results."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from eval.errors import UserError
from eval.files import PICTURE_BYTES
from eval.report.render import render
from rerank.explore.search import Found, Searcher

_FOLDER = Path(__file__).parent
_MOST_CHARACTERS = 2000


@dataclass(frozen=True)
class Page:
    """A page of Gradio's, and how it looks: arguments of `gradio.mount_gradio_app`."""

    blocks: gr.Blocks
    looks: Mapping[str, Any]


def make_page(searcher: Searcher, about: Mapping[str, str]) -> Page:
    """The page of a gallery.

    Args:
        about: model, and reranker, empty where there is none.
    """
    gallery = searcher.gallery
    with gr.Blocks(title=f"Search {gallery.collection.num_images:,} pictures", analytics_enabled=False) as blocks:
        gr.HTML(render("header.html.j2", _FOLDER, about=about, gallery=gallery), apply_default_css=False)
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                sentence = gr.Textbox(
                    label="Search with a sentence",
                    placeholder="a red kite over a beach",
                    max_length=_MOST_CHARACTERS,
                    max_lines=3,
                    autofocus=True,
                )
                button = gr.Button("Search", variant="primary")
            with gr.Column(scale=2, min_width=300):
                picture = gr.Image(label="or with a picture", type="filepath", sources=["upload", "clipboard"], height=190)
                picture.preprocess = _path  # Gradio's own would decode it, and end in a traceback where it is broken
        results = gr.HTML(elem_id="results", apply_default_css=False)
        common = {"outputs": results, "concurrency_id": "search", "trigger_mode": "always_last", "api_visibility": "private"}
        gr.on([sentence.submit, button.click], _shown(searcher.by_sentence), inputs=sentence, **common)
        picture.change(_shown(searcher.by_picture), inputs=picture, **common)
    theme = gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )  # none is fetched
    strong = {"button_primary_background_fill": "*primary_700", "button_primary_background_fill_hover": "*primary_800"}
    theme.set(**strong, **{f"{name}_dark": value for name, value in strong.items()}, input_placeholder_color="*neutral_500")
    looks = {"theme": theme, "css": (_FOLDER / "explore.css").read_text(encoding="utf-8"), "max_file_size": PICTURE_BYTES}
    return Page(blocks, looks)


def _path(uploaded: Any) -> str | None:
    """Where a picture was uploaded to; None: the field is empty."""
    return None if uploaded is None else uploaded.path


def _shown(search: Callable[[str], Iterator[Found]]) -> Callable[[str | None], Iterator[str]]:
    """A search whose results are HTML; what cannot be searched with is a sentence of it."""

    def shown(query: str | None) -> Iterator[str]:
        if query is None:  # the picture was taken away
            yield ""
            return
        last = None
        try:
            for last in search(query):
                yield results_html(last)
        except UserError as error:
            yield results_html(last, str(error))

    return shown


def results_html(found: Found | None, fault: str = "") -> str:
    """What a query found, if anything, and what went wrong."""
    return render("results.html.j2", _FOLDER, found=found, fault=fault)
