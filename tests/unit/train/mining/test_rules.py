"""train/mining/rules.py, train/mining/selection.py and train/mining/mine.py's select against brute force, over all combinations of
rules."""

import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest

from eval.captions import normalise
from eval.processes import Processes
from tests.unit.train.mining.mining_oracle import Instance, dataset_of
from train.config.mining import MiningConfig
from train.data.caption_pool import AdditionalCaptions, CaptionPool
from train.data.negatives import table_name
from train.mining.candidates import Candidates
from train.mining.mine import Selector
from train.mining.refresh import Refresh, rules_of
from train.mining.report import RULES, Mined, MiningReport, summarize
from train.mining.rules import Outcome, RankedLists, filtered_out, perc_pos_bound
from train.mining.selection import priorities, select_negatives

WORDS = ["a dog", "A dog.", "the dog", "a cat", "the CAT", "cat", "a bird", "two birds", "an owl", "owl", "a fox", "there is a fox"]
NUM_INSTANCES = 1000


def a_config(draws: np.random.Generator, depth: int) -> MiningConfig:
    """Each rule on or off at random."""
    per_image = int(draws.integers(1, 1 + min(depth, 4)))
    rank_max = int(draws.integers(per_image, depth + 1)) if draws.random() < 0.4 else None
    last = depth if rank_max is None else rank_max
    keys: dict[str, Any] = {
        "mine_every_steps": 1,
        "negatives_per_image": per_image,
        "pool_top_k": depth,
        "rank_max": rank_max,
        "rank_min": int(draws.integers(1, last - per_image + 2)) if draws.random() < 0.4 else 1,
        "near_duplicates": bool(draws.random() < 0.5),
        "selection": str(draws.choice(["top", "random", "softmax"])),
    }
    for key, values in {
        "margin": [0.0, 0.5, 2.0, -1.0],
        "max_score": [0.0, 1.0, -2.0],
        "perc_pos": [0.95, 0.5, 1.0],
        "margin_pos": [0.0, 0.25, 0.05],
        "max_uses": [1, 2, 3],
    }.items():
        keys[key] = draws.choice(values).item() if draws.random() < 0.35 else None
    if draws.random() < 0.5:
        mode = str(draws.choice(["drop", "relabel"]))
        keys["denoise"] = {"mode": mode, "threshold": 0.5, "relabel_threshold": 0.75 if mode == "relabel" else None}
    return MiningConfig.model_validate(keys)


def an_instance(seed: int) -> Instance:
    """Coarse cosines, so that ties and exact bounds happen; captions of the pool that are positives or near-duplicates; images left out."""
    draws = np.random.default_rng(seed)
    images = [
        ([str(word) for word in draws.choice(WORDS, int(draws.integers(1, 4)))], draws.choice([None, "g", "h"]))
        for _ in range(draws.integers(1, 8))
    ]
    further = [str(word) for word in draws.choice(WORDS, int(draws.integers(0, 4)))]
    pool = CaptionPool(dataset_of(images), AdditionalCaptions(further, np.arange(2, 2 + 2 * len(further), 2)))
    chosen = np.flatnonzero(draws.random(len(images)) < 0.9) if draws.random() < 0.5 else np.arange(len(images))
    depth = int(draws.integers(1, len(pool) + 1))
    captions = np.array([draws.permutation(len(pool))[:depth] for _ in chosen], dtype=np.int64).reshape(len(chosen), depth)
    cosines = -np.sort(-draws.integers(-4, 5, captions.shape), axis=1).astype(np.float32) / 8
    if draws.random() < 0.2:  # an approximate search that found fewer
        captions[:, -1], cosines[:, -1] = -1, -np.inf
    best = draws.integers(-4, 5, len(chosen)).astype(np.float32) / 8
    found = Candidates(chosen, captions, cosines, best, draws.random(len(chosen)) < 0.8)
    config, scale, bias = a_config(draws, depth), np.float32(4), np.float32(-0.5)
    with np.errstate(invalid="ignore"):
        priority = priorities(cosines * scale + bias, config, seed, 3, chosen)
    # Equal texts are one caption to a cross-encoder too.
    chance_of = {normalise(word): number for number, word in enumerate(WORDS)}
    match_IT = draws.integers(0, 9, (len(images), len(WORDS))).astype(np.float32) / 8
    match = np.stack([match_IT[:, chance_of[normalise(pool.text(caption))]] for caption in range(len(pool))], axis=1)
    instance = Instance(pool, found, scale, bias, config, priority, match, 3 if seed % 2 else None)
    pool.compare_tokens(np.array([zlib.crc32(instance.tokens(text).encode()) for text in pool.captions], dtype=np.int64))
    return instance


def mined_from(instance: Instance, seed: int, processes: Processes = Processes()) -> tuple[Mined, MiningReport, list[tuple[int, int]]]:
    asked: list[tuple[int, int]] = []

    def probability(images_N: np.ndarray, captions_N: np.ndarray) -> np.ndarray:
        asked.extend(zip(images_N.tolist(), captions_N.tolist(), strict=True))
        probabilities_N: np.ndarray = instance.match[images_N, captions_N]
        return probabilities_N

    refresh = Refresh(seed=seed, step=3)
    chosen_probability = probability if instance.config.denoise is not None else None
    selector = Selector(instance.pool, instance.scale, instance.bias, instance.config, refresh, chosen_probability, processes)
    mined = selector.select("made", instance.found)
    return mined, summarize(mined, instance.pool, None, None), asked


def test_a_thousand_instances_are_brute_force_and_no_positive_is_mined() -> None:
    totals = dict.fromkeys([outcome.name.lower() for outcome in Outcome], 0)
    for seed in range(NUM_INSTANCES):
        instance = an_instance(seed)
        mined, report, asked = mined_from(instance, seed)
        expected, table, found = instance.solve(), mined.negatives, instance.found
        kept = sorted(expected.rows | expected.relabelled)
        assert table.image_N.tolist() == [found.queries_Q[row] for row, _ in kept], seed
        assert table.captions_N.tolist() == [found.items_QK[row, place] for row, place in kept], seed
        assert table.ranks_N.tolist() == [place + 1 for _, place in kept], seed
        assert table.is_negative_N.tolist() == [pair in expected.rows for pair in kept], seed
        for image, caption in zip(table.image_N.tolist(), table.captions_N.tolist(), strict=True):  # none is positive
            assert normalise(instance.pool.text(caption)) not in {normalise(text) for text in instance.texts_true_of(image)}, seed
        counts = {"mined": report.num_mined, "relabelled": report.num_relabelled, "not_drawn": report.num_not_drawn} | report.filtered_out
        assert counts == {name: expected.counts[name] for name in counts}, (seed, instance.config)
        assert report.num_looked_at == sum(counts.values()) and report.num_positives_mined == 0
        per_image = [sum(row == other for other, _ in expected.rows) for row in range(len(found.queries_Q))]
        missing = [instance.config.negatives_per_image - n for n, ok in zip(per_image, found.readable_Q, strict=True) if ok]
        assert (report.shortfall, report.num_short_images) == (sum(missing), sum(count > 0 for count in missing))
        assert len(asked) == len(set(asked)) == report.num_judged
        for name, count in counts.items():
            totals[name] += count
    rare = {name: count for name, count in totals.items() if count < 20}
    assert rare == {"not_looked_at": 0}, f"the instances do not try every rule: {rare}"


@dataclass(frozen=True)
class Threads(Processes):
    """Processes that are threads of this one; what each gives is in `given` when all are at the barrier."""

    given: list[Any] = field(default_factory=list)
    barrier: Any = None

    def gather(self, array: np.ndarray) -> list[np.ndarray]:
        self.given[self.rank] = array
        self.barrier.wait(20)
        parts = list(self.given)
        self.barrier.wait(20)
        return parts


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_that_share_the_queries_mine_what_one_mines(world_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the instances of brute force, which have up to seven images: some processes have no query at all."""
    monkeypatch.setattr("train.mining.mine._QUERIES_AT_ONCE", 2)
    num_rows = 0
    for seed in range(100):
        instance, given, barrier = an_instance(seed), [None] * world_size, threading.Barrier(world_size)
        expected, report, asked = mined_from(instance, seed)
        with ThreadPoolExecutor(world_size) as threads:
            shares = [Threads(rank, world_size, given=given, barrier=barrier) for rank in range(world_size)]
            results = list(threads.map(partial(mined_from, instance, seed), shares))
        for mined, own_report, own_asked in results:
            assert own_asked == asked and own_report == report, seed
            assert np.array_equal(mined.outcome_QK, expected.outcome_QK)
            for key, values in vars(expected.negatives).items():
                own = vars(mined.negatives)[key]
                assert own is values or (own.dtype == values.dtype and own.tobytes() == values.tobytes()), (seed, key)
        num_rows += len(expected.negatives)
    assert num_rows > 150


def test_the_cross_encoder_scores_only_what_would_be_selected() -> None:
    dataset = dataset_of([([text], None) for text in ("a dog", "a cat", "an owl", "a fox", "a bird")])
    found = Candidates(
        np.array([0]), np.array([[1, 2, 3, 4]]), np.array([[0.4, 0.3, 0.2, 0.1]], np.float32), np.ones(1, np.float32), np.ones(1, bool)
    )
    config = MiningConfig.model_validate({"mine_every_steps": 1, "negatives_per_image": 2, "denoise": {"model": "m"}})
    calls: list[list[int]] = []

    def probability(_: np.ndarray, captions_N: np.ndarray) -> np.ndarray:
        calls.append(captions_N.tolist())
        return np.where(captions_N == 1, 0.9, 0.05).astype(np.float32)

    mined = Selector(CaptionPool(dataset), np.float32(1), np.float32(0), config, match_probability=probability).select("m", found)
    assert calls == [[1, 2], [3]] and mined.negatives.captions_N.tolist() == [2, 3]
    assert mined.negatives.match_N is not None and mined.negatives.match_N.tolist() == pytest.approx([0.05, 0.05])


@pytest.mark.parametrize("selection", ["random", "softmax"])
def test_draws_follow_from_seed_step_and_query_alone(selection: Any) -> None:
    logits = np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32)
    config = MiningConfig(mine_every_steps=1, selection=selection)
    whole = priorities(logits, config, 7, 40, np.arange(6))
    part = priorities(logits[[1, 4]], config, 7, 40, np.array([1, 4]))
    assert np.array_equal(part, whole[[1, 4]])
    for seed, step in ((8, 40), (7, 41)):
        assert not (priorities(logits, config, seed, step, np.arange(6)) == whole).any()


def test_softmax_draws_with_the_odds_it_states() -> None:
    """The first of three, 20,000 times, against exp(logit / temperature): a chi-square with two degrees of freedom, far in its bulk."""
    logits, times, temperature = np.array([2.0, 0.0, -1.0], np.float32), 20_000, 2.0
    config = MiningConfig(mine_every_steps=1, selection="softmax", temperature=temperature)
    first = priorities(np.tile(logits, (times, 1)), config, 1, 2, np.arange(times)).argmax(axis=1)
    odds = np.exp(logits / temperature)
    wanted = times * odds / odds.sum()
    assert ((np.bincount(first, minlength=3) - wanted) ** 2 / wanted).sum() < 13.8  # one in a thousand would lie above


@pytest.mark.parametrize(("best", "share", "bound"), [(0.2, 0.95, 0.19), (0.0, 0.95, 0.0), (-0.2, 0.95, -0.21), (-0.2, 1.0, -0.2)])
def test_perc_pos_never_lets_through_what_outscores_the_positive(best: float, share: float, bound: float) -> None:
    found = perc_pos_bound(np.array([best], np.float32), share)
    assert found.dtype == np.float32 and found[0] == pytest.approx(bound) and found[0] <= np.float32(best)


def test_the_rules_serve_both_directions() -> None:
    """Images are mined for captions: the key is an image's group, and only the best of a group is left."""
    there = np.ones((1, 4), bool)
    there[0, 0] = False  # does not decode
    cosines = np.array([[0.5, 0.4, 0.3, 0.2]], np.float32)
    no = np.zeros((1, 4), bool)
    lists = RankedLists(there, no, no, None, np.array([[7, 7, 8, 7]]), cosines, cosines, np.ones(1), np.ones(1))
    config = MiningConfig(mine_every_steps=1, negatives_per_image=2, margin=None)
    verdict = filtered_out(lists, config)
    assert verdict.tolist() == [[0, 0, 0, Outcome.SAME_TEXT]]
    priority = priorities(cosines, config, 0, 0, np.zeros(1, np.int64))
    outcome, _ = select_negatives(verdict, lists, priority, config)
    assert outcome.tolist() == [[Outcome.NOT_LOOKED_AT, Outcome.MINED, Outcome.MINED, Outcome.NOT_LOOKED_AT]]


def test_uses_of_one_caption_go_to_the_images_that_score_it_highest() -> None:
    dataset = dataset_of([([f"caption {number}"], None) for number in range(5)])
    captions = np.array([[4, 3]] * 3)
    cosines = np.array([[0.5, 0.1], [0.7, 0.1], [0.6, 0.2]], np.float32)
    found = Candidates(np.arange(3), captions, cosines, np.ones(3, np.float32), np.ones(3, bool))
    config = MiningConfig(mine_every_steps=1, negatives_per_image=1, max_uses=1, margin=None)
    mined = Selector(CaptionPool(dataset), np.float32(1), np.float32(0), config).select("m", found)
    assert [mined.negatives.of(image).tolist() for image in range(3)] == [[], [4], [3]]


def test_every_key_that_decides_what_is_mined_is_in_the_name_of_the_table() -> None:
    base = {"mine_every_steps": 1}
    changed = {
        "negatives_per_image": 2, "margin": -1.0, "pool_top_k": 9, "near_duplicates": True, "rank_min": 2, "rank_max": 5, "max_score": 1.0,
        "perc_pos": 0.5, "margin_pos": 0.1, "max_uses": 1, "selection": "random", "index": "faiss",
    }  # fmt: skip
    # These are in the name another way (step, images, pool, weights of cross-encoders), or they say when negatives are mined
    # and how they are weighed, not which; a preset is its values.
    elsewhere = {
        "mine_every_steps", "mine_every_epochs", "start_step", "weight", "mined_scope", "scope", "pool", "temperature", "denoise",
        "index_probes", "form", "distil", "ranking", "preset",
    }  # fmt: skip
    assert changed.keys() | elsewhere == MiningConfig.model_fields.keys(), "a new key: does it change what is mined?"
    plain = rules_of(MiningConfig(**base))
    for key, value in changed.items():
        assert rules_of(MiningConfig(**base, **{key: value})) != plain, key


def test_tables_have_the_names_that_earlier_versions_gave_them() -> None:
    """Worked out by the version that could also mine with an ensemble of checkpoints."""

    class Scorer:
        name = fingerprint = "ab"

        def score(self, image: Any, captions: Any) -> np.ndarray:
            return np.zeros(len(captions))

    def name_of(keys: dict[str, Any], *more: Any) -> str:
        return table_name("weights", "data", rules_of(MiningConfig.model_validate({"mine_every_steps": 1} | keys), *more))

    drawn = {"selection": "softmax", "max_uses": 2, "rank_min": 2, "perc_pos": 0.95}
    scored = {"denoise": {"mode": "relabel"}, "distil": {"form": "lists"}}
    assert name_of({}) == name_of({"ensemble": []}) == "1ddac5d67ce5ec9e"
    assert name_of(drawn, Refresh(3, 40)) == "2a087b2604b6615b"
    assert name_of(scored, Refresh(images_I=np.array([0, 2])), Scorer()) == "c8f5dbc05f19ba92"


def test_every_rule_has_a_name_in_the_report() -> None:
    """What is left out there would be filtered out and never counted."""
    assert list(RULES) == [outcome.name.lower() for outcome in Outcome if outcome >= Outcome.KNOWN_POSITIVE]
