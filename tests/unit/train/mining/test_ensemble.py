"""train/mining/ensemble.py: candidates of an ensemble against a dense float64 mean of logits; what is cached, named and refused."""

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from eval.dataset.retrieval_set import RetrievalSet
from eval.encoder.checkpoint import load_siglip
from eval.encoder.encoder import embed_captions, embed_images
from eval.errors import UserError
from tests.small_job import TINY, SmallWorld, load, write_pictures
from tests.unit.train.mining.candidates_worker import approximate_is_here
from train.config.load import ConfigError, load_config
from train.config.mining import MiningConfig
from train.data.caption_pool import AdditionalCaptions, CaptionPool
from train.mining.candidates import find_candidates, find_image_candidates
from train.mining.ensemble import MiningMember, Retriever, load_members, members_sha256, scale_and_bias
from train.mining.faiss_index import Approximate
from train.mining.mine import mine
from train.mining.refresh import rules_of
from train.model.random_init import write_scratch

FURTHER = AdditionalCaptions(["a red fox", "two green bars", "the black square at the top of it"], np.array([1, 2, 5]))
BROKEN = 7


@dataclass(frozen=True)
class World:
    """A base to be trained, and two fixed checkpoints: one of the same sizes, one of another width, image size, tokenizer and length."""

    base: Path
    sibling: Path
    other: Path
    pool: CaptionPool

    def config(self, **keys: Any) -> MiningConfig:
        ensemble = [f"{self.sibling}:0.5", f"{self.other}:2"]
        return MiningConfig.model_validate({"mine_every_steps": 1, "margin": None, "ensemble": ensemble} | keys)


@pytest.fixture(scope="module")
def world(small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("members")
    manifest = write_pictures(folder / "data")
    (folder / "data" / "pictures" / f"train-{BROKEN:03d}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    shutil.copytree(small_world.base, folder / "sibling")
    move(folder / "sibling", 0.05)
    other = TINY.model_copy(update={"image_size": 24, "width": 48, "vocab_size": 40, "num_tokens": 10})
    write_scratch(folder / "other", other, load(manifest), seed=7)
    move(folder / "other", 0.05)
    return World(small_world.base, folder / "sibling", folder / "other", CaptionPool(load(manifest), FURTHER))


def move(folder: Path, size: float) -> None:
    """Move every weight of a checkpoint."""
    draws = torch.Generator().manual_seed(3)
    weights = load_file(folder / "model.safetensors")
    moved = {name: value + size * torch.randn(value.shape, generator=draws) for name, value in weights.items()}
    save_file(moved, folder / "model.safetensors", {"format": "pt"})


def members_of(
    config: MiningConfig, folder: Path, pool: CaptionPool, on_progress: Callable[[int], Any] = lambda rows: None
) -> tuple[MiningMember, ...]:
    asked: Any = {"bar": lambda text, num_rows: nullcontext(on_progress)}
    return load_members(config, folder, pool, **asked)


@pytest.fixture(scope="module")
def members(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[MiningMember, ...]:
    return members_of(world.config(), tmp_path_factory.mktemp("kept"), world.pool)


@pytest.fixture(scope="module")
def logits(world: World) -> np.ndarray:
    """The mean of logits of all images with the whole pool, by three plain models in float64."""
    total = np.zeros((world.pool.dataset.num_images, len(world.pool)))
    for checkpoint, weight in ((world.base, 1.0), (world.sibling, 0.5), (world.other, 2.0)):
        model, inputs = load_siglip(checkpoint)
        images = embed_images(model, inputs, world.pool.dataset, remedy=None).astype(np.float64)
        captions = embed_captions(model, inputs, [*world.pool.dataset.captions, *FURTHER.texts]).astype(np.float64)
        total += weight / 3.5 * (model.logit_scale.double().exp().item() * images @ captions.T + model.logit_bias.double().item())
    return total


def assert_head(logits_N: np.ndarray, indices_K: np.ndarray, found_K: np.ndarray, allowed: np.ndarray) -> None:
    """Logits fall, each is its item's own, and no item left out has a higher one than the last."""
    assert (np.diff(found_K) <= 0).all() and np.isin(indices_K, allowed).all() and len(set(indices_K.tolist())) == len(indices_K)
    np.testing.assert_allclose(found_K, logits_N[indices_K], atol=2e-5)
    rest = np.setdiff1d(allowed, indices_K)
    assert not len(rest) or logits_N[rest].max() <= found_K[-1] + 2e-5


def broken(dataset: RetrievalSet) -> int:
    return list(dataset.image_ids).index(f"pictures/train-{BROKEN:03d}.png")


@pytest.mark.parametrize("some", [None, np.array([0, 3, 7, 17, 38])], ids=["all", "some"])
def test_captions_are_the_top_k_of_the_mean_of_logits(
    world: World, members: tuple[MiningMember, ...], logits: np.ndarray, some: np.ndarray | None
) -> None:
    (model, inputs), dataset = load_siglip(world.base), world.pool.dataset
    found = find_candidates(Retriever(model, inputs, members=members), world.pool, 20, images_I=some)
    scale, bias = scale_and_bias(model, members)
    assert np.flatnonzero(~found.decodable_I).tolist() == np.flatnonzero(found.images_I == broken(dataset)).tolist() != []
    for row, image in enumerate(found.images_I):
        if found.decodable_I[row]:
            assert_head(logits[image], found.captions_IK[row], found.cosines_IK[row] * scale + bias, np.arange(len(world.pool)))
            true = np.flatnonzero(dataset.is_positive(np.array(image), dataset.caption_hash_C))
            assert found.best_positive_I[row] * scale + bias == pytest.approx(logits[image, true].max(), abs=2e-5)
    alone = find_candidates(Retriever(model, inputs), world.pool, 20, images_I=some)
    assert (alone.captions_IK != found.captions_IK).any(), "the members must matter, or nothing is tried"


def test_images_are_the_top_k_of_the_other_direction(world: World, members: tuple[MiningMember, ...], logits: np.ndarray) -> None:
    (model, inputs), dataset = load_siglip(world.base), world.pool.dataset
    captions = np.array([40, 3, 4, 5, 30, 31, 1])
    found = find_image_candidates(Retriever(model, inputs, members=members), dataset, 12, captions)
    scale, bias = scale_and_bias(model, members)
    there = np.setdiff1d(np.arange(dataset.num_images), [broken(dataset)])
    for row, caption in enumerate(captions):
        assert_head(logits[:, caption], found.images_QK[row], found.cosines_QK[row] * scale + bias, there)


@pytest.mark.skipif(not approximate_is_here(), reason="faiss is not installed")
def test_an_index_that_searches_every_list_finds_the_same(world: World, members: tuple[MiningMember, ...]) -> None:
    model, inputs = load_siglip(world.base)
    retriever, pool = Retriever(model, inputs, members=members), CaptionPool(world.pool.dataset)
    exact = find_candidates(retriever, pool, 12)
    found = find_candidates(retriever, pool, 12, approximate=Approximate(999))
    assert found.recall == 1
    np.testing.assert_allclose(found.cosines_IK, exact.cosines_IK, atol=1e-6)


@pytest.mark.parametrize("form", ["columns", "images"])
def test_the_table_and_its_margins_are_those_of_the_ensemble(
    world: World, members: tuple[MiningMember, ...], logits: np.ndarray, form: str
) -> None:
    (model, inputs), dataset = load_siglip(world.base), world.pool.dataset
    config = world.config(form=form, margin=0.05, max_score=float(np.quantile(logits, 0.9)))
    pool = world.pool if form == "columns" else CaptionPool(dataset)
    table, report = mine(Retriever(model, inputs, members=members), pool, config)
    assert len(table) > 20 and report.num_positives_mined == 0 and report.filtered_out["max_score"] > 0 < report.filtered_out["margin"]
    images, captions = table.image_N, table.captions_N
    np.testing.assert_allclose(table.scores_N, logits[images, captions], atol=2e-5)
    of_split = captions[captions < dataset.num_captions]
    assert not dataset.is_positive(images[captions < dataset.num_captions], dataset.caption_hash_C[of_split]).any()
    true_IC = np.stack([dataset.is_positive(np.array(image), dataset.caption_hash_C) for image in range(dataset.num_images)])
    true_IC[broken(dataset)] = False
    best = np.where(true_IC, logits[:, : dataset.num_captions], -np.inf).max(axis=1 if form == "columns" else 0)
    np.testing.assert_allclose(table.margins_N, best[images if form == "columns" else captions] - table.scores_N, atol=4e-5)
    scales = [load_siglip(checkpoint)[0].logit_scale.exp().item() for checkpoint in (world.base, world.sibling, world.other)]
    parts = np.array(scales) * [1.0, 0.5, 2.0]
    assert report.shares == pytest.approx((parts / parts.sum()).tolist()) and "shares in the ensemble" in str(report)
    assert table.margins_N.min() >= 0.05 and table.scores_N.max() <= config.max_score


def test_the_scale_of_the_model_under_training_moves_the_shares(world: World, members: tuple[MiningMember, ...]) -> None:
    """At a large enough scale its own candidates are left."""
    model, inputs = load_siglip(world.base)
    with torch.no_grad():
        model.logit_scale.fill_(16.0)
    pool = CaptionPool(world.pool.dataset)
    found = find_candidates(Retriever(model, inputs, members=members), pool, 6)
    alone = find_candidates(Retriever(model, inputs), pool, 6)
    np.testing.assert_allclose(found.cosines_IK, alone.cosines_IK, atol=2e-3)


def test_members_are_embedded_once_and_again_where_their_weights_changed(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.sibling, tmp_path / "sibling")
    config = world.config(ensemble=[str(tmp_path / "sibling"), str(world.other)])
    embedded: list[int] = []
    one = members_of(config, tmp_path / "kept", world.pool, embedded.append)
    num_rows = world.pool.dataset.num_images + len(world.pool)
    assert sum(embedded) == 2 * num_rows
    two = members_of(config, tmp_path / "kept", world.pool, embedded.append)
    assert sum(embedded) == 2 * num_rows and [member.sha256 for member in one] == [member.sha256 for member in two]
    for first, second in zip(one, two, strict=True):
        np.testing.assert_array_equal(first.captions.vectors_ND, second.captions.vectors_ND)
    move(tmp_path / "sibling", 0.01)
    three = members_of(config, tmp_path / "kept", world.pool, embedded.append)
    assert sum(embedded) == 3 * num_rows and three[0].sha256 != one[0].sha256 and three[1].sha256 == one[1].sha256
    assert len(list((tmp_path / "kept").rglob("*.f32"))) == 4, "a stale file goes"


def test_the_name_of_a_table_follows_from_members_weights_and_order(
    world: World, members: tuple[MiningMember, ...], tmp_path: Path
) -> None:
    config = world.config()
    heavier = replace(members[0], weight=0.75)
    asked = [(), members, members[:1], members[::-1], (heavier, members[1]), (replace(members[0], sha256="f" * 64), members[1])]
    rules = [rules_of(config, members=some) for some in asked]
    assert len({str(row) for row in rules}) == len(asked) and "ensemble" not in rules[0]
    model, inputs = load_siglip(world.base)
    with pytest.raises(ValueError, match="expected the 2 members of config.ensemble; found 0"):
        mine(Retriever(model, inputs), world.pool, config)
    with pytest.raises(ValueError, match="expected the 0 members of config.ensemble; found 2"):
        mine(Retriever(model, inputs, members=members), world.pool, world.config(ensemble=[]))
    shutil.copytree(world.sibling, tmp_path / "copy")
    names = [[f"{world.sibling}:0.5"], [str(world.sibling)], [f"{tmp_path / 'copy'}:0.5"]]
    told = [members_sha256(world.config(ensemble=some)) for some in names]
    assert told[0] == told[2] != told[1] and members_sha256(world.config(ensemble=[])) is members_sha256(None) is None
    config_file = tmp_path / "copy" / "tokenizer_config.json"
    shutil.copy(world.other / "spiece.model", tmp_path / "copy" / "spiece.model")
    assert config_file.is_file() and members_sha256(world.config(ensemble=names[2])) != told[0], "another tokenizer is another hash"


def test_what_cannot_be_used_is_refused_with_its_key(world: World, small_world: SmallWorld, tmp_path: Path) -> None:
    for ensemble, words in (
        (["base:0"], r"mining\.ensemble: base:0: expected DIR_OR_HUB_ID\[:WEIGHT\]"),
        (["base", "base:2"], "there twice"),
    ):
        path = small_world.write_config(tmp_path, mining__ensemble=ensemble)
        with pytest.raises(ConfigError, match=words):
            load_config(path)
    with pytest.raises(UserError, match=r"mining\.ensemble: .*nowhere"):
        members_sha256(world.config(ensemble=[str(tmp_path / "nowhere")]))


def test_the_same_model_under_two_names_is_refused(world: World, tmp_path: Path) -> None:
    copied = shutil.copytree(world.other, tmp_path / "copy")
    with pytest.raises(UserError, match=r"copy are the same model and would count twice; name it once"):
        members_sha256(world.config(ensemble=[str(world.other), f"{copied}:2"]))
