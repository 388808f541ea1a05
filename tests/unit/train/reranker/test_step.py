"""train/reranker/step.py: loss and gradients of plain transformers, whatever the processes and micro-batches; what is trained is scored."""

import contextlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BlipForImageTextRetrieval

from rerank.scorers.load import load_scorer
from tests.nursery import Nursery
from tests.small_job import load
from tests.small_reranker_job import RerankerWorld
from tests.unit.train.reranker.match_bench import BATCH, Bench
from train.optim.update import NotFinite
from train.reranker.batches import PairKind

WAYS = [{"what": "head"}, {"what": "lora", "lora": {"rank": 2}}, {"what": "all"}]


def bench(world: RerankerWorld, **options: Any) -> Bench:
    return Bench.make(world.manifest, str(world.blip), **options)


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    """Against the largest entry of all: some gradients are truly 0 (the keys' biases), so none is relative to itself."""
    assert found.keys() == expected.keys()
    largest = max(np.abs(value).max() for value in expected.values())
    for name, value in expected.items():
        assert np.abs(found[name] - value).max() <= tolerance * largest, name


def test_loss_and_gradients_are_those_of_transformers_own_forward_pair_by_pair(reranker_world: RerankerWorld) -> None:
    made = bench(reranker_world)
    result = made.step(contextlib.nullcontext)
    plain = BlipForImageTextRetrieval.from_pretrained(reranker_world.blip).double().train()
    batch, total = made.batch, torch.zeros((), dtype=torch.float64)
    for picture, row, mask, label in zip(batch.pictures_N, batch.token_ids_NL, batch.mask_NL, batch.labels_N, strict=True):
        length = int(mask.sum())
        (logits_12,) = plain(input_ids=row[None, :length], pixel_values=batch.pixels_p[picture][None].double(), return_dict=True).itm_score[
            None
        ]
        total = total - logits_12.log_softmax(dim=-1)[0, label]
    loss = total / len(batch.labels_N)
    loss.backward()
    assert result.loss == pytest.approx(float(loss.detach()), abs=1e-5)
    assert (result.num_true, result.num_false) == (BATCH, len(batch.labels_N) - BATCH)
    expected = {name: value.grad.numpy() for name, value in plain.named_parameters() if value.grad is not None}
    assert_equal(made.gradients(), expected, 1e-5)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: str(way["what"]))
@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_micro_batches_change_nothing(reranker_world: RerankerWorld, way: dict[str, Any], micro_batch_size: int) -> None:
    whole, parts = bench(reranker_world, **way), bench(reranker_world, micro_batch_size=micro_batch_size, **way)
    first, second = whole.step(contextlib.nullcontext), parts.step(contextlib.nullcontext)
    assert second.loss == pytest.approx(first.loss, abs=1e-6) and second.gap == pytest.approx(first.gap, abs=1e-5)
    assert_equal(parts.gradients(), whole.gradients(), 1e-5)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: str(way["what"]))
@pytest.mark.parametrize(("double", "tolerance"), [(False, 1e-5), (True, 1e-10)])
def test_keys_and_values_once_a_picture_are_those_of_each_pair(
    reranker_world: RerankerWorld, monkeypatch: pytest.MonkeyPatch, way: dict[str, Any], double: bool, tolerance: float
) -> None:
    """As on a GPU; the plain form, a picture's tokens for each of its pairs, is the oracle, and so is transformers (above). A step projects
    so many pictures, and not so many pairs."""
    found, rows = [], list[int]()
    for pair_by_pair in (("cpu",), ()):
        monkeypatch.setattr("train.reranker.model.PAIR_BY_PAIR", pair_by_pair)
        made = bench(reranker_world, **way)
        if double:
            made.tuned.module.double()
            made.batch = replace(made.batch, pixels_p=made.tuned.inputs.picture_bytes.values(made.batch.pixels_p).double())
        layer: Any = made.tuned.module.text_encoder.encoder.layer[0]
        layer.crossattention.self.key.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
        result = made.step(contextlib.nullcontext)
        found.append((result.loss, result.gap, made.gradients()))
    assert rows == [len(made.batch.pictures_N), len(made.batch.images_p)] and rows[1] < rows[0]
    assert found[1][:2] == pytest.approx(found[0][:2], rel=tolerance)
    assert_equal(found[1][2], found[0][2], tolerance)


def test_two_processes_are_one(reranker_world: RerankerWorld, nursery: Nursery, tmp_path: Path) -> None:
    arguments = [str(reranker_world.manifest), str(reranker_world.blip), str(tmp_path / "two")]
    children = nursery.start_ranks("tests.unit.train.reranker.match_worker", arguments, 2)
    assert [child.wait() for child in children] == [0, 0], "".join(child.output() for child in children)
    found = dict(np.load(tmp_path / "two.npz"))
    one = bench(reranker_world)
    result = one.step(contextlib.nullcontext)
    assert float(found.pop("loss")) == pytest.approx(result.loss, abs=1e-6)
    assert float(found.pop("gap")) == pytest.approx(result.gap, abs=1e-5)
    assert int(found.pop("num")) == result.num_false
    assert_equal(found, one.gradients(), 1e-5)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: str(way["what"]))
def test_everything_that_trains_gets_a_gradient_and_moves_and_nothing_else_does(reranker_world: RerankerWorld, way: dict[str, Any]) -> None:
    made = bench(reranker_world, **way)
    before = {name: value.detach().clone() for name, value in made.tuned.module.named_parameters()}
    made.step(contextlib.nullcontext)
    trained = dict(made.tuned.trainable())
    for name, value in made.tuned.module.named_parameters():
        assert torch.equal(value, before[name]) != (name in trained) or name.endswith("key.bias"), name
    assert any("itm_head" in name for name in trained)
    assert any("vision_model" in name for name in trained) == (way["what"] == "all")
    assert not any("_proj." in name for name in trained)
    if way["what"] == "lora":
        assert {name.split(".")[4] for name in trained if "lora" in name} == {"attention", "crossattention"}


def test_training_judges_as_the_scorer_scores(reranker_world: RerankerWorld) -> None:
    made, dataset = bench(reranker_world), load(reranker_world.manifest)
    scorer, batch = load_scorer(str(reranker_world.blip), device="cpu"), made.batch
    made.tuned.module.eval()
    with torch.no_grad():
        logits_N2 = made.tuned.logits(batch.pixels_p, batch.pictures_N, batch.token_ids_NL, batch.mask_NL)
    images = batch.images_p[batch.pictures_N].tolist()
    expected = [
        float(scorer.score(dataset.load_image(image), [dataset.captions[caption]])[0])
        for image, caption in zip(images, batch.captions_N.tolist(), strict=True)
    ]
    assert np.abs(logits_N2[:, 1].numpy() - expected).max() < 1e-5
    assert np.std(expected) > 0.01


def test_dropout_follows_from_seed_and_step(reranker_world: RerankerWorld) -> None:
    losses = []
    for _ in range(2):
        torch.manual_seed(len(losses))  # what a generator held before is of no account
        losses.append(bench(reranker_world, dropout=0.3).step(contextlib.nullcontext).loss)
    assert losses[0] == losses[1] != bench(reranker_world).step(contextlib.nullcontext).loss


def test_a_frozen_tower_drops_nothing(reranker_world: RerankerWorld) -> None:
    losses = [bench(reranker_world, dropout=dropout, what="head").step(contextlib.nullcontext).loss for dropout in (0.0, 0.3)]
    assert losses[0] == losses[1]


def test_fp16s_scale_is_taken_out_of_the_gradients(reranker_world: RerankerWorld) -> None:
    scaled, plain = bench(reranker_world, precision="fp16"), bench(reranker_world)
    for made in (scaled, plain):
        made.step(contextlib.nullcontext)
    assert_equal(scaled.gradients(), plain.gradients(), 1e-5)


def test_under_bf16_the_loss_is_near_and_the_head_stays_float32(reranker_world: RerankerWorld) -> None:
    half, plain = bench(reranker_world), bench(reranker_world)
    losses = [
        made.step(autocast).loss
        for made, autocast in ((half, partial(torch.autocast, "cpu", dtype=torch.bfloat16)), (plain, contextlib.nullcontext))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.05) and losses[0] != losses[1]


def test_what_is_not_finite_updates_nothing(reranker_world: RerankerWorld) -> None:
    made = bench(reranker_world)
    made.batch.pixels_p[0, 0, 0, 0] = float("nan")
    before = made.tuned.module.itm_head.weight.detach().clone()
    with pytest.raises(NotFinite, match="nothing was updated"):
        made.step(contextlib.nullcontext)
    assert torch.equal(made.tuned.module.itm_head.weight, before)


def test_the_kinds_of_pairs_are_counted(reranker_world: RerankerWorld) -> None:
    made = bench(reranker_world)
    result = made.step(contextlib.nullcontext)
    assert result.num_pairs == {kind: int((made.batch.kinds_N == kind).sum()) for kind in PairKind}
    assert result.shortfall == made.batch.shortfall > 0
    assert sum(result.num_pairs.values()) + result.shortfall == BATCH * 5  # a true caption, 3 captions and an image
