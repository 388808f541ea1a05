"""Mined negatives for other trainers: never a true caption, the columns that each reads, and the command on what a run has mined."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from eval.captions import normalise
from eval.errors import UserError
from tests.small_job import SmallWorld, load
from tests.unit.train.mining.test_rules import an_instance
from train.data.caption_pool import CaptionPool
from train.data.negatives import Negatives
from train.mining import __main__ as mining
from train.mining import triplets
from train.mining.layouts import LAYOUTS, RowMaker, mined_anchors
from train.mining.mine import Selector
from train.mining.pairs import mine_pairs
from train.mining.selection import PairProbability


def negatives_of(seed: int) -> tuple[Negatives, CaptionPool]:
    """What random rules select of a random instance: with groups, repeated texts, a pool without images, relabelled captions."""
    one = an_instance(seed)
    probability: PairProbability | None = None
    if one.config.denoise is not None:
        match = one.match

        def probability(images: np.ndarray, captions: np.ndarray) -> np.ndarray:
            return match[images, captions]

    return Selector(one.pool, one.scale, one.bias, one.config, match_probability=probability).select("t", one.found).negatives, one.pool


def true_texts(pool: CaptionPool) -> list[set[str]]:
    """Of each image the normalised texts that are true of it, by the definition: those of any image of its group."""
    data = pool.dataset
    texts = [
        {normalise(text) for text in data.captions[int(a) : int(b)]}
        for a, b in zip(data.caption_offsets, data.caption_offsets[1:], strict=False)
    ]
    return [set().union(*(texts[other] for other in np.flatnonzero(data.group_I == group))) for group in data.group_I]


def maker(pool: CaptionPool, layout: str, num_negatives: int | None, *, images_mined: bool = False) -> RowMaker:
    return RowMaker(
        layout=layout,  # type: ignore[arg-type]
        picture=lambda image: f"/{image}.jpg",
        text=pool.text,
        images_mined=images_mined,
        num_negatives=num_negatives,
    )


def sides(layout: str, row: dict[str, Any]) -> tuple[str, list[str], list[str]]:
    """(anchor, positives, negatives) of a row, as its reader takes them."""
    if layout == "sentence-transformers":
        return row["anchor"], [row["positive"]], [value for name, value in row.items() if name.startswith("negative")]
    if layout == "flagembedding":
        return row["query"], row["pos"], row["neg"]
    assert [one["content"] for one in row["messages"]] == ["<image>"] and len(row["images"]) == len(row["positive_messages"]) == 1
    positive, negative = ([said[0]["content"] for said in row[f"{side}_messages"]] for side in ("positive", "negative"))
    return row["images"][0], positive, negative


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_true_caption_is_a_negative_and_none_is_lost(layout: str) -> None:
    num_rows = num_relabelled = 0
    for seed in range(150):
        negatives, pool = negatives_of(seed)
        true, seen = true_texts(pool), set()
        num_relabelled += int((~negatives.is_negative_N).sum())
        for mined in mined_anchors(negatives, pool, images_mined=False):
            for row in maker(pool, layout, None).rows(mined):
                anchor, positives, others = sides(layout, row)
                image = int(anchor[1:-4])
                assert others and not {normalise(text) for text in others} & true[image]
                assert {normalise(text) for text in positives} <= true[image]
                seen |= {(image, text) for text in others}
                num_rows += 1
        mined_N = negatives.is_negative_N
        expected = zip(negatives.image_N[mined_N].tolist(), map(pool.text, negatives.captions_N[mined_N].tolist()), strict=True)
        assert seen == set(expected)
    assert num_rows > 150 and num_relabelled > 20


def test_a_table_that_the_data_now_contradict_is_refused() -> None:
    pool = CaptionPool(an_instance(0).pool.dataset)
    own = np.array([int(pool.dataset.caption_offsets[1])])
    offsets = np.array([0, 0, *[1] * (pool.dataset.num_images - 1)])
    table = Negatives("stale", offsets, own, np.array([1]), np.float32([0]), np.float32([0]))
    with pytest.raises(
        UserError, match=r"table stale: 1 mined pair\(s\) are true by the data as they are now, e.g. \[\('i001', 'i001#0'\)\]"
    ):
        list(mined_anchors(table, pool, images_mined=False))


@pytest.fixture(scope="module")
def mined(small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A run that mined captions, and one that mined images."""
    folder = tmp_path_factory.mktemp("mined")
    for form in ("columns", "images"):
        keys = {"mining__form": form} | ({"mining__weight": 0.5} if form == "columns" else {})
        path = small_world.write_config(folder / form, mining__margin=None, **keys)
        if form == "images":
            path.write_text(path.read_text().replace("  weight: 0.5\n", ""), encoding="utf-8")
        assert mining.main([str(path)]) == 0
    yield {form: folder / form / "runs" / "job" for form in ("columns", "images")}


def test_datasets_reads_triplets_and_tuples(mined: dict[str, Path], small_world: SmallWorld, tmp_path: Path) -> None:
    for number, columns, name in ((1, ["negative"], "t.jsonl"), (2, ["negative_1", "negative_2"], "t.parquet")):
        asked = [str(mined["columns"]), "--output", str(tmp_path / name), "--negatives", str(number)]
        assert triplets.main(asked) == 0
        kind = "json" if name.endswith("jsonl") else "parquet"
        found = datasets.load_dataset(kind, data_files=str(tmp_path / name), cache_dir=str(tmp_path / "cache"))["train"]
        assert found.column_names == ["anchor", "positive", *columns] and len(found) > 40
        data = load(small_world.manifest)
        image_of = {str(Path(data.path(image)).resolve()): image for image in range(data.num_images)}
        for row in found:
            image = image_of[row["anchor"]]
            own = data.captions[int(data.caption_offsets[image]) : int(data.caption_offsets[image + 1])]
            assert row["positive"] in own and not {row[column] for column in columns} & set(own)
        assert isinstance(found.cast_column("anchor", datasets.Image())[0]["anchor"], Image.Image)


def test_what_mine_wrote_for_a_checkpoint_and_pairs_gives_the_rows_of_a_run(
    mined: dict[str, Path], small_world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(small_world.manifest.parent)  # from where the data are named by a name alone
    rules = json.loads(json.dumps(yaml.safe_load((mined["columns"] / "config.yaml").read_text())["mining"]))
    keys = ("pool_top_k", "negatives_per_image", "rank_min", "rank_max", "margin")
    mine_pairs(str(small_world.base), small_world.manifest.name, tmp_path / "mined", rules={key: rules[key] for key in keys})
    monkeypatch.chdir(tmp_path)
    assert triplets.main(["mined", "--output", "a.jsonl"]) == triplets.main([str(mined["columns"]), "--output", "b.jsonl"]) == 0
    assert (tmp_path / "a.jsonl").read_text() == (tmp_path / "b.jsonl").read_text() != ""
    for suffix in ("jsonl", "parquet"):
        assert triplets.main(["mined", "--negatives", "500", "--output", f"none.{suffix}"]) == 2
        assert "not written, for nothing was mined that makes a row" in capsys.readouterr().err
        assert not (tmp_path / f"none.{suffix}").exists()
    tables = json.loads((tmp_path / "mined" / "pairs.json").read_text())
    mine_pairs(str(small_world.base), str(small_world.manifest), tmp_path / "mined", rules={"form": "images", "negatives_per_image": 2})
    assert len(json.loads((tmp_path / "mined" / "pairs.json").read_text())) == 2
    (first,) = tables
    assert triplets.main(["mined", "--table", first, "--output", "mined/again.parquet"]) == 0  # by its own rules, not by the last
    assert triplets.main(["mined", "--table", first, "--output", "again.jsonl"]) == 0
    assert (tmp_path / "again.jsonl").read_text() == (tmp_path / "a.jsonl").read_text()
    assert triplets.main(["mined", "--output", "images.jsonl"]) == 0, "what triplets wrote is no table"
    assert json.loads((tmp_path / "images.jsonl").read_text().splitlines()[0])["anchor"] in load(small_world.manifest).captions
    (tmp_path / "mined" / "pairs.json").write_text("[]")
    assert triplets.main(["mined", "--output", "c.jsonl"]) == 2
    assert "pairs.json: cannot be read as what was asked of a mining" in capsys.readouterr().err


def test_images_that_were_mined_are_the_negatives_of_captions(mined: dict[str, Path], small_world: SmallWorld, tmp_path: Path) -> None:
    data = load(small_world.manifest)
    texts = {normalise(text) for text in data.captions}
    paths = {str(Path(data.path(image)).resolve()): image for image in range(data.num_images)}
    for layout in LAYOUTS:
        output = tmp_path / f"{layout}.jsonl"
        assert triplets.main([str(mined["images"]), "--layout", layout, "--output", str(output)]) == 0
        rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
        assert len(rows) > 20
        for row in rows:
            if layout == "ms-swift":
                assert row.keys() == {"messages", "positive_messages", "positive_images", "negative_messages", "negative_images"}
                assert [len(one) for one in row["negative_images"]] == [1] * len(row["negative_messages"])
                anchor, positives, others = (
                    row["messages"][0]["content"],
                    row["positive_images"][0],
                    [one[0] for one in row["negative_images"]],
                )
            else:
                anchor, positives, others = sides(layout, row)
            assert normalise(anchor) in texts and len(positives) == 1
            hashes = data.caption_hash_C[[normalise(text) == normalise(anchor) for text in data.captions]]
            assert data.is_positive(np.array([paths[path] for path in positives]), hashes[:1]).all()
            assert not data.is_positive(np.array([paths[path] for path in others]), hashes[:1]).any()


def test_pictures_embedded_in_the_data_are_written(small_world: SmallWorld, tmp_path: Path) -> None:
    data = load(small_world.manifest)
    rows = [
        {"image": {"bytes": Path(data.path(image)).read_bytes(), "path": None}, "id": name, "captions": own, "split": "train"}
        for image, name in enumerate(data.image_ids)
        if (own := data.captions[int(data.caption_offsets[image]) : int(data.caption_offsets[image + 1])])
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    sizes = {"data__source": str(tmp_path / "pairs.parquet"), "data__val_split": None, "data__test_split": None}
    path = small_world.write_config(tmp_path, mining__margin=None, **sizes)
    assert mining.main([str(path)]) == 0
    assert triplets.main([str(tmp_path / "runs" / "job"), "--output", str(tmp_path / "t.jsonl")]) == 0
    anchors = {json.loads(line)["anchor"] for line in (tmp_path / "t.jsonl").read_text().splitlines()}
    assert all(Path(anchor).parent.name == "t-images" and Image.open(anchor).format == "PNG" for anchor in anchors)


def test_what_cannot_be_read_is_refused(mined: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert triplets.main([str(mined["columns"]), "--table", "0" * 16, "--output", str(tmp_path / "t.jsonl")]) == 2
    assert "no table '0000000000000000'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        triplets.main([str(mined["columns"]), "--output", str(tmp_path / "t.csv")])
    assert "expected a name that ends in one of .jsonl, .parquet" in capsys.readouterr().err
