"""train/mining/refresh.py on a real model: what it ranks, what is taken of it, and what its name says. The rules: test_rules.py."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eval.captions import normalise
from eval.dataset.retrieval_set import RetrievalSet
from eval.encoder.checkpoint import load_siglip
from eval.execution import Execution
from tests.small_job import SmallWorld, load, write_pictures
from tests.unit.train.mining.mining_oracle import dataset_of
from train.config.mining import MiningConfig
from train.data.caption_pool import AdditionalCaptions, CaptionPool
from train.data.negatives import Negatives
from train.mining.candidates import Candidates, Retriever
from train.mining.cross_encoder import MiningCrossEncoder
from train.mining.mine import Selector, mine
from train.mining.refresh import Refresh, rules_of
from train.mining.report import Mined, MiningReport, summarize


def chosen(dataset: RetrievalSet, logits: list[float], best: float, **keys: object) -> Mined:
    """What is mined where every image ranks captions 1, 2, 0 with these logits."""
    count = dataset.num_images
    found = Candidates(
        np.arange(count),
        np.array([[1, 2, 0]] * count),
        np.array([logits] * count, np.float32),
        np.full(count, best, np.float32),
        np.ones(count, bool),
    )
    config = MiningConfig.model_validate({"mine_every_steps": 1, **keys})
    return Selector(CaptionPool(dataset), np.float32(1), np.float32(0), config).select("m", found)


def three() -> RetrievalSet:
    return dataset_of([(["a dog"], None), (["a cat"], None), (["an owl"], None)])


def test_a_caption_exactly_at_the_margin_is_selected() -> None:
    mined = chosen(three(), [2.0, 1.0, 0.5], 2.0, margin=1.0)
    assert mined.negatives.of(0).tolist() == [2]
    assert summarize(mined, CaptionPool(three()), None, None).filtered_out["margin"] == 2


def test_the_ground_truth_counts_false_negatives_and_changes_nothing() -> None:
    dataset = three()
    mined, pool = chosen(dataset, [0.0, 0.0, 0.0], 1.0), CaptionPool(dataset)
    without = summarize(mined, pool, None, None)
    report = summarize(mined, pool, {("i000", "i001#0"), ("i002", "i002#0")}, None)
    assert without.num_false_negatives is None and without.false_negative_share is None
    assert report.num_false_negatives == 1 and report.false_negative_share == pytest.approx(1 / 6)
    assert report.as_record()["false_negative_share"] == report.false_negative_share and "false negatives" in " ".join(report.lines())


def mined_from(
    world: SmallWorld, dataset: RetrievalSet, pool: CaptionPool | None = None, options: dict[str, Any] | None = None, **keys: object
) -> tuple[Negatives, MiningReport]:
    model, inputs = load_siglip(world.base)
    config = MiningConfig.model_validate({"mine_every_steps": 1, **keys})
    return mine(Retriever(model, inputs), pool or CaptionPool(dataset), config, **(options or {}))


def test_mining_is_retrieval_by_the_model(small_world: SmallWorld) -> None:
    dataset = load(small_world.manifest)
    model, inputs = load_siglip(small_world.base)
    config = MiningConfig(mine_every_steps=1, negatives_per_image=3, margin=None)
    negatives, report = mine(Retriever(model, inputs), CaptionPool(dataset), config)
    assert report.num_mined == 3 * dataset.num_images and report.shortfall == 0
    from eval.encoder.encoder import embed_captions, embed_images

    logits = embed_images(model, inputs, dataset) @ embed_captions(model, inputs, dataset.captions).T
    logits = logits * float(model.logit_scale.detach().exp()) + float(model.logit_bias.detach())
    tokens = [tuple(ids) for ids in inputs.token_ids(list(dataset.captions)).tolist()]
    for image in range(dataset.num_images):
        taken = negatives.of(image)
        assert logits[image, taken] == pytest.approx(negatives.scores_N[negatives.offsets[image] : negatives.offsets[image + 1]], abs=1e-4)
        known = dataset.is_positive(np.array(image), dataset.caption_hash_C)
        texts = {normalise(dataset.captions[int(caption)]) for caption in taken}
        same = {tokens[caption] for caption in np.flatnonzero(known)}  # what is cut to the tokens of a positive is not mined either
        others = [c for c in np.flatnonzero(~known) if normalise(dataset.captions[int(c)]) not in texts and tokens[c] not in same]
        assert logits[image, others].max() <= logits[image, taken].min() + 1e-4


def test_pictures_that_do_not_decode_have_no_negatives(small_world: SmallWorld, tmp_path: Path) -> None:
    manifest = write_pictures(tmp_path)
    for number in (2, 11):
        (tmp_path / "pictures" / f"train-{number:03d}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    dataset = load(manifest)
    negatives, report = mined_from(small_world, dataset, margin=None)
    assert report.num_undecodable == 2 and report.num_images == 38
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
    model, inputs = load_siglip(small_world.base)
    half = Execution(precision="bf16")
    names.append(mine(Retriever(model, inputs), CaptionPool(dataset), MiningConfig(mine_every_steps=1), execution=half)[0].name)
    assert names[0] == names[1] and len(set(names)) == 5


class WordScorer:
    """A cross-encoder that reads the text alone: a caption with `word` is a match, a sure one where its length is even."""

    def __init__(self, word: str) -> None:
        self.name, self._word = "words", word
        self.fingerprint = hashlib.sha256(word.encode()).hexdigest()

    def score(self, image: Image.Image, captions: Sequence[str]) -> np.ndarray:
        """Margins."""
        assert image.size == (64, 64)
        return np.array([(9.0 if len(text) % 2 == 0 else 1.0) if self._word in text.lower() else -4.0 for text in captions], np.float32)


def test_what_each_table_is_named_after(small_world: SmallWorld) -> None:
    config = MiningConfig(mine_every_steps=1)
    pool = CaptionPool(load(small_world.manifest), AdditionalCaptions(["a fox"], np.array([1])))
    other = CaptionPool(pool.dataset, AdditionalCaptions(["a fox"], np.array([2])))
    random, softmax = (MiningConfig(mine_every_steps=1, selection=how) for how in ("random", "softmax"))
    denoise: list[dict[str, Any]] = [{}, {"threshold": 0.4}, {"mode": "relabel"}, {"mode": "relabel", "relabel_threshold": 0.8}]
    asking = [MiningConfig.model_validate({"mine_every_steps": 1, "denoise": keys}) for keys in denoise]
    rules = [
        rules_of(config),
        *(rules_of(config, Refresh(images_I=np.array(images))) for images in ([0, 1], [0, 2])),
        *(rules_of(config, pool=pool) for pool in (pool, other)),
        *(rules_of(drawn, Refresh(seed, step)) for drawn in (random, softmax) for seed in (0, 1) for step in (0, 1)),
        rules_of(MiningConfig(mine_every_steps=1, selection="softmax", temperature=2.0)),
        *(rules_of(asked, cross_encoder=WordScorer("red")) for asked in asking),
        rules_of(asking[0], cross_encoder=WordScorer("blue")),
        *(
            rules_of(config.model_copy(update={key: 2}))
            for key in ("rank_min", "rank_max", "max_score", "perc_pos", "margin_pos", "max_uses")
        ),
        rules_of(config.model_copy(update={"near_duplicates": True})),
    ]
    assert len({str(row) for row in rules}) == len(rules)
    # The seed, the step, the mining interval and the loss weight change nothing where no random number is used.
    assert rules_of(MiningConfig(mine_every_epochs=3, start_step=4, weight=2), Refresh(5, 6), pool=CaptionPool(pool.dataset)) == rules[0]


def test_a_window_mines_for_its_images_what_a_mining_for_all_does(small_world: SmallWorld) -> None:
    dataset = load(small_world.manifest)
    window = np.array([0, 3, 4, 39])
    whole, _ = mined_from(small_world, dataset, margin=None)
    part, report = mined_from(small_world, dataset, options={"refresh": Refresh(images_I=window)}, margin=None)
    assert [image for image in range(40) if len(part.of(image))] == window.tolist() and report.num_images == 4
    assert all(part.of(image).tolist() == whole.of(image).tolist() for image in window) and part.name != whole.name


def test_captions_of_the_pool_are_mined_and_none_that_is_true(small_world: SmallWorld) -> None:
    dataset = load(small_world.manifest)
    own = [dataset.captions[int(dataset.caption_offsets[image])] for image in range(3)]
    texts = [own[0].upper(), f"there is {own[1].removeprefix('a ')}", "a red circle at the left", "bar", own[2] + " ."]
    pool = CaptionPool(dataset, AdditionalCaptions(texts, np.arange(1, 6)))
    keys: dict[str, Any] = {"margin": None, "negatives_per_image": 30, "near_duplicates": True}
    negatives, report = mined_from(small_world, dataset, pool, **keys)
    assert report.num_positives_mined == 0 and report.filtered_out["known_positive"] > 0 and report.filtered_out["near_duplicate"] > 0
    assert (negatives.captions_N >= dataset.num_captions).any()
    for image in range(3):
        taken = {normalise(pool.text(int(caption))) for caption in negatives.of(image)}
        assert normalise(texts[(0, 1, 4)[image]]) not in taken
    alone, _ = mined_from(small_world, dataset, **keys)
    assert alone.name != negatives.name


@pytest.mark.parametrize("mode", ["drop", "relabel"])
def test_denoising_asks_the_cross_encoder(small_world: SmallWorld, mode: str) -> None:
    dataset = load(small_world.manifest)
    plain, _ = mined_from(small_world, dataset, margin=None, max_uses=9)
    with pytest.raises(ValueError, match="if and only if"):
        mined_from(small_world, dataset, denoise={"mode": mode})
    matcher = WordScorer("red")
    negatives, report = mined_from(
        small_world,
        dataset,
        options={"cross_encoder": MiningCrossEncoder(matcher, CaptionPool(dataset))},
        margin=None,
        max_uses=9,
        denoise={"mode": mode},
    )
    texts = [dataset.captions[int(caption)] for caption in negatives.captions_N]
    is_red = np.array(["red" in text.lower() for text in texts])
    assert is_red.tolist() == (~negatives.is_negative_N).tolist() and report.filtered_out["match"] > 0
    assert any("red" in dataset.captions[int(caption)].lower() for caption in plain.captions_N)
    assert is_red.any() == (mode == "relabel") and report.num_relabelled == is_red.sum()
    assert all(len(text) % 2 == 0 for text, red in zip(texts, is_red, strict=True) if red)
    assert negatives.match_N is not None and negatives.match_N[~is_red] == pytest.approx(1 / (1 + np.exp(4.0)))
    assert report.estimated_share == pytest.approx(1 / (1 + np.exp(4.0)))
    assert report.num_judged >= report.num_mined + report.num_relabelled


def test_the_report_counts_what_survived_the_last_refresh() -> None:
    dataset = three()
    mined = chosen(dataset, [0.0, 0.0, 0.0], 1.0, negatives_per_image=1)  # 1 for images 0 and 2, 2 for image 1
    before = replace(mined.negatives, captions_N=np.array([1, 0, 1]), relabelled_N=np.array([False, False, True]))
    report = summarize(mined, CaptionPool(dataset), None, before)
    assert (report.num_before, report.num_survived) == (2, 1)
    assert "1 of 2 negatives of the previous table are mined again" in report.lines()
    of_one = replace(mined, found=replace(mined.found, queries_Q=np.array([1])))
    assert summarize(of_one, CaptionPool(dataset), None, before).num_before == 1
    first = summarize(mined, CaptionPool(dataset), None, None)
    assert (first.num_before, first.num_survived) == (None, None)


def test_the_reports_quantiles_and_no_estimate_without_a_cross_encoder() -> None:
    mined = chosen(three(), [-1.0, -2.0, -3.0], 0.5, negatives_per_image=2)
    report = summarize(mined, CaptionPool(three()), None, None)
    scores = [-1, -2, -2, -3, -1, -3]  # own captions are filtered out: image 0 has caption 0, image 1 caption 1, image 2 caption 2
    assert report.quantiles["negative"]["50%"] == np.median(scores) and report.quantiles["positive"]["95%"] == 0.5
    assert report.quantiles["margin"]["5%"] == pytest.approx(np.quantile(0.5 - np.array(scores), 0.05))
    assert report.estimated_share is None and "estimated" not in " ".join(report.lines())  # without a cross-encoder nothing is guessed
