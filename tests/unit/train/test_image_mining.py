"""train/image_mining.py against brute force: which images are taken for a caption, what is passed over, and why."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.captions import normalise
from eval.checkpoint import load_siglip
from eval.dataset import RetrievalSet
from eval.encoder import embed_captions, embed_images
from eval.manifest import ManifestImage
from tests.small_job import SmallWorld, load, write_pictures
from train.config import MiningConfig
from train.image_mining import ImageSheet, find_image_candidates, mine_images, select_images
from train.mining import mine
from train.negatives import Negatives, read_negatives, write_negatives

TEXTS = ["a dog", "A dog.", "a cat", "the CAT", "two birds", "an owl", "a fox"]
COUNTS = ("num_looked_at", "num_known_positives", "num_within_margin", "num_same_group", "num_mined")


def dataset_of(images: list[tuple[list[str], str | None]]) -> RetrievalSet:
    """A split without pictures."""
    rows = [
        ManifestImage(f"i{number:03d}", None, Path("none"), None, 0, group, list(words), "made")
        for number, (words, group) in enumerate(images)
    ]
    return RetrievalSet(rows, None, source="made", split=None)


@st.composite
def instances(draw: st.DrawFn) -> tuple[RetrievalSet, np.ndarray, np.ndarray, np.ndarray, MiningConfig, np.ndarray]:
    words = st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3)
    dataset = dataset_of(draw(st.lists(st.tuples(words, st.sampled_from([None, "g", "h"])), min_size=1, max_size=8)))
    draws = np.random.default_rng(draw(st.integers(0, 10_000)))
    depth = draw(st.integers(1, dataset.num_images))
    candidates = np.stack([draws.permutation(dataset.num_images)[:depth] for _ in range(dataset.num_captions)])
    logits = -np.sort(-draws.integers(-6, 7, candidates.shape), axis=1).astype(np.float32) / 2  # coarse: ties and exact margins happen
    best = draws.integers(-6, 7, dataset.num_captions).astype(np.float32) / 2
    best[draws.random(dataset.num_captions) < 0.1] = -np.inf
    margin = draw(st.sampled_from([None, 0.0, 0.5, 2.0, -1.0]))
    config = MiningConfig(mine_every_steps=1, negatives_per_image=draw(st.integers(1, 4)), margin=margin, form="images")
    return dataset, candidates, logits, best, config, draws.random(dataset.num_images) < 0.8


def by_hand(
    dataset: RetrievalSet, caption: int, ranked: list[int], logits: list[float], best: float, config: MiningConfig, decodable: np.ndarray
) -> tuple[list[int], dict[str, int]]:
    """The rules one candidate at a time, by the words of the captions: the places taken, and the counts."""
    groups = dataset.group_names() or [None] * dataset.num_images
    true_of = [
        {
            normalise(dataset.captions[c])
            for c, owner in enumerate(dataset.caption_image_C.tolist())
            if owner == image or (groups[image] is not None and groups[owner] == groups[image])
        }
        for image in range(dataset.num_images)
    ]
    taken: list[int] = []
    counts = dict.fromkeys(COUNTS, 0)
    for place, (image, logit) in enumerate(zip(ranked, logits, strict=True)):
        if len(taken) == config.negatives_per_image or best == -np.inf:
            break
        if not decodable[image]:
            continue
        counts["num_looked_at"] += 1
        if normalise(dataset.captions[caption]) in true_of[image]:
            counts["num_known_positives"] += 1
        elif config.margin is not None and np.float32(best) - np.float32(logit) < config.margin:
            counts["num_within_margin"] += 1
        elif groups[image] is not None and groups[image] in {groups[ranked[other]] for other in taken}:
            counts["num_same_group"] += 1
        else:
            taken.append(place)
    counts["num_mined"] = len(taken)
    return taken, counts


@settings(max_examples=300, deadline=None)
@given(instances())
def test_select_is_brute_force(instance: tuple[RetrievalSet, np.ndarray, np.ndarray, np.ndarray, MiningConfig, np.ndarray]) -> None:
    dataset, candidates, logits, best, config, decodable = instance
    table, sheet = select_images("made", dataset, candidates, logits, best, config, decodable_I=decodable)
    expected: set[tuple[int, int, int, float, float]] = set()
    counts, missing = dict.fromkeys(COUNTS, 0), []
    for caption in range(dataset.num_captions):
        taken, found = by_hand(
            dataset, caption, candidates[caption].tolist(), logits[caption].tolist(), float(best[caption]), config, decodable
        )
        counts = {key: counts[key] + found[key] for key in COUNTS}
        missing.append(config.negatives_per_image - len(taken) if best[caption] != -np.inf else 0)
        for place in taken:
            score = float(logits[caption, place])
            expected.add((int(candidates[caption, place]), caption, place + 1, score, float(best[caption]) - score))
    columns = (table.image_N, table.captions_N, table.ranks_N, table.scores_N, table.margins_N)
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    assert rows == sorted(rows) and set(rows) == expected and len(rows) == len(expected)
    assert {key: getattr(sheet, key) for key in COUNTS} == counts
    assert sheet.num_positives_mined == 0
    assert (sheet.shortfall, sheet.num_short_captions) == (sum(missing), sum(count > 0 for count in missing))
    assert (sheet.num_captions, sheet.num_undecodable) == (int((best != -np.inf).sum()), int((~decodable).sum()))


def test_the_truth_counts_false_negatives_and_changes_nothing() -> None:
    dataset = dataset_of([(["a dog"], None), (["a cat"], None), (["an owl"], None)])
    arguments = (np.array([[1, 2, 0]] * 3), np.zeros((3, 3), np.float32), np.ones(3, np.float32), MiningConfig(mine_every_steps=1))
    plain, without = select_images("m", dataset, *arguments, decodable_I=np.ones(3, bool))
    truth = {("i000", "i001#0"), ("i002", "i002#0")}
    table, sheet = select_images("m", dataset, *arguments, decodable_I=np.ones(3, bool), truth=truth)
    assert without.false_negative_share is None and "false negatives" not in str(without)
    assert table.captions_N.tolist() == plain.captions_N.tolist()
    assert sheet.num_false_negatives == 1 and sheet.as_record()["false_negative_share"] == pytest.approx(1 / 6)
    assert "false negatives by the known truth: 1 (16.67%)" in str(sheet)


def mined_from(world: SmallWorld, dataset: RetrievalSet, **keys: object) -> tuple[Negatives, ImageSheet]:
    model, inputs = load_siglip(world.base)
    config = MiningConfig.model_validate({"mine_every_steps": 1, "form": "images", **keys})
    return mine_images(model, inputs, dataset, config, data_sha256=dataset.sha256())


def test_mining_is_the_captions_own_retrieval(small_world: SmallWorld, tmp_path: Path) -> None:
    dataset = load(small_world.manifest)
    model, inputs = load_siglip(small_world.base)
    table, sheet = mined_from(small_world, dataset, negatives_per_image=3, margin=None)
    assert sheet.num_mined == 3 * dataset.num_captions and sheet.shortfall == 0
    logits_CI = embed_captions(model, inputs, dataset.captions) @ embed_images(model, inputs, dataset).T
    logits_CI = logits_CI * float(model.logit_scale.detach().exp()) + float(model.logit_bias.detach())
    for caption in range(dataset.num_captions):
        rows = np.flatnonzero(table.captions_N == caption)
        taken = table.image_N[rows]
        assert logits_CI[caption, taken] == pytest.approx(table.scores_N[rows], abs=1e-4)
        true = dataset.is_positive(np.arange(dataset.num_images), dataset.caption_hash_C[caption])
        assert table.margins_N[rows] == pytest.approx(logits_CI[caption, true].max() - table.scores_N[rows], abs=1e-4)
        others = np.flatnonzero(~true & ~np.isin(dataset.group_I, dataset.group_I[taken]))
        assert logits_CI[caption, others].max() <= logits_CI[caption, taken].min() + 1e-4
    write_negatives(tmp_path / "t.parquet", table, dataset)
    again = read_negatives(tmp_path / "t.parquet", table.name, dataset)
    assert all(np.array_equal(value, getattr(again, key)) for key, value in vars(table).items())


def test_pictures_that_do_not_decode_are_never_mined(small_world: SmallWorld, tmp_path: Path) -> None:
    manifest = write_pictures(tmp_path)
    for number in (8, 11):
        (tmp_path / "pictures" / f"train-{number:03d}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    dataset = load(manifest)
    table, sheet = mined_from(small_world, dataset, margin=None, negatives_per_image=37, pool_top_k=40)
    broken = [list(dataset.image_ids).index(f"pictures/train-{number:03d}.png") for number in (8, 11)]
    assert sheet.num_undecodable == 2 and not np.isin(table.image_N, broken).any()
    true_elsewhere = [
        bool(np.delete(dataset.is_positive(np.arange(dataset.num_images), key), broken).any()) for key in dataset.caption_hash_C
    ]
    assert not all(true_elsewhere) and sheet.num_captions == sum(true_elsewhere)
    assert set(table.captions_N.tolist()) == set(np.flatnonzero(true_elsewhere).tolist())
    model, inputs = load_siglip(small_world.base)
    assert np.isfinite(find_image_candidates(model, inputs, dataset, 9).best_positive_C).tolist() == true_elsewhere


def test_the_name_is_not_that_of_the_table_of_captions(small_world: SmallWorld) -> None:
    dataset = load(small_world.manifest)
    model, inputs = load_siglip(small_world.base)
    captions = mine(model, inputs, dataset, MiningConfig(mine_every_steps=1), data_sha256=dataset.sha256())[0].name
    neighbours = MiningConfig(mine_every_steps=1, form="neighbours")
    assert mine(model, inputs, dataset, neighbours, data_sha256=dataset.sha256())[0].name == captions  # the same table, used otherwise
    assert len({captions, mined_from(small_world, dataset)[0].name, mined_from(small_world, dataset, margin=2.0)[0].name}) == 3
