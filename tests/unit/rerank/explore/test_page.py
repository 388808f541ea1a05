"""The page in a browser: a sentence and a picture are searched with, nothing is asked of other servers, and Ctrl-C ends it quietly."""

import re
import signal
import urllib.request
from pathlib import Path

import pytest

from rerank.answers.page import PageItem
from tests.browser import browser, needs_browser
from tests.nursery import Nursery
from tests.small_job import SmallWorld

pytest.importorskip("gradio")

from rerank.explore.page import results_html  # noqa: E402
from rerank.explore.search import Found, Hit, ResultList  # noqa: E402

EVIL = "<script>document.title='owned'</script> {{ 7 * 7 }} ${7 * 7}"
SENTENCE = "a red circle {{7*7}} ${7*7} <b>"
"""Nothing of it is markup, or a template."""
DROP, TAKE_AWAY = "button[aria-dropeffect]", 'button[aria-label="Remove Image"]'


def test_what_others_wrote_is_escaped() -> None:
    hit = Hit(PageItem(EVIL, EVIL), 1, 2, -0.25, None, 1.5, 0.871)
    page = results_html(Found(PageItem("", EVIL), [EVIL], {EVIL: [ResultList(EVIL, [hit], 0.25, EVIL)]}), EVIL)
    assert "<script>" not in page and page.count("&lt;script&gt;") >= 7
    for part in ("−0.250", "+1.50", "87%", "0.250 s", "▲ 1", "up 1, from place 2"):
        assert part in page
    assert results_html(None, "no").count("<p") == 1


@needs_browser
def test_a_sentence_and_a_picture_are_searched_with_in_a_browser(
    nursery: Nursery, small_world: SmallWorld, tiny_blip: Path, photos: Path, tmp_path: Path
) -> None:
    options = ["--rerank", str(tiny_blip), "--split", "val", "--top-k", "4", "--port", "0", "--num-workers", "0"]
    words = [str(small_world.base), "--images", str(small_world.manifest), *options]
    server = nursery.start("rerank.explore", words, env={"ACCELERATE_USE_CPU": "true"})
    server.wait_until(lambda: server.log.exists() and "Ctrl-C ends it" in server.output())
    url = re.search(r"http://127\.0\.0\.1:\d+", server.output())[0]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with browser(tmp_path) as tab:
        tab.go(url, width=390)
        tab.wait_for(f"document.querySelector('textarea') && document.querySelector('{DROP}')")
        tab.value("document.querySelector('textarea').focus()")
        tab.send("Input.insertText", text=SENTENCE)
        tab.press("Enter", 13, "\r")
        tab.wait_for("document.querySelectorAll('#results ol.pictures').length == 2")
        shown = tab.value("document.querySelector('#results').innerText")
        assert f"“{SENTENCE}”" in shown and "First stage" in shown and "Reranked by blip" in shown and "not calibrated" in shown
        assert len(re.findall(r"cosine\s*−?0\.\d{3}", shown)) == 8 and len(re.findall(r"score\s*[+−]\d+\.\d\d", shown)) == 4
        pictures = "[...document.querySelectorAll('#results ol img')]"
        tab.wait_for(f"{pictures}.filter(one => one.naturalWidth && one.alt.startsWith('picture pictures/val-')).length == 8")
        assert tab.value("document.documentElement.scrollWidth <= innerWidth")
        tab.drop(small_world.manifest.parent / "pictures" / "val-005.png", DROP)
        tab.wait_for("document.querySelectorAll('#results ol.captions').length == 2")
        first = tab.value("document.querySelector('#results ol.pictures li').innerText")
        assert first.split()[:3] == ["place", "1", "pictures/val-005.png"]
        tab.wait_for(f"document.querySelector('{TAKE_AWAY}')")
        tab.value(f"document.querySelector('{TAKE_AWAY}').click()")
        tab.wait_for(f"!document.querySelector('#results ol') && document.querySelector('{DROP}')")
        tab.drop(tmp_path / "broken.png", DROP)
        tab.wait_for("document.querySelector('#results [role=alert]')")
        assert "The picture you gave: cannot be decoded" in tab.value("document.querySelector('#results').innerText")
        assert {one for one in tab.asked if not one.startswith((url, "data:", "blob:", "about:"))} == set()
    request = urllib.request.Request(url, headers={"Host": "elsewhere.example"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request)
    server.kill(signal.SIGINT)
    assert server.wait() == 130 and server.output().endswith("stopped: interrupted\n")
