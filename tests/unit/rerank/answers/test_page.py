"""The page of answers: who is shown and where they stood, nothing from outside runs, and a browser shows it, on a phone too."""

import html
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank.answers.answers import Answers
from rerank.answers.captions import read_captions
from rerank.answers.collection import Collection
from rerank.answers.first_stage import FirstAnswers
from rerank.answers.page import NUM_SHOWN, _shares, answers_page, query_examples
from rerank.answers.pictures import read_folder
from tests.browser import LOOKS, browser, needs_axe, needs_browser, opened

EVIL = "<script>document.title='owned'</script>"
NUM_PICTURES, DEPTH = 9, 8


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, noise) -> FirstAnswers:
    root = tmp_path_factory.mktemp("pho tos")
    for number in range(NUM_PICTURES - 2):
        noise(number, width=300).save(root / f"{number}.png")
    noise(7).save(root / "javascript:alert(1)#?.png")
    noise(8).save(root / ("z" + EVIL.replace("/", "_") + "long" * 30 + ".png"))
    captions = [f"caption number {number} {EVIL}" for number in range(10)] + ["unbroken" * 60]
    (root / "c.txt").write_text("\n".join(captions))
    return FirstAnswers(Collection(read_folder(str(root)), read_captions(str(root / "c.txt"))), {}, 100.0, -10.0, ["x.png"], 0, 0)


@pytest.fixture(scope="module")
def answers() -> list[Answers]:
    return made_up(True)


def made_up(reranked: bool) -> list[Answers]:
    """Shuffled lists of both directions."""
    draws = np.random.default_rng(1)
    lists = []
    for direction, num_queries, num_items in (("image_to_text", NUM_PICTURES, 11), ("text_to_image", 11, NUM_PICTURES)):
        indices_QK = np.array([draws.permutation(num_items)[:DEPTH] for _ in range(num_queries)])
        ranks_QK = np.array([draws.permutation(DEPTH) + 1 if reranked else np.arange(1, DEPTH + 1) for _ in range(num_queries)])
        cosines_QK = (-ranks_QK / 10).astype(np.float32)
        scores_QK = -np.sort(-draws.normal(size=ranks_QK.shape), axis=1).astype(np.float32) if reranked else None
        lists.append(Answers(direction, indices_QK, cosines_QK, ranks_QK.astype(np.int32), scores_QK))
    return lists


def test_the_first_answers_of_both_lists_with_places_and_scores(found: FirstAnswers, answers: list[Answers], tmp_path: Path) -> None:
    shown = query_examples(found, answers, 100, tmp_path / "a.html")
    assert [len(shown[one.direction]) for one in answers] == [NUM_PICTURES, 11]
    for one in answers:
        for query, exhibit in zip(one.most_moved(100).tolist(), shown[one.direction], strict=True):
            names = found.collection.image_ids if one.direction == "image_to_text" else found.collection.caption_ids
            assert exhibit.query.id == names[query]
            assert [answer.rank for answer in exhibit.after] == list(range(1, NUM_SHOWN + 1))
            assert [answer.first_rank for answer in exhibit.before] == list(range(1, NUM_SHOWN + 1))
            for answer in exhibit.before + exhibit.after:
                place = answer.rank - 1
                assert answer.first_rank == one.first_ranks_QK[query, place] and answer.places_up == answer.first_rank - answer.rank
                assert answer.score == one.rerank_scores_QK[query, place] and answer.cosine == one.cosines_QK[query, place]
                others = found.collection.caption_ids if one.direction == "image_to_text" else found.collection.image_ids
                assert answer.item.id == others[int(one.indices_QK[query, place])]
    assert max(len(one.query.text) for one in shown["text_to_image"]) < 310, "a caption without end is cut"


@given(st.integers(0, 40))
def test_shares_fill_the_page(count: int) -> None:
    lists = made_up(True)
    shares = _shares(lists, count)
    sizes = [one.num_queries for one in lists]
    assert sum(shares) == min(count, sum(sizes)) and all(share <= size for share, size in zip(shares, sizes, strict=True))
    assert abs(shares[0] - shares[1]) <= 1 or max(shares) - min(shares) <= sizes[1] - sizes[0]


class Links(HTMLParser):
    """Collects what a page refers to, and the scripts in it."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.pictures: list[dict] = []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append(tag)
        named = dict(attributes)
        self.links += [named["href"]] if "href" in named else []
        self.pictures += [named] if tag == "img" else []


def page_of(found: FirstAnswers, answers: list[Answers], path: Path, count: int = 100) -> str:
    reranker = f"r {EVIL}" if answers[0].rerank_scores_QK is not None else None
    return answers_page(path, found, answers, count, {"model": f"m {EVIL}", "reranker": reranker, "table": f"{EVIL}.parquet"})


def test_nothing_from_outside_runs_and_links_lead_to_the_files(found: FirstAnswers, answers: list[Answers], tmp_path: Path) -> None:
    path = tmp_path / "out" / "a.html"
    text = page_of(found, answers, path)
    seen = Links()
    seen.feed(text)
    assert "script" not in seen.tags and "&lt;script&gt;" in text
    assert all(one["src"].startswith("data:image/jpeg;base64,") and one["alt"].startswith("picture ") for one in seen.pictures)
    files = {link for link in seen.links if not link.startswith("#")}
    assert all(link.startswith("../") for link in files)
    assert {(path.parent / unquote(link)).resolve() for link in files} == set(Path(found.collection.pictures.source).glob("*.png"))
    inside = Links()
    inside.feed(page_of(found, answers, Path(found.collection.pictures.source) / "a.html"))
    assert "./javascript%3Aalert%281%29%23%3F.png" in inside.links


def test_moves_are_in_words_too(found: FirstAnswers, answers: list[Answers], tmp_path: Path) -> None:
    text = page_of(found, answers, tmp_path / "a.html", count=1)
    shown = next(iter(query_examples(found, answers, 1, tmp_path / "a.html").values()))[0]
    words = [re.sub(r"\s+", " ", html.unescape(one)) for one in re.findall(r'class="unseen">([^<]*)<', text) if one != "place "]
    expected = [f"now at place {one.rank}" if one.places_up else "same place in both lists" for one in shown.before]
    for one in shown.after:
        told = f"{'up' if one.places_up > 0 else 'down'} {abs(one.places_up)}, from place {one.first_rank}"
        expected.append(told if one.places_up else "same place in both lists")
    assert words == expected


def test_without_a_reranker_there_is_one_list(found: FirstAnswers, tmp_path: Path) -> None:
    text = page_of(found, made_up(False), tmp_path / "a.html")
    assert "After" not in text and "match" not in text and "▲" not in text and text.count("<h4>First stage</h4>") == 20


MEASURE = """<!doctype html><title>waiting</title><iframe id="f" style="width:360px;height:800px" srcdoc="{page}"></iframe><script>
const f = document.getElementById("f");
f.onload = () => {{
  const d = f.contentDocument, wide = d.documentElement.scrollWidth, broken = [...d.images].filter(i => !i.naturalWidth).length;
  document.title = [d.title, wide, d.images.length, broken].join("|");
}};
</script>"""


@needs_browser
def test_page_in_a_browser_at_the_width_of_a_phone(found: FirstAnswers, answers: list[Answers], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(MEASURE.format(page=html.escape(page_of(found, answers, page))), encoding="utf-8")
    done = opened(page, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr
    title, wide, num_pictures, num_broken = re.search(r"<title>([^<]*)</title>", done.stdout).group(1).split("|")
    assert html.unescape(title).startswith("Answers: <script>"), "the title is ours: nothing from outside ran"
    assert int(wide) <= 360, "nothing has to be scrolled sideways"
    assert int(num_pictures) == NUM_PICTURES + 11 * 2 * NUM_SHOWN and num_broken == "0"


@needs_axe
def test_axe_finds_nothing(found: FirstAnswers, answers: list[Answers], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(page_of(found, answers, page, count=4), encoding="utf-8")
    with browser(tmp_path) as tab:
        for width, is_dark in (LOOKS[0], LOOKS[-1]):
            tab.go(page.as_uri(), width=width, is_dark=is_dark)
            tab.wait_for("document.readyState === 'complete' && document.querySelector('main')")
            assert tab.violations() == []
