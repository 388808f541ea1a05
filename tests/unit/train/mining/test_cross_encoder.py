"""train/mining/cross_encoder.py: teacher logits of a table's pairs: each pair is scored once, stored in the table and passed to
the step."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eval.dataset.retrieval_set import RetrievalSet
from eval.encoder.checkpoint import load_siglip
from eval.processes import Processes
from tests.small_job import SmallWorld, load, write_pictures
from train.config.mining import MiningConfig
from train.data.batches import Batch, BatchBuilder
from train.data.caption_pool import AdditionalCaptions, CaptionPool
from train.data.negatives import Negatives, read_negatives, write_negatives
from train.data.order import BatchOrder, chosen_caption
from train.mining.candidates import Retriever
from train.mining.cross_encoder import MiningCrossEncoder
from train.mining.mine import mine
from train.mining.refresh import rules_of
from train.mining.report import MiningReport
from train.mining.report_page import page


def margin_of(image: Image.Image, text: str) -> float:
    """The score of the scorer below, from the image's background and the caption's letters, so that pairs differ."""
    return (image.getpixel((0, 0))[0] * 7 + 13 * len(text) + sum(map(ord, text))) % 41 / 4 - 5  # type: ignore[index,operator]


class CountingScorer:
    """A cross-encoder that returns `margin_of` and counts how often it scores each pair."""

    def __init__(self, fingerprint: str = "ab") -> None:
        self.name, self.fingerprint = "counting", fingerprint
        self.asked: Counter[tuple[bytes, str]] = Counter()

    def score(self, image: Image.Image, captions: Sequence[str]) -> np.ndarray:
        """Margins."""
        self.asked.update((image.tobytes(), text) for text in captions)
        return np.array([margin_of(image, text) for text in captions], np.float32)


def mined(
    world: SmallWorld, pool: CaptionPool, distil: dict[str, Any], scorer: CountingScorer, **keys: Any
) -> tuple[Negatives, MiningReport]:
    model, inputs = load_siglip(world.base)
    config = MiningConfig.model_validate({"mine_every_steps": 1, "negatives_per_image": 3, "margin": None, "distil": distil, **keys})
    return mine(Retriever(model, inputs), pool, config, cross_encoder=MiningCrossEncoder(scorer, pool))


@pytest.fixture(scope="module")
def pool(small_world: SmallWorld) -> CaptionPool:
    return CaptionPool(load(small_world.manifest), AdditionalCaptions(["a fox", "a red thing"], np.array([4, 9])))


@pytest.mark.parametrize("denoise", [None, {"threshold": 0.6}, {"mode": "relabel", "threshold": 0.6, "relabel_threshold": 0.9}], ids=str)
@pytest.mark.parametrize("form", ["labels", "lists"])
def test_every_row_has_the_teachers_logit_and_no_pair_is_scored_twice(
    small_world: SmallWorld, pool: CaptionPool, form: str, denoise: dict[str, Any] | None
) -> None:
    scorer, dataset = CountingScorer(), pool.dataset
    table, report = mined(small_world, pool, {"form": form}, scorer, denoise=denoise)
    assert table.teacher_logits_N is not None and table.match_N is not None and len(table) >= 3 * dataset.num_images
    pictures = [dataset.load_image(image) for image in range(dataset.num_images)]
    expected_N = [margin_of(pictures[i], pool.text(c)) for i, c in zip(table.image_N.tolist(), table.captions_N.tolist(), strict=True)]
    assert table.teacher_logits_N.tolist() == expected_N
    assert table.match_N == pytest.approx(1 / (1 + np.exp(-table.teacher_logits_N)), rel=1e-6)
    if denoise is not None:  # what scores as a match was filtered out or relabelled
        assert (table.match_N[table.is_negative_N] < 0.6).all()
    if form == "labels":
        assert table.own_teacher_logits_C is None
    else:
        assert table.own_teacher_logits_C is not None
        owner = dataset.caption_image_C
        expected_C = [margin_of(pictures[owner[c]], dataset.captions[c]) for c in range(dataset.num_captions)]
        assert table.own_teacher_logits_C.tolist() == expected_C
    assert set(scorer.asked.values()) == {1} and report.num_judged == scorer.asked.total()


def test_only_own_captions_of_images_with_mined_ones_are_scored(small_world: SmallWorld, tmp_path: Path) -> None:
    manifest = write_pictures(tmp_path)
    (tmp_path / "pictures" / "train-002.png").write_bytes(b"no picture")
    dataset = load(manifest)
    table, _ = mined(small_world, CaptionPool(dataset), {"form": "lists"}, CountingScorer())
    broken = list(dataset.image_ids).index("pictures/train-002.png")
    assert table.own_teacher_logits_C is not None
    assert np.flatnonzero(np.isnan(table.own_teacher_logits_C)).tolist() == np.flatnonzero(dataset.caption_image_C == broken).tolist()


def test_what_a_table_is_named_after_and_what_belongs_to_the_loss(small_world: SmallWorld) -> None:
    def rules(distil: dict[str, Any] | None, scorer: CountingScorer | None = None) -> Any:
        return rules_of(MiningConfig.model_validate({"mine_every_steps": 1, "distil": distil}), cross_encoder=scorer)

    one, other = CountingScorer("ab"), CountingScorer("cd")
    named = [rules(None), rules({}, one), rules({}, other), rules({"form": "lists"}, one)]
    assert len({str(row) for row in named}) == 4
    assert rules({"strength": 0.5, "temperature": 3.0}, one) == named[1]
    pool = CaptionPool(load(small_world.manifest))
    names = [mined(small_world, pool, distil, scorer)[0].name for distil, scorer in (({}, one), ({}, other), ({"form": "lists"}, one))]
    assert len(set(names)) == 3
    model, inputs = load_siglip(small_world.base)
    with pytest.raises(ValueError, match="if and only if config.denoise or config.distil"):
        mine(Retriever(model, inputs), pool, MiningConfig.model_validate({"mine_every_steps": 1, "distil": {}}))


@pytest.mark.parametrize("form", ["labels", "lists"])
def test_the_table_comes_back_as_it_was(small_world: SmallWorld, pool: CaptionPool, tmp_path: Path, form: str) -> None:
    table, _ = mined(small_world, pool, {"form": form}, CountingScorer(), denoise={"mode": "relabel", "threshold": 0.7})
    assert table.doubtful_2D is not None and table.relabelled_N is not None
    write_negatives(tmp_path / "t.parquet", table, pool)
    again = read_negatives(tmp_path / "t.parquet", table.name, pool)
    for name, value in vars(table).items():
        found = getattr(again, name)
        assert np.array_equal(found, value) and (not isinstance(value, np.ndarray) or found.dtype == value.dtype), name
    if table.own_teacher_logits_C is not None:  # an image without mined captions has none of its own either
        table.own_teacher_logits_C[:5] = np.nan
        write_negatives(tmp_path / "u.parquet", table, pool)
        found = read_negatives(tmp_path / "u.parquet", table.name, pool).own_teacher_logits_C
        assert np.array_equal(found, table.own_teacher_logits_C, equal_nan=True)


def batch_of(dataset: RetrievalSet, table: Negatives | None, inputs: Any, rank: int = 0) -> Batch:
    made = BatchBuilder(CaptionPool(dataset), inputs, BatchOrder(dataset.num_images, 8, 3), Processes(rank, 2), negatives=table)[2]
    assert isinstance(made, Batch)
    return made


def test_a_batch_holds_the_logits_of_its_own_pairs(small_world: SmallWorld) -> None:
    dataset, (_, inputs) = load(small_world.manifest), load_siglip(small_world.base)
    table, _ = mined(small_world, CaptionPool(dataset), {"form": "lists"}, CountingScorer())
    pictures = [dataset.load_image(image) for image in range(dataset.num_images)]
    for rank in (0, 1):
        batch = batch_of(dataset, table, inputs, rank)
        assert batch.teacher_logits_m is not None and batch.teacher_logits_c is not None
        images, captions = batch.images_b.tolist(), batch.captions_c.tolist()
        assert captions == [chosen_caption(dataset, image, 0, 3) for image in images]
        own = [margin_of(pictures[i], dataset.captions[c]) for i, c in zip(images, captions, strict=True)]
        of_mined = [
            margin_of(pictures[images[row]], dataset.captions[c])
            for row, c in zip(batch.mined_rows_m.tolist(), batch.mined_captions_m.tolist(), strict=True)
        ]
        assert batch.teacher_logits_c.tolist() == own and batch.teacher_logits_m.tolist() == of_mined
    labels = batch_of(dataset, replace(table, own_teacher_logits_C=None), inputs)
    assert labels.teacher_logits_m is not None and labels.teacher_logits_c is None
    for plain in (None, replace(table, teacher_logits_N=None)):
        assert batch_of(dataset, plain, inputs).teacher_logits_m is None


def test_the_report_shows_quantiles_of_the_probability(small_world: SmallWorld, pool: CaptionPool) -> None:
    table, report = mined(small_world, pool, {}, CountingScorer())
    assert table.match_N is not None
    assert list(report.match_quantiles) == ["5%", "25%", "50%", "75%", "95%"]
    assert list(report.match_quantiles.values()) == pytest.approx(np.quantile(table.match_N, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist())
    assert report.lines()[-1].startswith("match") and report.estimated_share is not None
    assert report.as_record()["match_quantiles"] == report.match_quantiles
    middle = f'<td class="count">{report.match_quantiles["50%"]:.4f}</td>'
    assert 'id="match"' in page(report, table, pool) and middle in page(report, table, pool)
    assert 'id="match"' not in page(replace(report, match_quantiles={}), table, pool)
