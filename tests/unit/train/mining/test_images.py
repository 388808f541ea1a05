"""train/mining/mine.py against brute force: which images are selected for a caption, and which rule filters out the others."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.captions import near_duplicate_key, normalise
from eval.dataset.retrieval_set import RetrievalSet
from eval.encoder.checkpoint import load_siglip
from eval.encoder.encoder import embed_captions, embed_images
from tests.small_job import SmallWorld, load, write_pictures
from tests.unit.train.mining.mining_oracle import dataset_of
from train.config.mining import MiningConfig
from train.data.caption_pool import CaptionPool
from train.data.negatives import Negatives, read_negatives, write_negatives
from train.mining.candidates import Candidates, Retriever, find_candidates
from train.mining.mine import Selector, mine
from train.mining.refresh import Refresh
from train.mining.report import MiningReport, summarize

TEXTS = ["a dog", "A dog.", "the dog", "a cat", "two birds", "an owl", "a fox"]


@dataclass
class Instance:
    """One small mining; `match` holds the cross-encoder's probability of every (image, caption)."""

    dataset: RetrievalSet
    found: Candidates
    config: MiningConfig
    match: np.ndarray

    def rule_of(self, row: int, place: int) -> str | None:
        """The first rule that filters a candidate out by itself, by the text of the captions."""
        config, found, dataset = self.config, self.found, self.dataset
        groups = dataset.group_names() or [None] * dataset.num_images
        image, text = int(found.items_QK[row, place]), dataset.captions[int(found.queries_Q[row])]
        true = [
            dataset.captions[c]
            for c, owner in enumerate(dataset.caption_image_C.tolist())
            if owner == image or (groups[image] is not None and groups[owner] == groups[image])
        ]
        if normalise(text) in {normalise(other) for other in true}:
            return "known_positive"
        if config.near_duplicates and near_duplicate_key(text) in {near_duplicate_key(other) for other in true}:
            return "near_duplicate"
        if place + 1 < config.rank_min:
            return "rank_min"
        if config.margin is not None and found.best_positive_Q[row] - found.cosines_QK[row, place] < config.margin:
            return "margin"
        return None

    def solve(self) -> "Expected":
        """All rules, one candidate after another, those of the highest scores first."""
        config, found, dataset = self.config, self.found, self.dataset
        groups = [name or f"image {image}" for image, name in enumerate(dataset.group_names() or [None] * dataset.num_images)]
        places = [
            (-float(found.cosines_QK[row, place]), row, place)
            for row in range(len(found.queries_Q))
            for place in range(found.items_QK.shape[1])
            if found.items_QK[row, place] >= 0 and found.best_positive_Q[row] != -np.inf
        ]
        expected, taken, relabelled, uses = Expected(), Counter[int](), Counter[int](), Counter[str]()
        seen: set[tuple[int, str]] = set()
        for _, row, place in sorted(places):
            if taken[row] == config.negatives_per_image:
                continue
            image, caption = int(found.items_QK[row, place]), int(found.queries_Q[row])
            chance, rule = self.match[image, caption], self.rule_of(row, place)
            if rule is not None:
                expected.counts[rule] += 1
                continue
            repeated = (row, groups[image]) in seen
            seen.add((row, groups[image]))
            if repeated:
                expected.counts["same_text"] += 1
            elif config.max_uses is not None and uses[groups[image]] == config.max_uses:
                expected.counts["max_uses"] += 1
            elif config.denoise is not None and chance >= config.denoise.threshold:
                sure = config.denoise.relabel_at is not None and chance >= config.denoise.relabel_at
                if sure and relabelled[row] < config.negatives_per_image:
                    relabelled[row] += 1
                    expected.rows.add((image, caption, place + 1, True))
                else:
                    expected.counts["match"] += 1
            else:
                taken[row] += 1
                uses[groups[image]] += 1
                expected.rows.add((image, caption, place + 1, False))
        # Mined separately, captions of one text may differ: what is relabelled for one is no negative of another.
        sure_texts = {(image, normalise(dataset.captions[caption])) for image, caption, _, sure in expected.rows if sure}
        for pair in list(expected.rows):
            if not pair[3] and (pair[0], normalise(dataset.captions[pair[1]])) in sure_texts:
                expected.rows.remove(pair)
                expected.counts["match"] += 1
                taken[found.queries_Q.tolist().index(pair[1])] -= 1
        expected.short = [
            config.negatives_per_image - taken[row] for row in range(len(found.queries_Q)) if found.best_positive_Q[row] != -np.inf
        ]
        return expected


@dataclass
class Expected:
    """What brute force finds: (image, caption, rank, whether relabelled); candidates filtered out, by rule; what each caption lacks."""

    rows: set[tuple[int, int, int, bool]] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    short: list[int] = field(default_factory=list)


@st.composite
def instances(draw: st.DrawFn) -> Instance:
    words = st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3)
    dataset = dataset_of(draw(st.lists(st.tuples(words, st.sampled_from([None, "g", "h"])), min_size=1, max_size=8)))
    draws = np.random.default_rng(draw(st.integers(0, 10_000)))
    depth = draw(st.integers(1, dataset.num_images))
    captions = np.flatnonzero(draws.random(dataset.num_captions) < 0.8)
    images = np.array([draws.permutation(dataset.num_images)[:depth] for _ in captions], dtype=np.int64).reshape(-1, depth)
    cosines = -np.sort(-draws.integers(-6, 7, images.shape), axis=1).astype(np.float32) / 2  # coarse: ties and exact margins happen
    empty = np.arange(depth) >= draws.integers(1, depth + 1)
    images[:, empty], cosines[:, empty] = -1, -np.inf
    best = draws.integers(-6, 7, len(captions)).astype(np.float32) / 2
    best[draws.random(len(captions)) < 0.1] = -np.inf
    denoise = draw(st.sampled_from([None, {"model": "m"}, {"model": "m", "mode": "relabel", "relabel_threshold": 0.8}]))
    config = MiningConfig.model_validate(
        {
            "mine_every_steps": 1,
            "form": "images",
            "negatives_per_image": draw(st.integers(1, 4)),
            "margin": draw(st.sampled_from([None, 0.0, 0.5, 2.0, -1.0])),
            "rank_min": draw(st.integers(1, 2)),
            "near_duplicates": draw(st.booleans()),
            "max_uses": draw(st.sampled_from([None, 1, 2])),
            "denoise": denoise,
        }
    )
    found = Candidates(captions, images, cosines, best, np.isfinite(best), "captions")
    return Instance(dataset, found, config, draws.random((dataset.num_images, dataset.num_captions)).astype(np.float32))


@settings(max_examples=400, deadline=None)
@given(instances())
def test_select_is_brute_force(made: Instance) -> None:
    pool, one, zero = CaptionPool(made.dataset), np.float32(1), np.float32(0)
    probability = None if made.config.denoise is None else lambda images_N, captions_N: made.match[images_N, captions_N]
    mined = Selector(pool, one, zero, made.config, Refresh(), probability).select("made", made.found)
    expected, table = made.solve(), mined.negatives
    columns = (table.image_N, table.captions_N, table.ranks_N, ~table.is_negative_N)
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    assert rows == sorted(rows) and set(rows) == expected.rows and len(rows) == len(expected.rows)
    row_of = {caption: row for row, caption in enumerate(made.found.queries_Q.tolist())}
    for (image, caption, rank, _), score, margin in zip(rows, table.scores_N, table.margins_N, strict=True):
        row = row_of[caption]
        assert score == made.found.cosines_QK[row, rank - 1] and margin == made.found.best_positive_Q[row] - score
        assert made.found.items_QK[row, rank - 1] == image
    if table.match_N is not None:
        assert table.match_N.tolist() == made.match[table.image_N, table.captions_N].tolist()
    if not len(made.found.queries_Q):
        return
    report = summarize(mined, pool, None, None)
    assert {rule: count for rule, count in report.filtered_out.items() if count} == dict(expected.counts)
    assert report.num_positives_mined == 0 and report.mined_for == "captions"
    assert report.num_mined + report.num_relabelled == len(rows)
    assert (report.shortfall, report.num_short_images) == (sum(expected.short), sum(count > 0 for count in expected.short))
    assert (report.num_images, report.num_undecodable) == (len(expected.short), len(made.found.queries_Q) - len(expected.short))


def mined_from(world: SmallWorld, dataset: RetrievalSet, refresh: Refresh | None = None, **keys: Any) -> tuple[Negatives, MiningReport]:
    refresh = refresh or Refresh()
    model, inputs = load_siglip(world.base)
    config = MiningConfig.model_validate({"mine_every_steps": 1, "form": "images", **keys})
    return mine(Retriever(model, inputs), CaptionPool(dataset), config, refresh=refresh)


def test_mining_is_retrieval_by_the_model(small_world: SmallWorld, tmp_path: Path) -> None:
    dataset = load(small_world.manifest)
    model, inputs = load_siglip(small_world.base)
    table, report = mined_from(small_world, dataset, negatives_per_image=3, margin=None)
    assert report.num_mined == 3 * dataset.num_captions and report.shortfall == 0
    assert report.lines()[0].startswith(f"mined {len(table)} negatives for {dataset.num_captions} captions (table {table.name})")
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
    pool = CaptionPool(dataset)
    write_negatives(tmp_path / "t.parquet", table, pool)
    again = read_negatives(tmp_path / "t.parquet", table.name, pool)
    assert all(np.array_equal(value, getattr(again, key)) for key, value in vars(table).items() if value is not None)


def test_only_the_captions_of_the_images_due_are_mined_for(small_world: SmallWorld) -> None:
    dataset = load(small_world.manifest)
    whole, _ = mined_from(small_world, dataset, margin=None)
    due = np.array([2, 9, 30])
    part, report = mined_from(small_world, dataset, Refresh(images_I=due, before=whole), margin=None, scope="window")
    wanted = np.isin(dataset.caption_image_C[whole.captions_N], due)
    for name in ("image_N", "captions_N", "ranks_N", "scores_N", "margins_N"):
        assert getattr(part, name).tolist() == getattr(whole, name)[wanted].tolist()
    assert report.num_survived == report.num_before == len(part) and part.name != whole.name
    assert report.num_images == int(np.isin(dataset.caption_image_C, due).sum())


def test_pictures_that_do_not_decode_are_never_mined(small_world: SmallWorld, tmp_path: Path) -> None:
    manifest = write_pictures(tmp_path)
    for number in (8, 11):
        (tmp_path / "pictures" / f"train-{number:03d}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    dataset = load(manifest)
    table, report = mined_from(small_world, dataset, margin=None, negatives_per_image=37, pool_top_k=40)
    broken = [list(dataset.image_ids).index(f"pictures/train-{number:03d}.png") for number in (8, 11)]
    true_elsewhere = [
        bool(np.delete(dataset.is_positive(np.arange(dataset.num_images), key), broken).any()) for key in dataset.caption_hash_C
    ]
    assert not all(true_elsewhere) and not np.isin(table.image_N, broken).any()
    assert set(table.captions_N.tolist()) == set(np.flatnonzero(true_elsewhere).tolist())
    assert (report.num_images, report.num_undecodable) == (sum(true_elsewhere), dataset.num_captions - sum(true_elsewhere))
    model, inputs = load_siglip(small_world.base)
    found = find_candidates(Retriever(model, inputs), CaptionPool(dataset), 39, mined_for="captions")
    assert np.isfinite(found.best_positive_Q).tolist() == true_elsewhere
    assert (found.items_QK[:, :38] >= 0).all() and (found.items_QK[:, 38] == -1).all()  # 40 images, of which 38 decode
    assert np.isneginf(found.cosines_QK[:, 38]).all() and (np.diff(found.cosines_QK[:, :38], axis=1) <= 0).all()


def test_the_name_is_not_that_of_the_table_of_captions(small_world: SmallWorld) -> None:
    dataset = load(small_world.manifest)
    model, inputs = load_siglip(small_world.base)
    names = [
        mine(Retriever(model, inputs), CaptionPool(dataset), MiningConfig(mine_every_steps=1, form=form))[0].name
        for form in ("columns", "neighbours")
    ]
    assert names[0] == names[1]  # the same table, used otherwise
    assert len({names[0], mined_from(small_world, dataset)[0].name, mined_from(small_world, dataset, margin=2.0)[0].name}) == 3


def test_a_cross_encoder_that_the_configuration_does_not_ask_for_is_refused(small_world: SmallWorld) -> None:
    with pytest.raises(ValueError, match="if and only if"):
        mined_from(small_world, load(small_world.manifest), denoise={"model": "m"})
