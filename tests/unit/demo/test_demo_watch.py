"""demo/data/watch.parquet: base's own old world, made anew as it is committed, disjoint from the job's data."""

import io

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from demo.make_data import DATA
from demo.manifest import normalised
from demo.phrases import TEMPLATES, WORDS
from demo.scenes import Scene
from demo.watch import build_watch
from eval.dataset.retrieval_set import load_split
from eval.manifest.manifest import read_manifest

ROWS = pq.read_table(DATA / "watch.parquet").to_pylist()


def test_made_anew_equals_what_is_committed() -> None:
    made = build_watch()
    assert [(row["id"], row["scene"], tuple(row["captions"])) for row in ROWS] == [(row.id, row.scene.key, row.captions) for row in made]
    for old, new in list(zip(ROWS, made, strict=True))[::20]:
        with Image.open(io.BytesIO(old["image"]["bytes"])) as picture:
            difference = np.abs(np.asarray(picture.convert("RGB"), dtype=int) - np.asarray(new.image, dtype=int))
        assert difference.mean() < 1, old["id"]


def test_scenes_are_of_the_past_each_once_and_none_of_the_jobs() -> None:
    keys = [row["scene"] for row in ROWS]
    assert len(set(keys)) == len(keys) == 200 and {Scene.from_key(key).world for key in keys} == {"past"}
    job = pq.read_table(DATA / "scenes.parquet", columns=["scene", "captions"]).to_pylist()
    assert not {row["scene"] for row in job} & set(keys)
    said = {normalised(text) for row in job for text in row["captions"]}
    assert not said & {normalised(text) for row in ROWS for text in row["captions"]}


def test_words_and_templates_are_the_old_ones() -> None:
    plain = {words[0] for words in WORDS.values()}
    links = {word for known in TEMPLATES.values() for template in known["old"] for word in template.split() if not word.startswith("{")}
    spoken = {word for row in ROWS for text in row["captions"] for word in normalised(text).split()}
    assert spoken <= plain | links | {"a", "an"} and len(spoken) > 20
    assert all(len(set(map(normalised, row["captions"]))) == 2 for row in ROWS)


def test_the_manifest_reader_takes_it() -> None:
    dataset = load_split(read_manifest(DATA / "watch.parquet", columns={"group": "scene"}), "watch")
    assert (dataset.num_images, dataset.num_captions) == (200, 400)
    assert dataset.load_image(0).size == (64, 64)
