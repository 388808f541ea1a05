"""The gallery of a report: what it shows, that it is one bounded file, and that nothing from outside becomes markup."""

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from eval.dataset.retrieval_set import RetrievalSet, StringColumn
from eval.metrics.evaluate import Figures, evaluate
from eval.report.gallery import NUM_SHOWN, PICTURE_BYTES, Gallery, Item, ShownQuery, gallery, thumbnail
from eval.report.report import write_report
from tests.browser import needs_browser, opened
from tests.unit.eval.reranked_set import TOP_K, first_stage, picture_set, reranked

EVIL = "<script>document.title='owned'</script> {{ 7 * 7 }} \"' onerror=alert(1)"


def measured(dataset: RetrievalSet) -> Figures:
    first = first_stage(dataset)
    return evaluate(dataset, [first, reranked(dataset, first)])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RetrievalSet:
    return picture_set(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def figures(dataset: RetrievalSet) -> Figures:
    return measured(dataset)


@pytest.fixture(scope="module")
def made(dataset: RetrievalSet, figures: Figures) -> Gallery:
    return gallery(dataset, figures)


@pytest.fixture(scope="module")
def queries(made: Gallery) -> list[ShownQuery]:
    return list(made.queries)


def items_of(one: ShownQuery) -> tuple[Item, ...]:
    return (one.query, one.relevant, *one.before, *one.after)


def decoded(uri: str) -> Image.Image:
    kind, _, data = uri.partition(",")
    assert kind == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


def test_answers_are_those_of_the_table_and_right_ones_marked(dataset: RetrievalSet, figures: Figures, queries: list[ShownQuery]) -> None:
    assert len(queries) == len(figures.shown) > 10
    table = {(row["stage"], row["direction"], row["query_id"]): row for row in figures.queries.to_pylist()}
    captions = dict(zip(dataset.caption_ids, dataset.captions, strict=True))
    for one in queries:
        for items, stage, rank in ((one.before, "base", "rank_before"), (one.after, "base+blip", "rank_after")):
            row = table[stage, one.failure["direction"], one.query.id]
            assert [(item.id, item.score) for item in items] == list(zip(row["top_ids"], row["top_scores"], strict=True))[:NUM_SHOWN]
            own = [item.id.split("#")[0] == row["image_id"] for item in items]  # no two captions here are equal
            assert [item.is_right for item in items] == own
            assert [place for place, right in enumerate(own, 1) if right][:1] == [one.failure[rank]] * (one.failure[rank] <= NUM_SHOWN)
            other = table["base+blip" if stage == "base" else "base", one.failure["direction"], one.query.id]["top_ids"]
            assert [item.other_rank for item in items] == [other.index(item.id) + 1 if item.id in other else None for item in items]
        for item in items_of(one):
            assert item.text == captions.get(item.id, captions.get(f"{item.id}#0")) and bool(item.picture) == item.is_image
        assert not any(item.was_reranked for item in one.before) and all(item.was_reranked for item in one.after)


def test_the_relevant_item_is_the_one_whose_rank_is_told(dataset: RetrievalSet, figures: Figures, queries: list[ShownQuery]) -> None:
    """Or, where it is below what is known of both lists, any, and that is said."""
    table = {(row["stage"], row["direction"], row["query_id"]): row for row in figures.queries.to_pylist()}
    for one in queries:
        lists = [table[stage, one.failure["direction"], one.query.id]["top_ids"] for stage in ("base+blip", "base")]
        ranks = [one.failure["rank_after"], one.failure["rank_before"]]
        known = [names[rank - 1] for names, rank in zip(lists, ranks, strict=True) if rank <= len(names)]
        ids = dataset.caption_ids if one.failure["direction"] == "image_to_text" else dataset.image_ids
        right = [name for name in ids if name.split("#")[0] == one.query.id.split("#")[0]]
        assert one.relevant.id == (known or right)[0] and one.num_relevant == len(right)
        assert one.is_best == bool(known or len(right) == 1)


def test_answers_below_the_candidates_are_told_apart(dataset: RetrievalSet) -> None:
    first = first_stage(dataset)
    shown = gallery(dataset, evaluate(dataset, [first, reranked(dataset, first, top_k=2)])).queries
    assert all([item.was_reranked for item in one.after] == [True, True, False, False, False] for one in shown)


def test_pictures_are_small_there_once_and_encoded_anew(made: Gallery, queries: list[ShownQuery]) -> None:
    """As large as their largest use: 176 pixels of a picture that asks, else 96."""
    asking = {one.query.picture for one in queries if one.query.is_image}
    used = {item.picture: item.id for one in queries for item in items_of(one) if item.is_image}
    assert sorted(used) == list(range(1, len(made.pictures) + 1)) and len(set(used.values())) == len(used)
    for number, picture in enumerate(made.pictures, 1):
        assert decoded(picture.uri).size == (picture.width, picture.height) == ((88, 176) if number in asking else (48, 96))
    noted = Image.new("RGB", (300, 10))
    noted.info |= {"comment": b"a secret of the file", "icc_profile": b"a secret" * 9999, "exif": b"Exif\0\0a secret", "xmp": b"a secret"}
    assert decoded(thumbnail(noted)).size == (96, 3) and b"secret" not in base64.b64decode(thumbnail(noted).split(",")[1])


def test_page_is_bounded_even_for_pictures_of_noise(tmp_path: Path) -> None:
    dataset = picture_set(tmp_path, num_images=60, side=192)
    figures = measured(dataset)
    shown = gallery(dataset, figures)
    assert len(shown.queries) == 20 and len(shown.pictures) > 30
    assert sum(len(picture.uri) for picture in shown.pictures) <= PICTURE_BYTES
    assert (write_report(tmp_path / "out", figures, gallery=shown) / "report.html").stat().st_size < 2_000_000


class Reader(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def evil_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captions and ids that would be markup, a script or a template."""
    folder = tmp_path_factory.mktemp("evil")
    made = picture_set(folder)
    made.captions = StringColumn([f"{EVIL} {number}" for number in range(made.num_captions)])
    made.image_ids = StringColumn([f"{EVIL}{name}" for name in made.image_ids])
    figures = measured(made)
    return write_report(folder / "out", figures, gallery=gallery(made, figures)) / "report.html"


def test_everything_from_outside_stays_text(evil_page: Path) -> None:
    page = Reader(evil_page.read_text(encoding="utf-8"))
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object"} and [tag for tag, _ in page.tags].count("script") == 1
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count(EVIL) > 50
    sources = [attributes for tag, attributes in page.tags if tag == "image"]
    assert sources and all(str(one["href"]).startswith("data:image/jpeg;base64,") for one in sources)
    shown = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("role") == "img" and "pic" in str(attributes)]
    assert shown and sum(str(one["aria-label"]).startswith(f"picture {EVIL}") for one in shown) > 20


def test_right_answers_are_told_in_words_too(figures: Figures, made: Gallery, queries: list[ShownQuery], tmp_path: Path) -> None:
    page = (write_report(tmp_path, figures, gallery=made) / "report.html").read_text(encoding="utf-8")
    num_right = sum(item.is_right for one in queries for item in (*one.before, *one.after))
    assert page.count("✓ relevant") == num_right == page.count('<li class="right">')
    assert page.count('<article class="query"') == len(queries)
    assert f"first {TOP_K} re-ordered" in page and page.count('<svg class="sweep"') == 1 and page.count("<polyline") == 4


def test_a_picture_that_does_not_decode_is_left_out(tmp_path: Path) -> None:
    made = picture_set(tmp_path)
    figures = measured(made)
    for path in tmp_path.glob("*.png"):
        path.write_bytes(b"\x89PNG and no more")
    shown = gallery(made, figures)
    assert not shown.pictures and not any(item.picture for one in shown.queries for item in items_of(one))
    page = (write_report(tmp_path / "out", figures, gallery=shown) / "report.html").read_text(encoding="utf-8")
    assert "(no picture)" in page and "<img" not in page and "<image" not in page


@needs_browser
def test_gallery_in_a_browser(evil_page: Path, tmp_path: Path) -> None:
    done = opened(evil_page, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr and "<title>Retrieval report" in done.stdout
    assert done.stdout.count('<article class="query"') > 10 and done.stdout.count("<script") == 1
