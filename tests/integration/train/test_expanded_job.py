"""A job with data.expand: its additional captions are counted before the first step, trained on, and mined for other images only."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from eval.captions import normalise
from tests.faults.runs import lines
from tests.nursery import Nursery
from tests.small_job import SmallWorld, load

SYNONYMS = {"circle": "disc", "square": "box", "bar": "stripe"}


@pytest.fixture(scope="module")
def finished(small_world: SmallWorld, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(run folder, output)."""
    folder = tmp_path_factory.mktemp("expanded")
    (folder / "d.txt").write_text("".join(f"{word}: {synonym}\n" for word, synonym in SYNONYMS.items()))
    config = small_world.write_config(folder, data__expand=[f"synonyms:{folder / 'd.txt'}"])
    child = nursery.start("train", [str(config)])
    assert child.wait() == 0, child.output()
    return folder / "runs" / "job", child.output()


def test_they_are_counted_before_the_first_step(finished: tuple[Path, str], small_world: SmallWorld) -> None:
    _, output = finished
    plain = load(small_world.manifest)
    (line,) = [line for line in output.splitlines() if line.startswith("expand ")]
    num_additional = len(
        {
            (int(image), normalise(caption))
            for image, caption in zip(plain.caption_image_C, plain.captions, strict=True)
            if SYNONYMS.keys() & set(normalise(caption).split())
        }
    )
    assert line.startswith(f"expand    {num_additional} additional captions for {plain.num_images} images by synonyms:")
    assert f"{plain.num_images} images with {plain.num_captions + num_additional} captions to train on" in output


def test_such_a_caption_is_mined_for_others_but_never_for_its_own_image(finished: tuple[Path, str], small_world: SmallWorld) -> None:
    folder, _ = finished
    plain = load(small_world.manifest)
    own = {image: set[str]() for image in plain.image_ids}
    for image, caption in zip(plain.caption_image_C, plain.captions, strict=True):
        words = normalise(caption).split()
        own[plain.image_ids[int(image)]] |= {" ".join(words), " ".join(SYNONYMS.get(word, word) for word in words)}
    groups = dict(zip(plain.image_ids, plain.group_names(), strict=True))
    num_own = {image: len([place for place in plain.caption_image_C if plain.image_ids[int(place)] == image]) for image in own}
    num_additional_mined = 0
    reports = [line for line in lines(folder) if line["event"] == "mining"]
    for report in reports:
        table = pq.read_table(folder / "negatives" / f"{report['name']}.parquet")
        for image, caption_id in zip(table["image_id"].to_pylist(), table["caption_id"].to_pylist(), strict=True):
            owner, _, place = caption_id.rpartition("#")
            num_additional_mined += int(place) >= num_own[owner]
            text = normalise(_caption(small_world, owner, int(place)))
            mates = [other for other in own if other == image or (groups[image] and groups[image] == groups[other])]
            assert not any(text in own[mate] for mate in mates)
    assert len(reports) == 3 and all(report["num_positives_mined"] == 0 for report in reports)
    assert num_additional_mined > 0


def _caption(small_world: SmallWorld, owner: str, place: int) -> str:
    """The text of a caption by its place; additional ones follow in the order of the captions they were made from."""
    plain = load(small_world.manifest)
    image = list(plain.image_ids).index(owner)
    own = list(plain.captions[int(plain.caption_offsets[image]) : int(plain.caption_offsets[image + 1])])
    further: dict[str, str] = {}
    for caption in own:
        words = normalise(caption).split()
        if any(word in SYNONYMS for word in words):
            further.setdefault(" ".join(SYNONYMS.get(word, word) for word in words), "")
    return (own + list(further))[place]


def test_a_wrong_file_ends_it_before_the_first_step(small_world: SmallWorld, nursery: Nursery, tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("circle: disc\nsquare box\n")
    config = small_world.write_config(tmp_path, data__expand=[f"synonyms:{tmp_path / 'd.txt'}"])
    child = nursery.start("train", [str(config)])
    assert child.wait() == 2
    assert "d.txt:2: expected `word: synonym, synonym`, found no colon in 'square box'" in child.output()
    assert not lines(tmp_path / "runs" / "job")
