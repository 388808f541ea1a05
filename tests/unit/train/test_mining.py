"""train/mining.py against brute force: what is taken, what is passed over, and why."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.captions import normalise
from eval.checkpoint import load_siglip
from eval.dataset import RetrievalSet
from eval.manifest import ManifestImage
from tests.small_job import SmallWorld, load, write_pictures
from train.config import MiningConfig
from train.mining import MiningSheet, mine, rules_of, select

TEXTS = ["a dog", "A dog.", "a cat", "the CAT", "the cat", "a bird", "two birds", "an owl", "owl", "a fox"]


def dataset_of(images: list[tuple[list[str], str | None]]) -> RetrievalSet:
    """A split without pictures."""
    rows = [
        ManifestImage(f"i{number:03d}", None, Path("none"), None, 0, group, list(captions), "made")
        for number, (captions, group) in enumerate(images)
    ]
    return RetrievalSet(rows, None, source="made", split=None)


@dataclass(frozen=True)
class Expected:
    """What brute force finds for one image."""

    taken: list[int]
    known: int
    close: int
    same: int
    looked: int


def by_hand(dataset: RetrievalSet, image: int, ranked: list[int], logits: list[float], best: float, config: MiningConfig) -> Expected:
    """The rules one candidate at a time, by the words of the captions."""
    groups = dataset.group_names() or [None] * dataset.num_images
    mates = [j for j in range(dataset.num_images) if j == image or (groups[image] is not None and groups[j] == groups[image])]
    true = {
        normalise(dataset.captions[c]) for j in mates for c in range(int(dataset.caption_offsets[j]), int(dataset.caption_offsets[j + 1]))
    }
    taken: list[int] = []
    texts: set[str] = set()
    known = close = same = looked = 0
    for caption, logit in zip(ranked, logits, strict=True):
        if len(taken) == config.negatives_per_image:
            break
        looked += 1
        text = normalise(dataset.captions[caption])
        if text in true:
            known += 1
        elif config.margin is not None and np.float32(best) - np.float32(logit) < config.margin:
            close += 1
        elif text in texts:
            same += 1
        else:
            taken.append(caption)
            texts.add(text)
    return Expected(taken, known, close, same, looked)


@st.composite
def instances(draw: st.DrawFn) -> tuple[RetrievalSet, np.ndarray, np.ndarray, np.ndarray, MiningConfig, np.ndarray]:
    images = draw(
        st.lists(
            st.tuples(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=4), st.sampled_from([None, "g", "h"])), min_size=1, max_size=7
        )
    )
    dataset = dataset_of(images)
    depth = draw(st.integers(1, dataset.num_captions))
    seed = draw(st.integers(0, 10_000))
    draws = np.random.default_rng(seed)
    candidates = np.stack([draws.permutation(dataset.num_captions)[:depth] for _ in range(dataset.num_images)])
    # Coarse logits, so that ties and exact margins happen.
    logits = -np.sort(-draws.integers(-6, 7, candidates.shape), axis=1).astype(np.float32) / 2
    best = draws.integers(-6, 7, dataset.num_images).astype(np.float32) / 2
    per_image = draw(st.integers(1, 5))
    margin = draw(st.sampled_from([None, 0.0, 0.5, 2.0, -1.0]))
    config = MiningConfig(mine_every_steps=1, negatives_per_image=per_image, margin=margin)
    decodable = draws.random(dataset.num_images) < 0.8
    return dataset, candidates, logits, best, config, decodable


@settings(max_examples=300, deadline=None)
@given(instances())
def test_select_is_brute_force(instance: tuple[RetrievalSet, np.ndarray, np.ndarray, np.ndarray, MiningConfig, np.ndarray]) -> None:
    dataset, candidates, logits, best, config, decodable = instance
    negatives, sheet = select("made", dataset, candidates, logits, best, config, decodable_I=decodable)
    nothing = Expected([], 0, 0, 0, 0)
    expected = [
        by_hand(dataset, image, candidates[image].tolist(), logits[image].tolist(), float(best[image]), config)
        if decodable[image]
        else nothing
        for image in range(dataset.num_images)
    ]
    for image, row in enumerate(expected):
        assert negatives.of(image).tolist() == row.taken
        part = slice(int(negatives.offsets[image]), int(negatives.offsets[image + 1]))
        places = [candidates[image].tolist().index(caption) for caption in row.taken]
        assert negatives.ranks_N[part].tolist() == [place + 1 for place in places]
        assert negatives.scores_N[part].tolist() == logits[image, places].tolist()
        assert negatives.margins_N[part].tolist() == (best[image] - logits[image, places]).tolist()
    missing = [config.negatives_per_image - len(row.taken) if decodable[image] else 0 for image, row in enumerate(expected)]
    assert sheet.num_positives_mined == 0
    assert not dataset.is_positive(negatives.image_N, dataset.caption_hash_C[negatives.captions_N]).any()
    assert (sheet.num_mined, sheet.num_looked_at) == (sum(len(row.taken) for row in expected), sum(row.looked for row in expected))
    assert sheet.num_known_positives == sum(row.known for row in expected)
    assert sheet.num_within_margin == sum(row.close for row in expected)
    assert sheet.num_same_text == sum(row.same for row in expected)
    assert sheet.num_looked_at == sheet.num_mined + sheet.num_known_positives + sheet.num_within_margin + sheet.num_same_text
    assert (sheet.shortfall, sheet.num_short_images) == (sum(missing), sum(count > 0 for count in missing))
    assert (sheet.num_images, sheet.num_undecodable) == (int(decodable.sum()), int((~decodable).sum()))


def test_a_caption_exactly_at_the_margin_is_taken() -> None:
    dataset = dataset_of([(["a dog"], None), (["a cat"], None), (["an owl"], None)])
    candidates, logits = np.array([[1, 2, 0]] * 3), np.array([[2.0, 1.0, 0.5]] * 3, dtype=np.float32)
    config = MiningConfig(mine_every_steps=1, margin=1.0)
    negatives, sheet = select("m", dataset, candidates, logits, np.full(3, 2.0, np.float32), config, decodable_I=np.ones(3, bool))
    assert negatives.of(0).tolist() == [2] and sheet.num_within_margin == 2


def test_the_truth_counts_false_negatives_and_changes_nothing() -> None:
    dataset = dataset_of([(["a dog"], None), (["a cat"], None), (["an owl"], None)])
    arguments = (np.array([[1, 2, 0]] * 3), np.zeros((3, 3), np.float32), np.ones(3, np.float32), MiningConfig(mine_every_steps=1))
    plain, without = select("m", dataset, *arguments, decodable_I=np.ones(3, bool))
    negatives, sheet = select("m", dataset, *arguments, decodable_I=np.ones(3, bool), truth={("i000", "i001#0"), ("i002", "i002#0")})
    assert without.num_false_negatives is None and without.false_negative_share is None
    assert negatives.captions_N.tolist() == plain.captions_N.tolist()
    assert sheet.num_false_negatives == 1 and sheet.false_negative_share == pytest.approx(1 / 6)
    assert sheet.as_record()["false_negative_share"] == sheet.false_negative_share and "false negatives" in str(sheet)


def mined_from(world: SmallWorld, dataset: RetrievalSet, **keys: object) -> tuple[object, MiningSheet]:
    model, inputs = load_siglip(world.base)
    config = MiningConfig.model_validate({"mine_every_steps": 1, **keys})
    return mine(model, inputs, dataset, config, data_sha256=dataset.sha256())


def test_mining_is_the_models_own_retrieval(small_world: SmallWorld) -> None:
    dataset = load(small_world.manifest)
    model, inputs = load_siglip(small_world.base)
    config = MiningConfig(mine_every_steps=1, negatives_per_image=3, margin=None)
    negatives, sheet = mine(model, inputs, dataset, config, data_sha256=dataset.sha256())
    assert sheet.num_mined == 3 * dataset.num_images and sheet.shortfall == 0
    from eval.encoder import embed_captions, embed_images

    logits = embed_images(model, inputs, dataset) @ embed_captions(model, inputs, dataset.captions).T
    logits = logits * float(model.logit_scale.detach().exp()) + float(model.logit_bias.detach())
    for image in range(dataset.num_images):
        taken = negatives.of(image)
        assert logits[image, taken] == pytest.approx(negatives.scores_N[negatives.offsets[image] : negatives.offsets[image + 1]], abs=1e-4)
        known = dataset.is_positive(np.array(image), dataset.caption_hash_C)
        texts = {normalise(dataset.captions[int(caption)]) for caption in taken}
        others = [c for c in np.flatnonzero(~known) if normalise(dataset.captions[int(c)]) not in texts]
        assert logits[image, others].max() <= logits[image, taken].min() + 1e-4


def test_pictures_that_do_not_decode_have_no_negatives(small_world: SmallWorld, tmp_path: Path) -> None:
    manifest = write_pictures(tmp_path)
    for number in (2, 11):
        (tmp_path / "pictures" / f"train-{number:03d}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    dataset = load(manifest)
    negatives, sheet = mined_from(small_world, dataset, margin=None)
    assert sheet.num_undecodable == 2 and sheet.num_images == 38
    counts = np.diff(negatives.offsets)
    broken = [list(dataset.image_ids).index(f"pictures/train-{number:03d}.png") for number in (2, 11)]
    assert counts[broken].tolist() == [0, 0] and (np.delete(counts, broken) == 4).all()


def test_the_name_follows_from_weights_data_and_rules_but_not_from_the_weight(small_world: SmallWorld, tmp_path: Path) -> None:
    dataset = load(small_world.manifest)
    other = load(write_pictures(tmp_path, seed=1))
    names = [
        mined_from(small_world, dataset, **keys)[1].name
        for keys in ({}, {"weight": 0.1, "mined_scope": "all"}, {"margin": 2.0}, {"pool_top_k": 9})
    ]
    names.append(mined_from(small_world, other)[1].name)
    assert names[0] == names[1] and len(set(names)) == 4
    assert rules_of(MiningConfig(mine_every_steps=1)) == {"negatives_per_image": 4, "margin": 0.0, "pool_top_k": 64}
